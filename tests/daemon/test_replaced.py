"""A connection that is replaced by vici while IKE_SAs of the old one go on."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ipsec.backend.base import Datagram
from ipsec.daemon.health import Health
from ipsec.daemon.vici import ViciControl
from ipsec.esp.sa import Policy
from ipsec.ike.config import Connection
from ipsec.ike.create_child import CreateChild
from ipsec.ike.events import ChildNotMade, ChildUp, IkeUp
from ipsec.vici import show
from ipsec.vici.actions import _Attempt
from ipsec.wire.iana import ExchangeType
from tests.daemon.test_health import observe
from tests.daemon.test_ike import A, B, Pair, run, until

CHILD = {"esp_proposals": "aes128gcm16", "local_ts": "10.1.0.0/16", "remote_ts": "10.2.0.0/16"}
NOBODY = cast(Any, None)
#: the first end's file: no connection
NOTHING = "ipsecd { backend = memory }\nsecrets { ike-1 { secret = for these two alone } }"


def message(theirs: str, start_action: str, **more: str) -> dict[str, Any]:
    """A connection as ``load-conn`` has it."""

    def octets(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: octets(value) if isinstance(value, dict) else value.encode() for key, value in tree.items()}

    return octets(
        {
            "local_addrs": "127.0.0.1",
            "remote_addrs": "127.0.0.1",
            "proposals": "aes128gcm16-prfsha256-x25519",
            "local": {"auth": "psk", "id": "a"},
            "remote": {"auth": "psk", "id": theirs},
            "children": {"n": CHILD | {"start_action": start_action}},
            **more,
        }
    )


class Lab:
    """Two ends, the first of which is told by vici."""

    def __init__(self) -> None:
        self.pair = Pair(NOTHING, B)
        self.end = self.pair.ends[0]
        self.vici = ViciControl(self.end, cast(Any, self.pair.backends[0]), NOBODY, NOBODY, NOBODY)
        self.health: Health = observe(self.pair)

    def connection(self) -> Connection:
        return self.vici.engine.table.by_name["c"]


async def old_and_new(lab: Lab, start_action: str, child: bool) -> None:
    """An IKE_SA with b that nobody's start action began, and then the connection is one with c."""
    await lab.pair.start()
    await lab.vici.load_connection("c", message("b", "none"))
    connection = lab.connection()
    await lab.vici.connect(connection, connection.children[0] if child else None)
    await until(lambda: len(lab.end.established()) == 1 and len(lab.pair.backends[0].sas) == 2 * child)
    await lab.vici.load_connection("c", message("c", start_action))


def peers(lab: Lab) -> list[str]:
    return sorted(str(sa.connection.remote.id) for sa in lab.end.engine.sas.values())


@pytest.mark.parametrize("how", ["start", "trap", "initiate"])
@pytest.mark.parametrize("child", [False, True])
def test_the_old_ike_sa_is_not_the_new_connection_s(how: str, child: bool) -> None:
    async def main() -> None:
        lab = Lab()
        await old_and_new(lab, how if how != "initiate" else "none", child)
        connection = lab.connection()
        if how == "trap":
            (trap,) = lab.end.guards._by_policy
            found = lab.end.guards.wanted(trap)
            assert found is not None
            await lab.end.connect(*found)
        if how == "initiate":
            attempt = _Attempt(cast(Any, lab.vici), connection, connection.children[0])
            assert not attempt._is_up(), "with somebody else"
            attempt.close()
            await lab.vici.connect(connection, connection.children[0])
        await until(lambda: peers(lab) == ["b", "c"])
        assert not any(sa.established for sa in lab.end.engine.sas.values() if str(sa.connection.remote.id) == "c")
        if how == "start":
            assert lab.health.ready().problems == ("c/n is not up",)
        await lab.pair.stop()

    run(main())


@pytest.mark.parametrize("what", ["child", "ike", "not made"])
def test_what_comes_up_with_the_old_peer_is_no_success(what: str) -> None:
    async def main() -> None:
        lab = Lab()
        await old_and_new(lab, "none", child=True)
        (old,) = lab.end.established()
        connection = lab.connection()
        assert show.ike_sa(old, 0)["replaced"] == "yes"
        assert show.ike_sa(lab.pair.ends[1].established()[0], 0)["replaced"] is None
        child = connection.children[0]
        deliver, lab.pair.backends[0].deliver = lab.pair.backends[0].deliver, lambda _: None
        attempt = _Attempt(cast(Any, lab.vici), connection, child if what != "ike" else None)
        running = asyncio.ensure_future(attempt.run())
        await until(lambda: attempt._sa is not None)
        (theirs,) = old.children.values()
        events = {"child": ChildUp(theirs, None), "ike": IkeUp(old), "not made": ChildNotMade(old, child, "")}
        attempt._see(events[what])
        assert not attempt._done.done()
        # what was begun for it counts, though the connection is another one by now
        assert attempt._sa is not None
        await lab.vici.load_connection("c", message("d", "none"))
        theirs.ike = attempt._sa
        events |= {"ike": IkeUp(attempt._sa), "not made": ChildNotMade(attempt._sa, child, "")}
        attempt._see(events[what])
        assert await running == (what != "not made")
        theirs.ike = old
        attempt.close()
        lab.pair.backends[0].deliver = deliver
        await lab.pair.stop()

    run(main())


def test_the_child_with_who_is_the_peer_now_has_the_traffic() -> None:
    """Where an older one has the same selectors and goes on."""

    async def main() -> None:
        lab = Lab()
        backend = lab.pair.backends[0]
        await old_and_new(lab, "none", child=True)
        # as far as anybody can tell that is another peer, but it is there
        await lab.vici.load_connection("c", message("b", "none", dpd_delay="7s"))
        connection = lab.connection()
        await lab.vici.connect(connection, connection.children[0])
        await until(lambda: len(backend.sas) == 4)
        (first, second) = backend.policies.values()
        assert first.selectors == second.selectors
        newest = max(lab.end.engine.children.values(), key=lambda one: one.uid)
        # of the same priority the one that was added first counts
        assert backend.policies[min(backend.policies)].reqid == newest.reqid
        # and when it goes, the older one's is there still
        lab.end.engine.terminate_child(newest, asyncio.get_running_loop().time())
        lab.end.turn()
        await until(lambda: len(backend.policies) == 1)
        (left,) = backend.policies.values()
        assert isinstance(left, Policy)
        assert left.reqid != newest.reqid
        await lab.pair.stop()
        assert not backend.policies

    run(main())


def test_of_the_same_peer_the_older_child_has_the_traffic_until_it_goes() -> None:
    """Re-authentication makes both, and who begins it has the new one later than who answers."""

    async def main() -> None:
        pair = Pair(A, B)
        added: list[Policy] = []
        add = pair.backends[1].add_policy

        def remember(policy: Policy) -> int:
            added.append(policy)
            return add(policy)

        pair.backends[1].add_policy = remember  # type: ignore[method-assign]
        await pair.start()
        await until(lambda: len(pair.backends[0].sas) == 2 and len(pair.backends[1].sas) == 2)
        (sa,) = pair.ends[0].established()
        pair.ends[0].engine.reauthenticate(sa, asyncio.get_running_loop().time())
        pair.ends[0].turn()
        await until(lambda: pair.ends[0].established() not in ([sa], []) and len(pair.backends[1].policies) == 1)
        assert len(added) == len({policy.reqid for policy in added}) == 2, "none again, behind the new one"
        await pair.stop()

    run(main())


def test_what_the_peer_may_have_dropped_has_no_traffic() -> None:
    """Our INITIAL_CONTACT meets an IKE_SA that the peer has begun, and that came up first."""

    async def main() -> None:
        here, there = (conf.replace("start_action = start", "") for conf in (A, B))
        pair = Pair(here, there)
        await pair.start()
        backend, other = pair.backends
        deliver, held = backend.deliver, []
        assert deliver is not None

        def hold(datagram: Datagram) -> None:
            (held.append if datagram.data[18] == ExchangeType.IKE_AUTH else deliver)(datagram)

        backend.deliver = hold
        connections = [end.engine.table.by_name["c"] for end in pair.ends]
        await pair.ends[0].connect(connections[0], connections[0].children[0])
        await until(lambda: held)
        # our answers would be held as well
        backend.deliver = deliver
        await pair.ends[1].connect(connections[1], connections[1].children[0])
        await until(lambda: len(backend.sas) == 2 and len(other.sas) == 2)
        (first,) = backend.policies.values()
        assert isinstance(first, Policy)
        deliver(held[0])
        await until(lambda: len(backend.sas) == 4)
        # of the same priority the one that was added first counts
        order = [backend.policies[number].reqid for number in sorted(backend.policies)]
        assert len(order) == 2
        assert order[1] == first.reqid
        await pair.stop()

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_the_old_peer_cannot_pull_the_traffic_back(waits: bool) -> None:
    """By one more CHILD_SA of an IKE_SA that vici leaves up."""

    async def main() -> None:
        lab = Lab()
        backend, engine = lab.pair.backends[0], lab.end.engine
        await old_and_new(lab, "none", child=True)
        (old,) = lab.end.established()
        await lab.vici.load_connection("c", message("b", "trap" if waits else "none", dpd_delay="7s"))
        connection = lab.connection()
        trap = lab.end.guards.reqid("c", "n")
        assert bool(trap) == waits
        if not waits:
            await lab.vici.connect(connection, connection.children[0])
            await until(lambda: len(backend.sas) == 4)
        (new,) = [sa for sa in lab.end.established() if sa is not old] or [None]
        other = lab.pair.ends[1]
        (theirs,) = (sa for sa in other.established() if sa.spi_i == old.spi_i)
        before = len(backend.sas)
        theirs.ask(CreateChild(theirs.connection.children[0]), asyncio.get_running_loop().time())
        other.turn()
        await until(lambda: len(backend.sas) == before + 2)
        newest = max(engine.children.values(), key=lambda one: one.uid)
        assert newest.ike is old
        order = [backend.policies[number].reqid for number in sorted(backend.policies)]
        assert newest.reqid not in (0, trap)
        assert order[-1] == newest.reqid
        if new is not None:
            assert order[0] == next(iter(new.children.values())).reqid
        await lab.pair.stop()

    run(main())


@pytest.mark.parametrize("start_action", ["start", "trap|start", "trap", "none"])
@pytest.mark.parametrize("keep", [True, False])
def test_uninstalling_a_trap_lets_nothing_out_that_is_kept_in(start_action: str, keep: bool) -> None:
    """A child that is to be up is guarded without a trap too (``ipsecd.fail_closed``)."""

    async def main() -> None:
        lab = Lab()
        backend, guards = lab.pair.backends[0], lab.end.guards
        guards._keep = keep
        await lab.pair.start()
        await lab.vici.load_connection("c", message("b", start_action))
        await until(lambda: bool(lab.end.established()) == ("start" in start_action))
        child = lab.connection().children[0]
        before = set(guards._by_policy)
        assert await lab.vici.install(lab.connection(), child)
        assert len(lab.vici.policies()) == 1
        kept = keep and "start" in start_action
        if kept and "trap" not in start_action:
            assert set(backend.rearmed) >= before, "a packet that it dropped before has been forgotten"
        assert await lab.vici.uninstall("c", "n")
        assert lab.vici.policies() == []
        assert not await lab.vici.uninstall("c", "n")
        assert bool(guards._by_policy) == kept
        assert set(guards._by_policy) <= set(backend.policies)
        assert not any(guards.wanted(policy) for policy in backend.policies)
        # and again
        assert await lab.vici.install(lab.connection(), child)
        assert len(lab.vici.policies()) == 1
        await lab.pair.stop()

    run(main())


def test_a_child_that_the_peer_makes_beside_one_for_the_same_has_the_traffic() -> None:
    """OpenIKED 7.2 does that when we have moved, and takes nothing by the first one any more."""

    async def main() -> None:
        lab = Lab()
        backend = lab.pair.backends[0]
        await lab.pair.start()
        await lab.vici.load_connection("c", message("b", "none"))
        connection = lab.connection()
        await lab.vici.connect(connection, connection.children[0])
        await until(lambda: len(backend.sas) == 2)
        peer = lab.pair.ends[1]
        (theirs,) = peer.established()
        theirs.ask(CreateChild(theirs.connection.children[0]), asyncio.get_running_loop().time())
        peer.turn()
        await until(lambda: len(backend.sas) == 4)
        first, newest = sorted(lab.end.engine.children.values(), key=lambda one: one.uid)
        assert first.ike is newest.ike
        assert backend.policies[min(backend.policies)].reqid == newest.reqid
        assert {policy.reqid for policy in backend.policies.values()} == {first.reqid, newest.reqid}
        await lab.pair.stop()
        assert not backend.policies

    run(main())
