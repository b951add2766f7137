"""When records of accounting are sent, of whom, and what becomes of those that no server takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest

from ipsec.config.settings import RadiusSettings
from ipsec.crypto.identity import Identity
from ipsec.daemon import accounting as accounting_module
from ipsec.daemon.accounting import Accounting
from ipsec.daemon.traffic import NOTHING, Account
from ipsec.esp.engine import SaStats
from ipsec.ike.config import PoolConfig
from ipsec.ike.credentials import EapSecret
from ipsec.ike.eap.relay import EapAnswer, Granted
from ipsec.ike.radius.accounting import AccountingExchange
from ipsec.wire.iana import IdType
from tests.daemon.test_ike import LOOP
from tests.ike.radius_server import SERVER
from tests.ike.test_eap import PASSWORD
from tests.ike.test_grants import NINE, connect, granting, guest, roads
from tests.ike.test_radius_accounting import read
from tests.pair import Pair

START, STOP, INTERIM = 1, 2, 3
GRANTED = Granted(b"carol@example.org", (NINE,), classes=(b"c",))
Done = Callable[[EapAnswer], None]


class Client:
    """Keeps what is to be sent until somebody answers."""

    def __init__(self) -> None:
        self.said: list[dict[int, bytes]] = []
        self.waiting: list[Done] = []

    def begin(self, ticket: int, exchange: AccountingExchange, done: Done) -> None:
        self.said.append(dict(read(exchange.request(SERVER, 1, bytes(16), b"")).attributes))
        self.waiting.append(done)

    def answer(self, good: bool = True) -> None:
        self.waiting.pop(0)(EapAnswer(None, good, reason="" if good else "no RADIUS server answers"))

    @property
    def kinds(self) -> list[int]:
        return [int.from_bytes(one[40], "big") for one in self.said]


class Meters:
    """In place of the data path: what each session has used is what a test says."""

    def __init__(self) -> None:
        self.accounts: dict[int, tuple[Account, Account]] = {}
        self.looked: list[int] = []

    def begin_meter(self, ike: Any) -> tuple[Account, Account]:
        return self.accounts.setdefault(id(ike.lineage), (Account(), Account()))

    def end_meter(self, ike: Any) -> None:
        del self.accounts[id(ike.lineage)]

    def look(self, uid: int) -> None:
        self.looked.append(uid)

    def count(self, packets: int) -> None:
        for inbound, outbound in self.accounts.values():
            inbound.add(SaStats(packets, packets * 100, 5.0, packets, {}, LOOP, None), NOTHING)
            outbound.add(SaStats(2 * packets, packets * 300, 5.0, packets, {}, LOOP, None), NOTHING)


class Run:
    """sun's engine with accounting."""

    def __init__(self, granted: Granted = GRANTED, interval: float = 0.0, **more: Any) -> None:
        self.pair: Pair = roads(**more)
        self.aaa = granting(granted, self.pair)
        self.client, self.meters = Client(), Meters()
        settings = RadiusSettings(accounting=True, accounting_interval=interval)
        self.accounting = Accounting(
            cast(Any, self.client), settings, self.pair.b.engine, cast(Any, self.meters), "run"
        )
        self.heard = 0

    def turn(self) -> None:
        self.pair.world.settle()
        events = self.pair.b.seen[self.heard :]
        self.heard += len(events)
        for event in events:
            self.accounting.handle(event)

    def up(self) -> None:
        connect(self.pair, self.aaa)
        self.turn()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_one_session_over_rekeying() -> None:
    async def work() -> None:
        one = Run()
        one.up()
        one.client.answer()
        sun = one.pair.b
        first = sun.ike.uid
        for _ in range(2):
            sun.do(sun.engine.rekey_ike_sa, sun.ike)
            one.turn()
            (child,) = sun.children
            sun.do(sun.engine.rekey_child, child)
            one.turn()
        assert sun.ike.uid != first
        one.meters.count(7)
        assert one.client.kinds == [START]
        sun.do(sun.engine.terminate_ike, sun.ike)
        one.turn()
        assert one.client.kinds == [START, STOP]
        start, stop = one.client.said
        for said in (start, stop):
            assert (said[44], said[1], said[8], said[25]) == (
                f"run-{first}".encode(), b"carol@example.org", NINE.packed, b"c",
            )  # fmt: skip
        numbers = {kind: int.from_bytes(stop[kind], "big") for kind in (42, 43, 47, 48, 49)}
        assert numbers == {42: 700, 43: 2100, 47: 7, 48: 14, 49: 6}
        assert not one.meters.accounts

    run(work)


def test_whoever_is_let_in_by_others_has_no_session() -> None:
    async def work() -> None:
        one = Run()
        connect(one.pair, one.aaa)
        one.pair.b.ike.granted = None
        one.turn()
        assert one.client.said == []
        one.pair.b.do(one.pair.b.engine.terminate_ike, one.pair.b.ike)
        one.turn()
        assert one.client.said == []

    run(work)


def test_without_a_child_sa_there_is_no_session() -> None:
    async def work() -> None:
        one = Run(Granted())
        one.up()
        assert one.pair.b.ike.established
        assert one.client.said == []
        one.pair.b.do(one.pair.b.engine.terminate_ike, one.pair.b.ike)
        one.turn()
        assert one.client.said == []

    run(work)


def test_users_have_sessions_of_their_own() -> None:
    async def work() -> None:
        one = Run(Granted(), pools=("p",), own=[pool()])
        one.up()
        guest(one.pair, one.aaa, "dave")
        one.turn()
        assert [said[1] for said in one.client.said] == [b"carol", b"dave"]
        assert len({said[44] for said in one.client.said}) == 2

    run(work)


@pytest.mark.parametrize(
    ("granted", "sent", "told"),
    [
        (b"", b"j\xf6rg", b"j\xf6rg"),
        (b"", "jörg".encode(), "jörg".encode()),
        (b"", b"a=b", b"a=b"),
        (b"", b"@example.org", b"@example.org"),
        (b"", b"192.0.2.77", b"192.0.2.77"),
        (b"dave@\xe4", b"carol", b"dave@\xe4"),
    ],
)
def test_the_name_is_that_which_the_server_knows(granted: bytes, sent: bytes, told: bytes) -> None:
    """As in Access-Request, unless it has said another one (RFC 2865 section 5.1)."""

    async def work() -> None:
        one = Run(Granted(granted, (NINE,)))
        mine = one.pair.a.connections["c"]
        user = Identity(IdType.KEY_ID, sent)
        one.pair.a.load(replace(mine, local=replace(mine.local, eap_id=user)), eap=(EapSecret(PASSWORD),))
        one.up()
        assert {identity for identity, _ in one.aaa.asked} == {sent}
        assert one.client.said[0][1] == told

    run(work)


def pool() -> Any:
    return PoolConfig("p", NINE, NINE + 5)


def test_records_in_between() -> None:
    async def work() -> None:
        one = Run(interval=0.05)
        one.up()
        (child,) = one.pair.b.children
        await asyncio.sleep(0.2)
        # none is sent before the one before it is answered, and what waits is the latest
        assert one.client.kinds == [START]
        one.meters.count(3)
        await asyncio.sleep(0.06)
        one.client.answer()
        assert one.client.kinds == [START, INTERIM]
        assert one.client.said[1][47] == b"\0\0\0\x03"
        assert child.uid in one.meters.looked
        one.pair.b.do(one.pair.b.engine.terminate_ike, one.pair.b.ike)
        one.turn()
        one.client.answer()
        assert one.client.kinds == [START, INTERIM, STOP]
        one.client.answer()
        await asyncio.sleep(0.1)
        assert not one.client.waiting
        assert len(one.client.said) == 3

    run(work)


@pytest.mark.parametrize(("asked", "expected"), [(5, 60), (600, 600), (None, 9), (0, 9)])
def test_the_server_says_how_often(asked: int | None, expected: int) -> None:
    async def work() -> None:
        one = Run(Granted(framed=(NINE,), interim_interval=asked), interval=9)
        one.up()
        (session,) = one.accounting._sessions.values()
        assert session.timer is not None
        assert session.timer.when() - asyncio.get_running_loop().time() == pytest.approx(expected, abs=1)

    run(work)


def test_a_last_record_that_nobody_takes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting_module, "AGAIN_S", 0.02)

    async def work() -> None:
        one = Run()
        one.up()
        one.client.answer(False)
        assert one.client.kinds == [START], "the next record says all that this one has"
        one.pair.b.do(one.pair.b.engine.terminate_ike, one.pair.b.ike)
        one.turn()
        for tries in range(1, accounting_module.TRIES + 1):
            assert one.client.kinds == [START] + [STOP] * tries
            one.client.answer(False)
            await asyncio.sleep(0.05)
        assert one.client.kinds == [START] + [STOP] * accounting_module.TRIES
        assert len({tuple(said.items()) for said in one.client.said[1:]}) == 1

    run(work)


def test_the_end_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting_module, "STOP_S", 0.2)

    async def work() -> None:
        one = Run()
        one.up()
        one.client.answer()
        one.accounting.stopping = True
        one.pair.b.do(one.pair.b.engine.stop)
        one.turn()
        assert one.client.said[-1][49] == b"\0\0\0\x07"
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, one.client.answer)
        begun = loop.time()
        await one.accounting.drain()
        assert loop.time() - begun < 0.15
        await one.accounting.drain()

        deaf = Run()
        deaf.up()
        begun = loop.time()
        await deaf.accounting.drain()
        assert 0.15 < loop.time() - begun < 2

    run(work)


def two_that_end(one: Run) -> None:
    """Two users come, of which the servers hear, and both leave."""
    one.up()
    guest(one.pair, one.aaa, "dave")
    one.turn()
    for _ in range(2):
        one.client.answer()
    for sa in list(one.pair.b.ikes):
        one.pair.b.do(one.pair.b.engine.terminate_ike, sa)
    one.turn()
    assert one.client.kinds == [START, START, STOP, STOP]


def test_no_more_records_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers may be away for days. What has waited makes room for others."""
    monkeypatch.setattr(accounting_module, "AGAIN_S", 0.02)
    monkeypatch.setattr(accounting_module, "WAITING_MAX", 1)

    async def work() -> None:
        one = Run(Granted(), pools=("p",), own=[pool()])
        two_that_end(one)
        for _ in range(2):
            one.client.answer(False)
        for _ in range(3):
            await asyncio.sleep(0.06)
            (said,) = one.client.said[4:]
            assert said[1] == b"carol"
            del one.client.said[4:]
            one.client.answer(False)

    run(work)


def test_the_end_waits_for_all_records_and_for_none_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting_module, "AGAIN_S", 0.02)

    async def work() -> None:
        one = Run(Granted(), pools=("p",), own=[pool()])
        two_that_end(one)
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, one.client.answer)
        loop.call_later(0.1, one.client.answer)
        begun = loop.time()
        await one.accounting.drain()
        assert 0.09 < loop.time() - begun < 2

        other = Run(Granted(), pools=("p",), own=[pool()])
        two_that_end(other)
        other.client.answer(False)
        other.accounting.stopping = True
        await asyncio.sleep(0.06)
        assert other.client.kinds == [START, START, STOP, STOP]

    run(work)
