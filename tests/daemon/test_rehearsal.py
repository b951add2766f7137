"""Handshakes with ourselves when a daemon has begun."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from ipsec.daemon import rehearsal
from ipsec.errors import IpsecError
from ipsec.ike.engine import IkeEngine


def test_each_handshake_makes_a_child_and_leaves_nothing() -> None:
    a, b = rehearsal._engine(0), rehearsal._engine(1)
    for number in range(3):
        rehearsal._come_and_go(a, b, float(number))
        assert (a.sas, b.sas, a.children, b.children) == ({}, {}, {}, {})


def test_nothing_of_it_is_in_the_log_and_logging_is_as_before(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "ipsec.ike")
    asyncio.run(rehearsal.rehearse())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("ipsec")] == []
    assert logging.getLogger("ipsec.ike").level == logging.INFO


def test_what_others_log_meanwhile_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Names are looked up, and routes are set, in threads."""

    def speak(*_: object) -> None:
        thread = threading.Thread(target=logging.getLogger("ipsec.backend.routes").warning, args=("a route is gone",))
        thread.start()
        thread.join()

    monkeypatch.setattr(rehearsal, "_come_and_go", speak)
    monkeypatch.setattr(rehearsal, "HANDSHAKES", 1)
    asyncio.run(rehearsal.rehearse())
    assert caplog.messages == ["a route is gone"]


def test_others_have_their_turn_between_two_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(rehearsal, "_come_and_go", lambda *_: happened.append("handshake"))
    monkeypatch.setattr(rehearsal, "PAUSE_S", 0)

    async def others() -> None:
        for _ in range(rehearsal.HANDSHAKES):
            happened.append("other")
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(rehearsal.rehearse(), others())

    asyncio.run(main())
    assert happened == ["handshake", "other"] * rehearsal.HANDSHAKES


def test_what_fails_is_told_once_and_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where libcrypto, set up for a standard, has no X25519."""

    def refuse(*_: object) -> None:
        raise IpsecError("no algorithm")

    monkeypatch.setattr(rehearsal, "_come_and_go", refuse)
    asyncio.run(rehearsal.rehearse())
    (told,) = caplog.messages
    assert told == "IKE fails with our own default proposals: no algorithm"


def test_the_reason_is_that_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rehearsal._engine(0), rehearsal._engine(1)
    b.load([], b.credentials)
    with pytest.raises(IpsecError, match="no connection has"):
        rehearsal._come_and_go(a, b, 0.0)


def test_a_bug_in_it_leaves_the_log_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(self: IkeEngine, *_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(IkeEngine, "initiate", stumble)
    before = logging.getLogger("ipsec.ike").level
    with pytest.raises(ZeroDivisionError):
        asyncio.run(rehearsal.rehearse())
    assert logging.getLogger("ipsec.ike").level == before


def test_a_bug_that_the_engine_contains_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ipsec.ike.engine.handle_init_request", stumble)
    asyncio.run(rehearsal.rehearse())
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)
