"""IKEv2 between the engine and a backend that only remembers what it was asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec.backend.base import Acquire, Datagram
from ipsec.config import load_text
from ipsec.crypto.identity import parse_pattern
from ipsec.daemon import closing, paths
from ipsec.daemon import ike as ike_module
from ipsec.daemon.children import Children
from ipsec.daemon.ike import IkeControl
from ipsec.errors import BackendError, PolicyError, SaError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Policy, SaParams
from ipsec.ike.delete import Liveness
from ipsec.ike.events import Initiate, InstallChild, RemoveChild
from ipsec.vici.actions import _Attempt
from ipsec.wire.selector import TrafficSelector

LOOP = ip_address("127.0.0.1")


class FakeBackend:
    """What the daemon asks for, and where its datagrams go."""

    def try_add_address(self, address: object) -> bool:
        return False

    def __init__(self) -> None:
        self.ports = {4: 4500}
        self.ike_ports = {4: 500}
        self.sas: dict[int, SaParams] = {}
        self.policies: dict[int, Policy] = {}
        self.sent: list[tuple[bytes, int, int]] = []
        self.deliver: Callable[[Datagram], None] | None = None
        self.rearmed: list[int] = []
        self.syncs = 0
        self.sent_before_routes: list[int] = []
        self.at_once = False
        self.fail_sync = False
        self._number = 0x1000
        self.spis: set[int] = set()
        self.awaited: list[set[str]] = []
        "what was said to be awaited, each time"
        self.handler: Callable[[Datagram], None] | None = None
        self.heard_by = -1
        "connections that were known when IKE was first heard"
        self.left = 1
        "networks that a predecessor closed, if something is awaited"

    def _next(self) -> int:
        self._number += 1
        return self._number

    def on_datagram(self, handler: Callable[[Datagram], None]) -> None:
        self.handler = handler
        self.heard_by = len(handler.__self__.engine.table.by_name)  # type: ignore[attr-defined]

    def get_spi(self) -> int:
        self.spis.add(self._next())
        return self._number

    def free_spi(self, spi: int) -> None:
        self.spis.discard(spi)

    def add_sa(self, params: SaParams) -> int:
        self.sas[self._next()] = params
        return self._number

    def del_sa(self, sa: int) -> None:
        del self.sas[sa]

    def query_sa(self, sa: int) -> Any:
        return SaStats(0, 0, None, 0, {}, LOOP, None)

    def add_policy(self, policy: Policy) -> int:
        self.policies[self._next()] = policy
        return self._number

    def del_policy(self, policy: int) -> None:
        del self.policies[policy]

    def begun(self, awaited: Collection[TrafficSelector | None] = ()) -> int:
        self.awaited.append({str(one or "host") for one in awaited})
        return self.left if awaited else 0

    def rearm(self, policy: int) -> None:
        self.rearmed.append(policy)

    def try_sync_routes(self) -> bool:
        self.sent_before_routes.append(len(self.sent))
        return self.at_once

    async def sync_routes(self) -> None:
        self.syncs += 1
        await asyncio.sleep(0.01)
        if self.fail_sync:
            raise BackendError("no routes today")

    def send_datagram(
        self, data: bytes, local: Any, local_port: int, remote: Any, remote_port: int, *, dscp: int = 0
    ) -> None:
        self.sent.append((data, local_port, remote_port))
        if self.deliver is not None:
            found = Datagram(data, LOOP, local_port, LOOP, remote_port)
            asyncio.get_running_loop().call_soon(self.deliver, found)

    def send_keepalive(self, *args: Any) -> None:
        pass


def text(ours: str, theirs: str, child: str, *, secret: str = "for these two alone", more: str = "") -> str:
    return f"""
    ipsecd {{ backend = memory
        retransmit_timeout = 0.1
        retransmit_tries = 1
        retransmit_base = 1
        {more} }}
    connections {{ c {{ local_addrs = 127.0.0.1
        remote_addrs = 127.0.0.1
        proposals = aes128gcm16-prfsha256-x25519
        local {{ auth = psk
            id = {ours} }}
        remote {{ auth = psk
            id = {theirs} }}
        children {{ n {{ esp_proposals = aes128gcm16
            {child} }} }} }} }}
    secrets {{ ike-1 {{ secret = {secret} }} }}
    """


class Pair:
    """Two controls whose backends are each other's network."""

    def __init__(self, a: str, b: str) -> None:
        self.backends = FakeBackend(), FakeBackend()
        self.ends = [
            IkeControl(load_text(conf), backend, fwmark=0)  # type: ignore[arg-type]
            for conf, backend in zip((a, b), self.backends, strict=True)
        ]
        self.backends[0].deliver = self.ends[1].on_datagram
        self.backends[1].deliver = self.ends[0].on_datagram

    async def start(self) -> None:
        for end in reversed(self.ends):
            await end.start()

    async def stop(self) -> None:
        for end in self.ends:
            await end.stop()


A = text("a", "b", "local_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16\nstart_action = start")
B = text("b", "a", "local_ts = 10.2.0.0/16\nremote_ts = 10.1.0.0/16")


async def until(what: Callable[[], object]) -> None:
    for _ in range(500):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_up_and_down_again() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        a, b = pair.backends
        await until(lambda: len(a.sas) == len(b.sas) == 2)
        assert {sa.spi for sa in a.sas.values()} == {sa.spi for sa in b.sas.values()}
        # the guard that fail_closed puts in place, and the CHILD_SA's
        assert len(a.policies) == 2
        assert len(b.policies) == 1
        await pair.ends[0].stop()
        await until(lambda: not b.sas)
        assert not a.sas
        assert not b.policies
        await pair.ends[1].stop()

    run(main())


@pytest.mark.parametrize("icmp", ["yes", "no"])
def test_icmp_is_in_all_that_is_put_in_place(icmp: str) -> None:
    """The guard's policy, which comes first, as well as the CHILD_SA's."""

    async def main() -> None:
        pair = Pair(A.replace("start_action", f"icmp = {icmp}\nstart_action"), B)
        await pair.start()
        a, b = pair.backends
        await until(lambda: len(a.sas) == len(b.sas) == 2)
        assert [policy.icmp for policy in a.policies.values()] == [icmp == "yes"] * 2
        assert [sa.icmp for sa in a.sas.values()] == [icmp == "yes"] * 2
        # the peer's own matter
        assert not any(one.icmp for one in (*b.policies.values(), *b.sas.values()))
        await pair.stop()

    run(main())


def test_a_child_for_a_peer_that_the_connection_does_not_name() -> None:
    """Who asks for it by vici gets it in the IKE_SA that a peer has begun, as with charon; nobody else has a way."""

    async def main() -> None:
        pair = Pair(A, B.replace("remote_addrs = 127.0.0.1", "remote_addrs = %any"))
        b = pair.ends[1]
        (connection,) = b.loaded.config().connections
        assert await b.connect(connection, connection.children[0]) is None
        await pair.start()
        await until(lambda: len(pair.backends[0].sas) == len(pair.backends[1].sas) == 2)
        (sa,) = b.engine.sas.values()
        child = connection.children[0]
        assert await b.connect(connection, child) is None
        event = Initiate("c", child.name, path=b.engine.standing(connection))
        assert await b.connect(connection, child, event) is sa
        await pair.stop()

    run(main())


@pytest.mark.parametrize("refused", [False, True])
def test_the_peer_hears_of_a_child_when_there_are_routes(refused: bool) -> None:
    async def main() -> None:
        pair = Pair(A, B)
        a, b = pair.backends
        b.fail_sync = refused
        await pair.start()
        await until(lambda: len(b.sas) == 2)
        assert len(b.sent) == 1, "only the answer to IKE_SA_INIT"
        await until(lambda: len(a.sas) == 2)
        assert b.syncs == 1
        assert len(b.sent) == 2
        await pair.stop()

    run(main())


def test_the_peer_hears_at_once_when_routes_take_no_time() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        a, b = pair.backends
        b.at_once = True
        await pair.start()
        await until(lambda: len(a.sas) == 2)
        assert b.syncs == 0
        assert b.sent_before_routes == [1], "only the answer to IKE_SA_INIT"
        assert len(b.sent) == 2
        await pair.stop()

    run(main())


def test_a_trap_asks_once_and_asks_again_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        wrong = B.replace("for these two alone", "another one altogether")
        pair = Pair(A.replace("start_action = start", "start_action = trap"), wrong)
        await pair.start()
        a = pair.backends[0]
        (policy,) = a.policies
        pair.ends[0].on_event(Acquire(policy, a.policies[policy].reqid))
        await until(lambda: a.rearmed)
        assert set(a.rearmed) == {policy}
        assert not a.sas
        assert not a.spis, "an SPI was lost"
        await pair.stop()

    run(main())


def test_the_spi_of_an_sa_that_cannot_be_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the CHILD_SA is closed before the engine has heard of it, and says then that there is an inbound SA:
    packets with that SPI would be kept for ever."""

    async def main() -> None:
        pair = Pair(A, B)
        events: list[InstallChild] = []
        install = pair.ends[0].children.install
        monkeypatch.setattr(pair.ends[0].children, "install", lambda event: events.append(event) or install(event))
        await pair.start()
        await until(lambda: events)
        (event,) = events

        def refuse(params: SaParams) -> int:
            raise SaError("not today")

        backend = FakeBackend()
        backend.spis.add(event.child.spi_in)
        monkeypatch.setattr(backend, "add_sa", refuse)
        children = Children(backend, path_mtu=1500, fraction=lambda: 0.0)  # type: ignore[arg-type]
        assert children.install(event) == "not today"
        children.remove(RemoveChild(event.child, True, True))
        assert not backend.spis
        await pair.stop()

    run(main())


def test_retries_come_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def main() -> None:
        monkeypatch.setattr(ike_module, "RETRY_S", 0.02)
        monkeypatch.setattr(ike_module, "RETRY_MAX_S", 0.1)
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        retry = pair.ends[0]._connect_later

        async def later(connection: Any, child: Any, wait: float, changes: int | None) -> None:
            waits.append(wait)
            await retry(connection, child, wait, changes)

        monkeypatch.setattr(pair.ends[0], "_connect_later", later)
        await pair.start()
        await until(lambda: len(waits) >= 5)
        await pair.stop()

    run(main())
    assert waits[:5] == [0.02, 0.04, 0.08, 0.1, 0.1]


def test_who_tries_by_hand_puts_off_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ipsec")

    async def main() -> None:
        monkeypatch.setattr(ike_module, "RETRY_S", 30)
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        await pair.start()
        end = pair.ends[0]
        await until(lambda: end.retries.due)
        before = dict(end.retries.due)
        (connection,) = end.engine.table.by_name.values()
        for _ in range(3):
            await end.connect(connection, connection.children[0])
            await until(lambda: not end.engine.sas)
        assert end.retries.due == before
        assert [line for line in caplog.messages if "trying n again" in line] == ["c: trying n again in 30 s"]
        await pair.stop()

    run(main())


def test_who_had_no_way_begins_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an outage of minutes the next try may be minutes away. Of changes that bring no way nothing is said."""

    async def main() -> None:
        monkeypatch.setattr(paths, "AGAIN_S", 0.02)
        pair = Pair(A, B)
        end = pair.ends[0]
        way, leads = end._paths.to, []

        async def to(connection: Any) -> Any:
            return await way(connection) if leads else None

        monkeypatch.setattr(end._paths, "to", to)
        await pair.start()
        await until(lambda: end.retries.due)
        for _ in range(3):
            end._paths.host_changed()
            await asyncio.sleep(0.05)
        assert [line for line in caplog.messages if "no way" in line] == ["c: no way to 127.0.0.1: there is no route"]
        leads.append(True)
        end._paths.host_changed()
        await until(lambda: pair.backends[0].sas)
        await pair.stop()

    run(main())


def test_what_is_up_is_not_to_be_tried_again() -> None:
    """Else what was put off for minutes would hold back the first try after its end."""

    async def main() -> None:
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        await pair.start()
        end = pair.ends[0]
        await until(lambda: end.retries.due)
        await pair.ends[1].reload(load_text(B))
        (connection,) = end.engine.table.by_name.values()
        await end.connect(connection, connection.children[0])
        await until(lambda: pair.backends[0].sas)
        assert not end.retries.due
        assert not end.retries._waits
        await pair.stop()

    run(main())


def test_what_a_reload_changes_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited to be tried again was another child, and takes nothing from this one."""

    async def main() -> None:
        monkeypatch.setattr(ike_module, "RETRY_S", 0.1)
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        await pair.start()
        end = pair.ends[0]
        await until(lambda: end.retries._waits.get(("c", "n")) == 0.4)
        await end.reload(load_text(A.replace("10.2.0.0/16", "10.2.0.0/17")))
        for wait in (0.1, 0.2, 0.4):
            await until(lambda wait=wait: end.retries._waits.get(("c", "n")) == wait)
        await pair.stop()

    run(main())


def test_who_is_taken_out_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(ike_module, "RETRY_S", 0.2)
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        await pair.start()
        end = pair.ends[0]
        await until(lambda: end.retries.due)
        connected: list[object] = []

        async def connect(*args: object) -> None:
            connected.append(args)

        monkeypatch.setattr(end, "connect", connect)
        end.retries.due.clear()
        await asyncio.sleep(0.4)
        assert not connected
        await pair.stop()

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_a_child_of_what_is_being_closed_is_not_up(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload closes it, the peer does not answer, and nothing leads there either: what is tried again must not stop
    at that."""

    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        end = pair.ends[0]
        await until(lambda: len(pair.backends[0].sas) == 2)
        (sa,) = end.established()
        connection, child = sa.connection, sa.connection.children[0]
        control = cast(Any, SimpleNamespace(engine=end.engine, observe=lambda _: lambda: None))
        attempts = [_Attempt(control, connection, one) for one in (child, None)]
        assert [one._is_up() for one in attempts] == [True, True]
        now = asyncio.get_running_loop().time()
        if waits:
            sa.ask(Liveness(), now)
        end.engine.terminate_all([sa], now)
        assert sa.children_up()
        assert [one._is_up() for one in attempts] == [False, False]
        connected: list[object] = []

        async def connect(*args: object) -> None:
            connected.append(args)

        monkeypatch.setattr(end, "connect", connect)
        end.retries.due[connection.name, child.name] = 0.0
        await end._connect_later(connection, (connection.name, child.name), 0.0, None)
        assert connected
        await pair.stop()

    run(main())


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_closed_while_its_peer_is_looked_up_is_not_authenticated_anew(gone: bool) -> None:
    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        end = pair.ends[0]
        await until(lambda: len(pair.backends[0].sas) == 2)
        (sa,) = end.established()
        event = Initiate(sa.name, None, replaces=sa.uid)
        running = asyncio.ensure_future(end.connect(sa.connection, None, event))
        now = asyncio.get_running_loop().time()
        sa.destroy("closed", now) if gone else end.engine.terminate_ike(sa, now)
        assert await running is None
        assert not end.engine.initiating
        await pair.stop()

    run(main())


def test_a_child_that_is_up_is_so_with_another_certificate_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody looks at the IKE_SAs of all the others."""

    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        end = pair.ends[0]
        await until(lambda: len(pair.backends[0].sas) == 2)
        (sa,) = end.established()
        connection = sa.connection
        renewed = replace(connection, local=replace(connection.local, certs=(cast(Any, "another"),)))
        end.engine.load((renewed,), end.loaded.config().credentials, ())
        connected: list[object] = []

        async def connect(*args: object) -> None:
            connected.append(args)

        monkeypatch.setattr(end, "connect", connect)
        key = renewed.name, renewed.children[0].name
        end.retries.due[key] = 0.0
        await end._connect_later(renewed, key, 0.0, None)
        assert not connected, "it is up"
        other = replace(renewed, remote=replace(renewed.remote, id=parse_pattern("somebody else")))
        end.engine.load((other,), end.loaded.config().credentials, ())
        end.retries.due[key] = 0.0
        await end._connect_later(other, key, 0.0, None)
        assert connected
        # what failed may be older than what is loaded by now: that is to be up
        changed = replace(other.children[0], esp_proposals=other.children[0].esp_proposals[:1], inactivity=7.0)
        end.engine.load((replace(other, children=(changed,)),), end.loaded.config().credentials, ())
        end.retries.due[key] = 0.0
        await end._connect_later(other, key, 0.0, None)
        assert [args[1] for args in cast(Any, connected)] == [other.children[0], changed]
        await pair.stop()

    run(main())


def test_reload_puts_everything_as_the_new_file_says() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        a, b = pair.backends
        await until(lambda: len(a.sas) == len(b.sas) == 2)
        before = set(a.sas)
        await pair.ends[0].reload(load_text(A))
        assert set(a.sas) == before
        await pair.ends[0].reload(load_text(A.replace("start_action = start", "start_action = none")))
        await until(lambda: not a.sas)
        assert not a.policies
        await until(lambda: not b.policies)
        await pair.ends[0].reload(load_text(A))
        await until(lambda: len(a.sas) == 2)
        await pair.stop()

    run(main())


def test_reload_reaches_what_was_redirected() -> None:
    """RFC 5685: elsewhere than remote_addrs says, the connection is the same."""

    async def main() -> None:
        conf = A.replace("remote_addrs = 127.0.0.1", "remote_addrs = 127.0.0.1, 127.0.0.2")
        pair = Pair(conf, B)
        await pair.start()
        one, other = (end.engine for end in pair.ends)
        await until(lambda: len(pair.backends[1].sas) == 2)
        (sa,) = other.sas.values()
        (before,) = one.sas
        other.redirect_peer(sa, LOOP, asyncio.get_running_loop().time())
        pair.ends[1].turn()
        await until(lambda: [sa.established for sa in one.sas.values()] == [True] and before not in one.sas)
        await pair.ends[0].reload(load_text(conf.replace("start_action = start", "start_action = none")))
        await until(lambda: not one.sas)
        await pair.stop()

    run(main())


DYNAMIC = A.replace("local_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16\n", "")


@pytest.mark.parametrize("patience", [ike_module.PATIENCE_S, 0.01])
def test_what_waits_stays_closed_during_a_reload(patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to find the peer whose address it is for."""
    monkeypatch.setattr(ike_module, "PATIENCE_S", patience)

    async def main() -> None:
        conf = DYNAMIC.replace("start_action = start", "start_action = trap")
        pair = Pair(conf, B)
        await pair.start()
        end, a = pair.ends[0], pair.backends[0]
        (old,) = a.policies
        known = asyncio.Event()
        find = end._paths.to

        async def path(connection: Any) -> Any:
            await known.wait()
            return await find(connection)

        monkeypatch.setattr(end._paths, "to", path)
        changed = conf.replace("proposals =", "dpd_delay = 7\nproposals =", 1)
        reload = asyncio.create_task(end.reload(load_text(changed)))
        await asyncio.sleep(0.05)
        assert set(a.policies) == {old}
        assert end.guards.wanted(old) is None, "its connection is gone"
        assert reload.done() == (patience < 0.05)
        known.set()
        await reload
        await until(lambda: len(a.policies) == 1 and set(a.policies) != {old})
        (new,) = a.policies
        assert new != old
        await end.reload(load_text(conf.replace("start_action = trap", "start_action = none")))
        assert not a.policies
        await pair.stop()

    run(main())


@pytest.mark.parametrize("where", ["_give", "turn", "_release", "guards.remove_all"])
def test_after_a_reload_that_fails_what_nobody_waits_for_opens(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        end = pair.ends[0]

        def fail(*args: object, **more: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            owner, name = (end.guards, "remove_all") if where.startswith("guards.") else (end, where)
            patch.setattr(owner, name, fail)
            with pytest.raises(RuntimeError, match="a bug"):
                await end.reload(load_text(A.replace("start_action = start", "start_action = none")))
        opened: list[bool] = []
        monkeypatch.setattr(end.guards, "_closed", 1)
        monkeypatch.setattr(pair.backends[0], "begun", lambda awaited: opened.append(True) or 0)
        end.guards._open()
        assert opened
        await pair.stop()

    run(main())


THREE = "".join(
    f"""n{number} {{ esp_proposals = aes128gcm16
        local_ts = 10.1.{number}.0/24
        remote_ts = 10.2.{number}.0/24
        start_action = trap }}
    """
    for number in range(3)
)


ORDERED = """
    never { mode = drop
        local_ts = 0.0.0.0/0
        remote_ts = 0.0.0.0/0
        start_action = trap }
    wide { esp_proposals = aes128gcm16
        local_ts = 10.0.0.0/8
        remote_ts = 10.0.0.0/8
        start_action = trap }
    dns { mode = pass
        local_ts = 0.0.0.0/0
        remote_ts = 10.2.0.53/32[udp/53]
        start_action = trap }
    last { esp_proposals = aes128gcm16
        local_ts = 10.1.7.0/24
        remote_ts = 10.2.7.0/24
        priority = 999999
        start_action = trap }
"""


def test_policies_that_say_more_come_first_unless_they_have_a_priority() -> None:
    """Of guards and shunts, in whatever order they are, as of CHILD_SAs: a wide one hides no narrow one."""

    async def main() -> None:
        pair = Pair(A.replace("children { n {", f"children {{ {ORDERED} n {{"), B)
        await pair.start()
        a = pair.backends[0]
        await until(lambda: len(a.sas) == 2)
        found = sorted(a.policies.values(), key=lambda policy: policy.priority)
        assert [(policy.action.name, str(policy.selectors[0].remote)) for policy in found] == [
            ("BYPASS", "10.2.0.53/32[udp/domain]"),
            ("PROTECT", "10.2.0.0/16"),
            ("PROTECT", "10.2.0.0/16"),
            ("PROTECT", "10.0.0.0/8"),
            ("DISCARD", "0.0.0.0/0"),
            ("PROTECT", "10.2.7.0/24"),
        ]
        await pair.stop()

    run(main())


@pytest.mark.parametrize("refusal", [PolicyError("no room"), RuntimeError("a bug")])
def test_a_child_that_cannot_begin_keeps_no_other_from_it(refusal: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """In a reload: its neighbours are trapped, what it kept in stays in, and the next reload tries again."""

    def networks(backend: FakeBackend) -> list[str]:
        return sorted(str(policy.selectors[0].local) for policy in backend.policies.values())

    async def main() -> None:
        conf = A.replace("children { n {", f"children {{ {THREE} n {{").replace("start_action = start", "")
        pair = Pair(conf, B)
        await pair.start()
        end, a = pair.ends[0], pair.backends[0]
        every = networks(a)
        assert len(every) == 3
        put = a.add_policy

        def add_policy(policy: Policy) -> int:
            if "10.1.1.0" in str(policy.selectors[0].local):
                raise refusal
            return put(policy)

        a.add_policy = add_policy  # type: ignore[method-assign]
        changed = conf.replace("proposals =", "dpd_delay = 7\nproposals =", 1)
        await end.reload(load_text(changed))
        assert "c: child n1 cannot begin" in caplog.text
        assert [end.guards.has("c", f"n{number}") for number in range(3)] == [True, False, True]
        assert set(networks(a)) == set(every), "what n1 kept in would leave"
        before = len(a.policies)
        a.add_policy = put  # type: ignore[method-assign]
        await end.reload(load_text(changed))
        assert end.guards.has("c", "n1")
        assert networks(a) == every
        assert before > len(a.policies)
        await end.reload(load_text(changed.replace("start_action = trap", "start_action = none")))
        assert not a.policies
        await pair.stop()

    run(main())


def test_a_stranger_springs_no_trap() -> None:
    """Half an IKE_SA of somebody who has not shown who it is ends; no packet of ours has waited for that."""

    async def main() -> None:
        conf = A.replace("start_action = start", "start_action = trap")
        pair = Pair(conf.replace("retransmit_tries", "half_open_timeout = 1\nretransmit_tries", 1), B)
        await pair.start()
        a = pair.backends[0]
        a.deliver = None
        end = pair.ends[1]
        connection = end.engine.table.by_name["c"]
        await end.connect(connection, connection.children[0])
        await until(lambda: pair.ends[0].engine.sas)
        await until(lambda: not pair.ends[0].engine.sas)
        assert not a.rearmed
        await pair.stop()

    run(main())


def test_names_that_are_no_more_are_forgotten() -> None:
    """Somebody loads ever other names."""

    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        end = pair.ends[0]
        await until(lambda: len(pair.backends[0].sas) == 2)
        counters = end.engine.counters
        counters.add("retransmit", "somebody")
        counters.reset("somebody")
        counters.add("retransmit", "somebody")
        in_all = dict(counters.all)
        end.retries._waits["somebody", "n"] = 10.0
        await end.reload(load_text(A))
        assert set(counters.named) == {"c"}
        assert counters.total("retransmit", "somebody") == 0
        assert counters.all == in_all
        assert not end.retries._waits
        await pair.stop()

    run(main())


def test_stop_does_not_wait_for_a_dead_peer() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        await pair.start()
        await until(lambda: len(pair.backends[0].sas) == 2)
        pair.backends[0].deliver = None
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await pair.ends[0].stop()
        assert loop.time() - begin <= closing.STOP_S + 20
        assert not pair.backends[0].sas
        await pair.ends[1].stop()

    run(main())


def test_nobody_is_heard_before_there_are_connections() -> None:
    """A peer that is told that none is for it may give up: charon does."""

    async def main() -> None:
        pair = Pair(A, B)
        assert pair.backends[0].handler is None
        await pair.start()
        assert [backend.heard_by for backend in pair.backends] == [1, 1]
        await pair.stop()

    run(main())


def test_a_stop_is_not_stopped_by_traffic(caplog: pytest.LogCaptureFixture) -> None:
    """A packet that meets a trap while everything is closed makes no new tunnel."""

    async def main() -> None:
        pair = Pair(A.replace("start_action = start", "start_action = trap|start"), B)
        await pair.start()
        (a, b), (one, _) = pair.backends, pair.ends
        await until(lambda: len(a.sas) == 2)
        policy = min(a.policies)  # the trap came first
        caplog.set_level("INFO")
        stop = asyncio.ensure_future(one.stop())
        await asyncio.sleep(0)
        one.on_event(Acquire(policy, a.policies[policy].reqid))
        await stop
        await asyncio.sleep(0.3)
        assert not b.sas
        assert not one.engine.sas
        assert "traffic for" not in caplog.text
        await pair.ends[1].stop()

    run(main())


@pytest.mark.parametrize("vips", ["0.0.0.0", "0.0.0.0, ::"])
def test_a_guard_covers_any_virtual_address(vips: str) -> None:
    async def main() -> None:
        conf = A.replace("local_ts = 10.1.0.0/16", "").replace("proposals =", f"vips = {vips}\nproposals =", 1)
        conf = conf.replace("remote_ts = 10.2.0.0/16", "remote_ts = 10.2.0.0/16, fd02::/16")
        pair = Pair(conf, B)
        pair.backends[0].deliver = None
        await pair.start()
        locals_ = {str(pair_.local) for p in pair.backends[0].policies.values() for pair_ in p.selectors}
        assert locals_ == ({"0.0.0.0/0", "::/0"} if "::" in vips else {"0.0.0.0/0"})
        await pair.stop()

    run(main())


def test_a_device_that_was_handed_down_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its addresses are not the host's, and what changes about it is no news."""
    seen: list[str] = []

    def watch(changed: object, *, ignore_protocol: int, ignore_device: str) -> Any:
        seen.append(ignore_device)
        raise OSError(1, "enough is known")

    monkeypatch.setattr(ike_module, "HostWatch", watch)
    own = ike_module.OwnAddresses

    def addresses(*args: Any, device: str, **more: Any) -> Any:
        seen.append(device)
        return own(*args, device=device, **more)

    monkeypatch.setattr(ike_module, "OwnAddresses", addresses)

    async def main() -> None:
        config = load_text(B.replace("backend = memory", "device = ipsec7"))
        for device in ("tun3", ""):
            end = IkeControl(config, FakeBackend(), fwmark=0, device=device)  # type: ignore[arg-type]
            await end.start()
            await end.stop()

    run(main())
    assert seen == ["tun3", "tun3", "ipsec7", "ipsec7"]
