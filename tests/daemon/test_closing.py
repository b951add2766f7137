"""The end of all IKE_SAs, with an engine that is a stand-in: who answers, and when."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec.daemon import closing
from ipsec.daemon.closing import NAMED, close_all
from ipsec.ike.config import IkeSettings


class Sa:
    def __init__(self, engine: Engine, uid: int) -> None:
        self.engine, self.uid = engine, uid
        self.path = SimpleNamespace(remote="192.0.2.2")

    def __str__(self) -> str:
        return f"c[{self.uid}]"

    def destroy(self, why: str, now: float) -> None:
        del self.engine.sas[self.uid]


class Engine:
    """As many IKE_SAs; a peer answers every so often, until so many are left."""

    def __init__(self, count: int, *, every: float = 0.0, silent: int = 0) -> None:
        self.settings = IkeSettings()
        self.sas = {uid: Sa(self, uid) for uid in range(count)}
        self._every, self._silent = every, silent

    def stop(self, now: float) -> None:
        asyncio.get_running_loop().call_later(self._every, self._answer)

    def _answer(self) -> None:
        if len(self.sas) > self._silent:
            self.sas.popitem()
            asyncio.get_running_loop().call_later(self._every, self._answer)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOP_S", "STOP_MAX_S", "LOOK_S"):
        monkeypatch.setattr(closing, name, getattr(closing, name) / 10)


def took(engine: Engine) -> float:
    async def main() -> float:
        begun = asyncio.get_running_loop().time()
        await close_all(cast(Any, engine), lambda: None)
        return asyncio.get_running_loop().time() - begun

    return asyncio.run(main())


def test_as_long_as_peers_answer(caplog: pytest.LogCaptureFixture) -> None:
    assert took(Engine(8, every=0.05)) > closing.STOP_S
    assert not caplog.records


def test_but_not_for_ever() -> None:
    engine = Engine(1000, every=0.01)
    assert closing.STOP_MAX_S <= took(engine) < closing.STOP_MAX_S * 3
    assert not engine.sas


def test_who_is_silent_is_named_if_they_are_few(caplog: pytest.LogCaptureFixture) -> None:
    assert closing.STOP_S <= took(Engine(NAMED + 7, silent=NAMED + 5)) < closing.STOP_MAX_S
    assert len(caplog.records) == NAMED + 1
    assert "c[0]: 192.0.2.2 has not acknowledged" in caplog.text
    assert "5 more have not" in caplog.text
