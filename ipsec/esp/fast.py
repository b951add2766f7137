"""The one door to the compiled data path."""

from __future__ import annotations

from ipsec._fastpath import Batch, Engine
from ipsec._providers import PROVIDERS, AeadKey, choose_provider, provider_versions, self_test
from ipsec._pump import Pump

__all__ = ["PROVIDERS", "AeadKey", "Batch", "Engine", "Pump", "choose_provider", "provider_versions", "self_test"]
