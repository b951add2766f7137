"""Files of another owner, for tests that may run as any user."""

from __future__ import annotations

import os

import pytest


def owned_by(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Whatever is opened is that user's."""
    fstat = os.fstat

    def changed(fd: int) -> os.stat_result:
        status = list(fstat(fd)[:10])
        status[4] = uid
        return os.stat_result(status)

    monkeypatch.setattr("ipsec.config.values.os.fstat", changed)
