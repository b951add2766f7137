"""The one door to the compiled data path."""

from __future__ import annotations

from ipsec._fastpath import (
    PROVIDERS,
    AeadKey,
    Batch,
    Engine,
    Pump,
    choose_provider,
    provider_versions,
    self_test,
)

__all__ = ["PROVIDERS", "AeadKey", "Batch", "Engine", "Pump", "choose_provider", "provider_versions", "self_test"]
