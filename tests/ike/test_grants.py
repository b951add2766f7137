"""What an EAP server elsewhere grants to a peer: its name, groups, addresses, and for how long (RFC 2865, RFC 4478)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike.config import DYNAMIC, Connection, PoolConfig, Unique
from ipsec.ike.credentials import EapSecret
from ipsec.ike.eap.relay import EapAnswer, Granted
from ipsec.ike.events import AddressesAssigned, EapAnswerNeeded, Failed, IkeDown, IkeUp, Initiate
from ipsec.ike.failure import Cause
from ipsec.ike.lifetimes import Timer
from tests.ike.test_eap import ANY, PASSWORD, SECRETS, Aaa, client, make, mschapv2, server
from tests.pair import A, B, Pair, connection
from tests.sim.host import SimHost

ANY4, ANY6 = ip_address("0.0.0.0"), ip_address("::")
NINE, TEN = ip_address("10.3.0.9"), ip_address("10.3.0.10")
SIX = ip_address("2001:db8:3::9")
ROADS: dict[str, Any] = {"child": {"local_ts": (DYNAMIC,)}, "vips": (ANY4,)}


def granting(granted: Granted | dict[str, Granted], pair: Pair) -> Aaa:
    """A server that lets everybody in who has the password; by user, if they are not all granted the same."""

    class Granting(Aaa):
        def answer(self, packet: bytes) -> EapAnswer:
            user = self.asked[-1][0].decode(errors="replace")
            answer = super().answer(packet)
            if answer.accepted is None:
                return answer
            self.server = None
            return replace(answer, granted=granted if isinstance(granted, Granted) else granted[user])

    return Granting(pair, mschapv2)


def roads(*, pools: Sequence[str] = ("radius",), vips: Sequence[Any] = (ANY4,), own: Any = (), **more: Any) -> Pair:
    """moon is carol and wants addresses of sun, which has a RADIUS server."""
    remote = server(eap_id=more.pop("eap_id", ANY), eap_radius=True, groups=tuple(more.pop("groups", ())))
    here = {"vips": tuple(vips), "child": {"local_ts": (DYNAMIC,)}}
    there = {"remote_addrs": ("%any",), "pools": tuple(pools), "child": {"remote_ts": (DYNAMIC,)},
             **more.pop("b", {})}  # fmt: skip
    pair = make(client(eap_id=parse_identity("carol")), remote, SECRETS, (), a=here, b=there, **more)
    pair.b.pools = list(own)
    pair.b.load(*pair.b.connections.values())
    return pair


def connect(pair: Pair, aaa: Aaa) -> None:
    pair.a.initiate()
    aaa.serve()
    pair.world.settle()


def guest(pair: Pair, aaa: Aaa, user: str, host_address: str = "192.0.2.3", **more: Any) -> SimHost:
    """Somebody else, or the same user on another machine."""
    host = pair.world.host(f"host of {user}", ip_address(host_address))
    one = connection(ip_address(host_address), B, "moon", "sun", **ROADS, **more)
    host.load(
        replace(one, local=client(eap_id=parse_identity(user))), eap=[EapSecret(PASSWORD, (parse_pattern(user),))]
    )
    host.initiate()
    aaa.serve()
    pair.world.settle()
    return host


def leased(host: SimHost) -> list[str]:
    return [str(address) for sa in host.ikes for address in sa.addresses]


def refusal(pair: Pair) -> str:
    return pair.b.events(Failed)[0].problem.failure.reason


# -- addresses


def test_an_address_and_its_dns_servers() -> None:
    pair = roads(vips=(ANY4, ANY6))
    dns = (ip_address("10.3.0.1"), ip_address("2001:db8:3::1"))
    connect(pair, granting(Granted(framed=(NINE, SIX, TEN), dns=dns), pair))
    assert leased(pair.a) == ["10.3.0.9", "2001:db8:3::9"]
    (sa,) = pair.b.ikes
    assert [str(address) for _, address in sa.leases] == leased(pair.a)
    assert pair.a.events(AddressesAssigned)[0].dns == dns
    pair.finish()
    assert [pool.online for pool in pair.b.engine.grants] == [0, 0]
    assert [pool.offline for pool in pair.b.engine.grants] == [0, 0]


@pytest.mark.parametrize(("framed", "expected"), [((NINE, TEN), ["10.3.0.9", "10.3.0.10"]), ((NINE,), ["10.3.0.9"])])
def test_each_address_is_given_once(framed: Any, expected: list[str]) -> None:
    pair = roads(vips=(ANY4, ANY4))
    connect(pair, granting(Granted(framed=framed), pair))
    assert leased(pair.a) == expected
    (sa,) = pair.b.ikes
    assert len(sa.leases) == len(expected)
    pair.finish()


@pytest.mark.parametrize("address", ["10.3.0.10", "192.168.3.9", "223.255.255.254"])
def test_of_several_the_one_that_is_wanted(address: str) -> None:
    """Connections inside the tunnel go on only with the address that they began with. All there are may be granted."""
    wanted = ip_address(address)
    pair = roads(vips=(wanted,))
    connect(pair, granting(Granted(framed=(NINE, wanted)), pair))
    assert leased(pair.a) == [address]
    pair.finish()


def test_whoever_is_granted_none_gets_none() -> None:
    """The IKE_SA is up, as RFC 7296 section 1.3 has it, and nothing passes."""
    pair = roads()
    connect(pair, granting(Granted(framed=(SIX,)), pair))
    assert leased(pair.a) == []
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.ADDRESS]
    assert "the RADIUS server grants no virtual address" in refusal(pair)
    assert not pair.b.children


@pytest.mark.parametrize(
    ("pools", "granted", "expected"),
    [
        (("radius", "p"), (NINE,), "10.3.0.9"),
        (("radius", "p"), (), "10.4.0.1"),
        (("p", "radius"), (NINE,), "10.4.0.1"),
        (("full", "radius"), (NINE,), "10.3.0.9"),
        (("p",), (NINE,), "10.4.0.1"),
    ],
)
def test_beside_pools_the_order_counts(pools: Sequence[str], granted: Any, expected: str) -> None:
    own = [PoolConfig("p", ip_address("10.4.0.1"), ip_address("10.4.0.9")),
           PoolConfig("full", ip_address("2001:db8:9::1"), ip_address("2001:db8:9::1"))]  # fmt: skip
    pair = roads(pools=pools, own=own)
    connect(pair, granting(Granted(framed=granted, dns=(TEN,)), pair))
    assert leased(pair.a) == [expected]
    # DNS servers are those of whose address it is to be
    assert pair.a.events(AddressesAssigned)[0].dns == ((TEN,) if "radius" in pools else ())
    pair.finish()


def test_what_is_granted_is_in_no_pool_meanwhile_and_the_other_way_round() -> None:
    own = [PoolConfig("p", NINE, TEN)]
    pair = roads(pools=("radius", "p"), own=own)
    aaa = granting({"carol": Granted(framed=(NINE,)), "dave": Granted(), "erin": Granted(framed=(TEN,))}, pair)
    connect(pair, aaa)
    assert leased(pair.a) == ["10.3.0.9"]
    assert leased(guest(pair, aaa, "dave")) == ["10.3.0.10"]
    # dave has it from the pool
    assert leased(guest(pair, aaa, "erin", "192.0.2.4")) == []
    assert leased(pair.a) == ["10.3.0.9"]
    pair.world.close()


def test_reloading_pools_leaves_alone_what_is_granted() -> None:
    pair = roads()
    connect(pair, granting(Granted(framed=(NINE,)), pair))
    pair.b.pools = [PoolConfig("p", NINE, TEN)]
    pair.b.load(*pair.b.connections.values())
    (sa,) = pair.b.ikes
    assert sa.leases == [(pair.b.engine.grants[0], NINE)]
    pair.finish()
    assert pair.b.engine.grants[0].online == 0


@pytest.mark.parametrize("user", ["carol", "dave"])
def test_an_address_is_of_whom_it_was_granted_to_last(user: str) -> None:
    # with any other, INITIAL_CONTACT has ended the first one of the same user
    pair = roads(b={"unique": Unique.NEVER})
    aaa = granting(Granted(framed=(NINE,)), pair)
    connect(pair, aaa)
    other = guest(pair, aaa, user)
    assert leased(other) == ["10.3.0.9"]
    assert leased(pair.a) == []
    (sa,) = pair.b.ikes
    assert str(sa.whose) == user
    assert pair.b.engine.grants[0].online == 1
    pair.world.close()
    assert pair.b.engine.grants[0].online == 0


def test_traffic_does_not_wait_for_who_had_the_address() -> None:
    """Who has gone without a word does not answer; what is sent to the address is for the other one at once."""
    pair = roads(b={"unique": Unique.NEVER})
    aaa = granting(Granted(framed=(NINE,)), pair)
    connect(pair, aaa)
    (old,) = pair.b.ikes
    pair.world.broken.add(frozenset((A, B)))
    other = guest(pair, aaa, "dave")
    assert leased(other) == ["10.3.0.9"]
    assert old.doubted
    assert not pair.b.ikes[-1].doubted


def test_reauthentication_keeps_the_address() -> None:
    pair = roads(b={"unique": Unique.REPLACE})
    aaa = granting(Granted(framed=(NINE,)), pair)
    connect(pair, aaa)
    old = pair.a.ike
    pair.a.do(pair.a.engine.reauthenticate, old)
    aaa.serve()
    pair.world.settle()
    assert leased(pair.a) == ["10.3.0.9"]
    assert pair.a.ike is not old
    # which the peer has closed, when it had all that it needs
    assert [event.cause for event in pair.b.events(IkeDown)] == [Cause.CLOSED]
    pair.finish()


# -- who it is, and what it is a member of


def test_the_server_says_who_the_user_is() -> None:
    """What the peer calls itself, outside of the method, may be anybody's."""
    pair = roads(eap_id=parse_pattern("%any"), b={"unique": Unique.REPLACE})
    connect(pair, granting(Granted(b"dave@example.org", framed=(NINE,)), pair))
    (sa,) = pair.b.ikes
    assert (str(sa.eap_id), str(sa.whose), str(sa.peer_id)) == ("dave@example.org", "dave@example.org", "moon")
    assert pair.b.engine.of_peer(sa.our_id, parse_identity("dave@example.org")) == [sa]
    pair.finish()


@pytest.mark.parametrize("unique", [Unique.REPLACE, Unique.KEEP, Unique.NEVER])
@pytest.mark.parametrize("contact", [False, True])
def test_one_user_is_one(unique: Unique, contact: bool) -> None:
    """On whatever machine, and whether that says INITIAL_CONTACT or not: ``unique`` is about users."""
    own = [PoolConfig("p", NINE, NINE + 5)]
    pair = roads(pools=("p",), own=own, b={"unique": unique})
    aaa = granting(Granted(), pair)
    connect(pair, aaa)
    guest(pair, aaa, "dave", "192.0.2.4")
    first = pair.b.ikes[0]
    guest(pair, aaa, "carol", unique=Unique.NO if contact else Unique.NEVER)
    users = sorted(str(sa.whose) for sa in pair.b.ikes)
    both = unique is Unique.NEVER
    assert users == (["carol", "carol", "dave"] if both else ["carol", "dave"])
    # who keeps what is there heeds INITIAL_CONTACT all the same (RFC 7296 section 2.4)
    assert (first in pair.b.ikes) is (both or (unique is Unique.KEEP and not contact))
    pair.world.close()


def test_a_user_whom_the_server_knows_as_somebody_else_is_not_let_in() -> None:
    pair = roads(eap_id=parse_pattern("carol"))
    connect(pair, granting(Granted(b"dave", framed=(NINE,)), pair))
    assert not pair.b.events(IkeUp)
    assert not pair.a.engine.sas
    assert "no connection is for dave with groups none" in refusal(pair)
    assert "EAP-Failure" in pair.a.events(Failed)[0].problem.failure.reason


@pytest.mark.parametrize(
    ("groups", "granted", "good"),
    [
        (("staff",), Granted(classes=(b"staff",)), True),
        (("guests", "staff"), Granted(filter_ids=(b"x", b"staff")), True),
        ((), Granted(), True),
        (("staff",), Granted(), False),
        (("staff",), Granted(classes=(b"staff2", b"Staff", b"\xff\x00")), False),
    ],
)
def test_groups(groups: Sequence[str], granted: Granted, good: bool) -> None:
    pair = roads(groups=groups)
    connect(pair, granting(replace(granted, framed=(NINE,)), pair))
    if good:
        pair.finish()
        return
    assert not pair.b.events(IkeUp)
    assert not pair.a.engine.sas
    assert [event.problem.failure.cause for event in pair.b.events(Failed)] == [Cause.PEER_ID]
    assert "no connection is for carol with groups " in refusal(pair)


def two(pair: Pair) -> tuple[Connection, Connection]:
    """Two connections of sun that differ in groups and pools alone."""
    first = pair.b.connections["c"]
    rest = replace(first, name="d", pools=("p",), remote=replace(first.remote, groups=("guests",)))
    pair.b.pools = [PoolConfig("p", ip_address("10.4.0.1"), ip_address("10.4.0.9"))]
    pair.b.load(first, rest)
    return first, rest


def test_groups_choose_the_connection() -> None:
    for group, name, address in ((b"staff", "c", "10.3.0.9"), (b"guests", "d", "10.4.0.1")):
        pair = roads(groups=("staff",))
        two(pair)
        connect(pair, granting(Granted(classes=(group,), framed=(NINE,)), pair))
        assert pair.b.ike.name == name
        assert leased(pair.a) == [address]
        pair.finish()


def test_rekeying_keeps_what_is_granted() -> None:
    pair = roads(groups=("staff",))
    granted = Granted(b"dave", (NINE,), session_timeout=3600, classes=(b"staff",))
    connect(pair, granting(granted, pair))
    end = pair.b.ike.session_end
    pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    pair.world.settle()
    kept = replace(granted, asked=b"carol")
    assert (pair.b.ike.granted, pair.b.ike.session_end, str(pair.b.ike.whose)) == (kept, end, "dave")
    assert [address for _, address in pair.b.ike.leases] == [NINE]
    pair.finish()


# -- for how long


@pytest.mark.parametrize("rekeyed", [False, True])
def test_whoever_does_not_authenticate_itself_anew_is_closed(rekeyed: bool) -> None:
    pair = roads()
    aaa = granting(Granted(framed=(NINE,), session_timeout=600), pair)
    connect(pair, aaa)
    (told,) = pair.a.ikes
    assert pair.world.now + 400 < told.reauth_by < pair.world.now + 600
    # a peer that does not know AUTH_LIFETIME
    told.reauth_by = 0.0
    pair.a.engine.timers.cancel((Timer.REAUTH, told.uid))
    if rekeyed:
        pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    pair.world.run(580)
    assert pair.b.ike.established
    pair.world.run(30)
    assert not pair.b.engine.sas
    assert not pair.b.events(Failed)


def test_the_peer_is_told_and_is_in_time() -> None:
    pair = roads()
    aaa = granting(Granted(framed=(NINE,), session_timeout=600), pair)
    connect(pair, aaa)
    first = pair.b.ike
    for _ in range(70):
        pair.world.run(10)
        aaa.serve()
    pair.world.settle()
    assert pair.a.events(Initiate)
    assert pair.b.ike is not first
    assert pair.b.ike.session_end > pair.world.now
    assert leased(pair.a) == ["10.3.0.9"]
    pair.finish()


def test_no_seconds_are_no_limit() -> None:
    pair = roads()
    connect(pair, granting(Granted(framed=(NINE,), session_timeout=0), pair))
    assert (pair.b.ike.session_end, pair.a.ike.reauth_by) == (0.0, 0.0)
    pair.finish()


# -- what is counted


@pytest.mark.parametrize(
    ("password", "expected"), [(PASSWORD, {("MSCHAPV2", True): 1}), (b"wrong", {("MSCHAPV2", False): 1})]
)
def test_results_are_counted_once(password: bytes, expected: dict[tuple[str, bool], int]) -> None:
    secrets = (EapSecret(password, (parse_pattern("carol"),)),)
    for radius in (True, False):
        remote = server(eap_id=ANY, eap_radius=radius)
        pair = make(client(eap_id=parse_identity("carol")), remote, secrets, SECRETS)
        connect(pair, granting(Granted(), pair))
        assert pair.b.engine.eap_results == expected


# -- nobody answers


def test_silence_has_a_cause_of_its_own() -> None:
    pair = roads()
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    answer = EapAnswer(None, False, reason="no RADIUS server answers", silent=True)
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, answer)
    pair.world.settle()
    assert [event.problem.failure.cause for event in pair.b.events(Failed)] == [Cause.RADIUS]
    assert not pair.a.engine.sas
