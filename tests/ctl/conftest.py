"""A daemon that can be told what to say, and ipsecctl to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl.fake import Ctl, FakeDaemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon without anything."""
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


@pytest.fixture
def charon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """One that knows nothing of what only ipsecd has."""
    with FakeDaemon(tmp_path / "s", without="ipsecd-") as daemon:
        yield daemon


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """ipsecctl for the socket of ``daemon``, whether that runs or not."""
    monkeypatch.delenv("IPSECCTL_SOCKET", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Ctl(tmp_path / "s", capsys)
