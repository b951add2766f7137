"""What the engine asks of others goes out, and the answers come back to it; servers hear of what ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec.config.settings import RadiusSettings
from ipsec.daemon import outside as outside_module
from ipsec.daemon.outside import NO_SERVER, Outside
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.events import EapAnswerNeeded, IkeDown, Path, RevocationNeeded
from ipsec.ike.radius.server import RadiusServer
from tests.crypto.pki import WALL
from tests.ike.radius_server import CALLER, IDENTITY, SERVER

PATH = Path(CALLER.local, CALLER.local_port, CALLER.remote, CALLER.remote_port)
SA = cast(Any, SimpleNamespace(uid=7, path=PATH, name=CALLER.connection))
TWO = (replace(SERVER, acct_port=11813), replace(SERVER, name="two"))


class Client:
    """In place of ``RadiusClient``: keeps what it is asked."""

    made: list[Client]

    def __init__(self, servers: Sequence[RadiusServer], resolved: Any) -> None:
        self.servers = servers
        self.asked: list[Any] = []
        self.forgotten: list[int] = []
        self.closed = False
        self.silent = {"two": 4.0 + len(self.made)}
        self.counters = {one.name: {"requests": len(self.made)} for one in servers}
        self.made.append(self)

    def ask(self, *arguments: Any) -> None:
        self.asked.append(arguments)

    def forget(self, ticket: int) -> None:
        self.forgotten.append(ticket)

    def close(self) -> None:
        self.closed = True


class Run:
    """``log``: what the engine is told, and that its turn has come."""

    def __init__(self, servers: Sequence[RadiusServer] = TWO, *, accounting: bool = True) -> None:
        Client.made = []
        self.log: list[Any] = []
        self.spawned: list[Coroutine[object, object, object]] = []
        engine = SimpleNamespace(
            host=SimpleNamespace(wall=lambda: WALL),
            eap_answered=lambda uid, answer, now: self.log.append((uid, answer)),
            status_known=lambda ticket, now, crls, responses: self.log.append((ticket, crls, responses)),
        )
        settings = RadiusSettings(accounting, servers=tuple(servers))
        self.outside = Outside(cast(Any, engine), settings, cast(Any, None), lambda name: (), self.spawned.append,
                               lambda: self.log.append("turn"))  # fmt: skip


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_module, "RadiusClient", Client)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_a_question_to_radius_servers() -> None:
    async def work() -> None:
        one = Run()
        one.outside.handle(EapAnswerNeeded(SA, b"alice", IDENTITY))
        ((ticket, identity, packet, caller, done),) = Client.made[0].asked
        assert (ticket, identity, packet, caller) == (7, b"alice", IDENTITY, CALLER)
        assert one.log == []
        answer = EapAnswer(None, True)
        done(answer)
        assert one.log == [(7, answer), "turn"]

    run(work)


def test_without_servers_nobody_is_let_in() -> None:
    """The engine, which is in the midst of asking, hears so later."""

    async def work() -> None:
        one = Run(())
        assert one.outside.accounting is None
        one.outside.handle(EapAnswerNeeded(SA, b"alice", IDENTITY))
        assert one.log == []
        await asyncio.sleep(0)
        assert one.log == [(7, NO_SERVER), "turn"]
        assert NO_SERVER.accepted is False
        assert Client.made[0].asked == []

    run(work)


def test_who_is_gone_needs_no_answer() -> None:
    async def work() -> None:
        one = Run()
        one.outside.handle(IkeDown(SA, "closed", False))
        assert [client.forgotten for client in Client.made] == [[7], []]

    # nobody has let that one in, so no record is about it
    SA.lineage = object()
    run(work)


def test_what_certificates_need() -> None:
    async def work() -> None:
        one = Run()
        one.outside.handle(RevocationNeeded(3, ()))
        assert one.log == []
        (fetching,) = one.spawned
        await fetching
        assert one.log == [(3, [], []), "turn"]

    run(work)


def test_servers_have_two_ports() -> None:
    async def work() -> None:
        one = Run()
        asked, told = Client.made
        assert [server.auth_port for server in asked.servers] == [1812, 1812]
        assert [server.auth_port for server in told.servers] == [11813, 1813]
        states = [(state.server.name, state.kind, state.silent_s) for state in one.outside.radius_states]
        assert states == [
            ("one", "auth", None), ("two", "auth", 4.0), ("one", "acct", None), ("two", "acct", 5.0),
        ]  # fmt: skip
        assert [state.counters["requests"] for state in one.outside.radius_states] == [0, 0, 1, 1]
        one.outside.close()
        assert asked.closed
        assert told.closed
        quiet = Run(accounting=False)
        assert [state.kind for state in quiet.outside.radius_states] == ["auth", "auth"]
        quiet.outside.close()

    run(work)


@pytest.mark.parametrize("accounting", [False, True])
def test_the_end_of_the_daemon_is_told(monkeypatch: pytest.MonkeyPatch, accounting: bool) -> None:
    """That it ends is known before anything is closed, and servers have a moment after that."""
    order: list[str] = []

    async def work() -> None:
        one = Run(accounting=accounting)
        records = one.outside.accounting

        async def close() -> None:
            order.append("closed" if records is None or records.stopping else "nobody knows")

        async def drain() -> None:
            order.append("drained")

        if records is not None:
            assert not records.stopping
            monkeypatch.setattr(records, "drain", drain)
        await one.outside.close_all(close())

    run(work)
    assert order == ["closed", *(["drained"] if accounting else [])]
