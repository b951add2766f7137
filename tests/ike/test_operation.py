"""What keeps a connection going, or sends it elsewhere: redirection, NAT keepalives, attempts, duplicates."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike import giveway
from ipsec.ike.config import Action, IkeSettings, PoolConfig, SelectorTemplate, Unique
from ipsec.ike.credentials import Ppk
from ipsec.ike.delete import Liveness
from ipsec.ike.errors import PeerError
from ipsec.ike.events import (
    KEEPALIVE,
    AddressesReleased,
    ChildDown,
    ChildNotMade,
    Failed,
    IkeDown,
    IkeUp,
    Initiate,
    Path,
    TrapWanted,
)
from ipsec.ike.failure import Cause
from ipsec.ike.redirect import LOOP_PERIOD_S, REDIRECTS_MAX, redirect
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import NotifyType, Protocol
from ipsec.wire.ike import HEADER_LEN, parse_header, parse_payloads
from ipsec.wire.payloads import NotifyPayload, Payload, VendorPayload
from tests.pair import IKE, A, Pair, connection
from tests.sim.host import SimHost
from tests.sim.invariants import agree
from tests.sim.link import Link

C = ip_address("192.0.2.3")


# -- redirection (RFC 5685)


def with_third(pair: Pair) -> SimHost:
    """Another gateway that moon may be sent to; moon takes sun's name for whoever proves it."""
    third = pair.world.host("venus", C)
    third.load(connection(C, "%any", "sun", "moon"))
    return third


def init_notifies(pair: Pair) -> dict[SimHost, dict[int, bytes]]:
    """Filled with the notifications of the last IKE_SA_INIT message that each host sends."""
    seen: dict[SimHost, dict[int, bytes]] = {}

    def look(host: SimHost, data: bytes) -> bytes | None:
        header = parse_header(data)
        if header.message_id == 0 and header.exchange == 34:
            payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
            seen[host] = {p.notify: p.data for p in payloads if isinstance(p, NotifyPayload)}
        return data

    pair.world.filter = look
    return seen


def test_redirected_in_ike_sa_init() -> None:
    """HDR, SAi1, KEi, Ni, N(REDIRECT_SUPPORTED) --> <-- HDR, N(REDIRECT), section 3; sun keeps nothing."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    seen = init_notifies(pair)
    pair.b.engine.settings = replace(pair.b.engine.settings, redirect_to=C)
    pair.a.initiate(remote=pair.b.addresses[0])
    assert NotifyType.REDIRECT_SUPPORTED in seen[pair.a]
    pair.world.settle()
    assert NotifyType.REDIRECT in seen[pair.b]
    assert not pair.b.engine.sas
    # section 3: to the new gateway, REDIRECTED_FROM takes the place of REDIRECT_SUPPORTED
    assert seen[pair.a][NotifyType.REDIRECTED_FROM] == bytes((1, 4)) + pair.b.addresses[0].packed
    assert NotifyType.REDIRECT_SUPPORTED not in seen[pair.a]
    assert pair.a.ike.path.remote == C
    agree(pair.a, third)


def test_redirected_when_established() -> None:
    """Section 5: an INFORMATIONAL request; what was up comes up there, and the old IKE_SA goes."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    pair.a.initiate(remote=pair.b.addresses[0])
    pair.world.settle()
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, C)
    pair.world.settle()
    assert not pair.b.engine.sas
    assert pair.a.ike.path.remote == C
    agree(pair.a, third)


def test_not_asked_without_redirect_supported() -> None:
    """Section 5: the gateway asks only clients that have said that they support it."""
    pair = Pair()
    pair.a.engine.settings = replace(pair.a.engine.settings, follow_redirects=False)
    pair.up()
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, C)
    assert pair.b.ike.pending is None
    pair.finish()


def test_who_was_sent_here_can_be_sent_on() -> None:
    """REDIRECTED_FROM takes the place of REDIRECT_SUPPORTED (section 3)."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    pair.a.initiate(remote=pair.b.addresses[0])
    pair.world.settle()
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, C)
    pair.world.settle()
    third.do(third.engine.redirect_peer, third.ike, pair.b.addresses[0])
    pair.world.settle()
    assert not third.engine.sas
    agree(pair.a, pair.b)


def test_redirected_after_the_gateway_has_rekeyed() -> None:
    """Who is the client does not change with the roles in a rekeying."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    pair.a.initiate(remote=pair.b.addresses[0])
    pair.world.settle()
    pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    pair.world.settle()
    assert pair.b.ike.initiator
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, C)
    pair.world.settle()
    assert not pair.b.engine.sas
    agree(pair.a, third)


def test_redirected_while_a_request_is_under_way() -> None:
    """The IKE_SA that is to be closed, but not yet, does not stand for the one that is wanted."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    pair.a.initiate(remote=pair.b.addresses[0])
    pair.world.settle()
    pair.world.hold()
    pair.a.do(lambda now: pair.a.ike.ask(Liveness(), now))
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, C)
    pair.world.deliver("sun")
    pair.world.settle()
    assert not pair.b.engine.sas
    agree(pair.a, third)


def test_redirected_in_ike_auth_with_children_to_come() -> None:
    """Section 6: HDR, SK {IDr, AUTH, SAr2, TSi, TSr, N(REDIRECT)}; children that were not asked for yet go as well."""
    pair = Pair(remote_addrs=("%any",), children=("one", "two"))
    third = pair.world.host("venus", C)
    third.load(connection(C, "%any", "sun", "moon", children=("one", "two")))
    tokens = pair.b.engine.token_payloads
    pair.b.engine.token_payloads = lambda sa: [*tokens(sa), redirect(C)]  # type: ignore[method-assign]
    pair.a.initiate(remote=pair.b.addresses[0])
    pair.world.settle()
    assert not pair.b.engine.sas
    agree(pair.a, third, children=2)


def test_a_responder_is_not_redirected() -> None:
    pair = Pair().up()
    pair.a.do(pair.a.engine.redirect_peer, pair.a.ike, C)
    pair.world.settle()
    pair.finish()


def test_redirections_in_a_circle_end() -> None:
    """Section 3: MAX_REDIRECTS in REDIRECT_LOOP_DETECT_PERIOD."""
    pair = Pair(remote_addrs=("%any",))
    third = with_third(pair)
    first = pair.b.addresses[0]
    for host, where in ((pair.b, C), (third, first)):
        host.engine.settings = replace(host.engine.settings, redirect_to=where)
    pair.a.initiate(remote=first)
    pair.world.run(LOOP_PERIOD_S / 2)
    sent = [event for event in pair.a.events(Initiate) if event.remote is not None]
    assert len(sent) == REDIRECTS_MAX
    assert not pair.a.ikes


def test_redirections_are_followed_only_if_wanted() -> None:
    pair = Pair(settings=IkeSettings(follow_redirects=False))
    seen = init_notifies(pair)
    pair.b.engine.settings = replace(pair.b.engine.settings, redirect_to=C)
    pair.up()
    # who does not say that it can be redirected is served
    assert NotifyType.REDIRECT_SUPPORTED not in seen[pair.a]
    pair.finish()


# -- NAT keepalives (RFC 3948 section 4, RFC 7296 section 2.23)


@pytest.mark.parametrize("nat", [True, False])
def test_keepalives_are_for_who_is_behind_a_nat(nat: bool) -> None:
    pair = Pair(nat=nat, settings=IkeSettings(keep_alive=20.0)).up()
    sent: list[str] = []
    for host in (pair.a, pair.b):

        def watched(
            data: bytes, path: Path, dscp: int = 0, *, name: str = host.name, send: Any = host.engine.send
        ) -> None:
            if data == KEEPALIVE:
                sent.append(name)
            send(data, path, dscp)

        host.engine.send = watched  # type: ignore[method-assign]
    pair.world.run(205.0)
    assert sent == (["moon"] * 10 if nat else [])
    # other traffic makes them needless
    sent.clear()
    for _ in range(20):
        pair.a.send_traffic()
        pair.world.run(10.0)
    assert not sent
    pair.finish()


# -- attempts


@pytest.mark.parametrize("tries", [1, 3])
def test_keyingtries(tries: int) -> None:
    """Each is a whole sequence of retransmissions, with an SPI of its own."""
    pair = Pair(keyingtries=tries, settings=IkeSettings(retransmit_tries=2, retransmit_timeout=1.0))
    spis: dict[bytes, int] = {}

    def lose(host: SimHost, data: bytes) -> bytes | None:
        spi = parse_header(data).spi_i
        spis[spi] = spis.get(spi, 0) + 1
        return None

    pair.world.filter = lose
    pair.a.initiate()
    pair.world.run(300.0)
    assert list(spis.values()) == [3] * tries
    assert len(pair.a.events(IkeDown)) == 1
    assert not pair.a.engine.sas


def test_keyingtries_without_end() -> None:
    pair = Pair(keyingtries=0, settings=IkeSettings(retransmit_tries=1, retransmit_timeout=1.0))
    pair.world.filter = lambda host, data: None
    pair.a.initiate()
    pair.world.run(3600.0)
    assert [sa.state for sa in pair.a.engine.sas.values()] == [IkeState.CONNECTING]
    pair.world.filter = None
    pair.world.settle()
    pair.agree()
    pair.finish()


# -- duplicates (RFC 7296 section 2.4 and 2.8.1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("unique", [Unique.NO, Unique.REPLACE, Unique.KEEP])
def test_both_ends_start_at_once(unique: Unique, seed: int) -> None:
    """One IKE_SA or both stay, but not none, and both ends think the same of each."""
    pair = Pair(seed, unique=unique)
    pair.a.initiate()
    pair.b.initiate()
    pair.world.settle()
    assert pair.a.ikes
    assert {(sa.spi_i, sa.spi_r) for sa in pair.a.ikes} == {(sa.spi_i, sa.spi_r) for sa in pair.b.ikes}
    assert len(pair.a.ikes) <= 2
    before = pair.world.delivered
    for host in (pair.a, pair.b):
        host.send_traffic()
    pair.world.run(5.0)
    assert pair.world.delivered - before >= 2
    pair.world.close()


# -- lifetimes


def test_over_time_ends_who_cannot_authenticate_any_more() -> None:
    """However often it is rekeyed meanwhile: reauth_time is for this."""
    pair = Pair(rekey_time=100.0, reauth_time=250.0, over_time=20.0).up()
    pair.b.load(*pair.b.connections.values(), secret=b"another secret altogether")
    pair.world.run(240)
    assert len(pair.b.ikes) == 1
    pair.world.run(60)
    assert not pair.b.ikes
    assert not [sa for sa in pair.a.ikes if sa.established_at]


@pytest.mark.parametrize("why", ["AUTHENTICATION_FAILED", "NO_PROPOSAL_CHOSEN", "no answer", "no way"])
@pytest.mark.parametrize("rekey_time", [0.0, 60.0])
def test_reauthentication_that_fails_is_tried_again(why: str, rekey_time: float) -> None:
    """As a refused rekeying is; what was up stays up until it works, or over_time is over."""
    pair = Pair(a={"reauth_time": 100.0, "over_time": 400.0, "rekey_time": rekey_time}).up()
    connections = pair.b.connections.values()
    if why == "AUTHENTICATION_FAILED":
        pair.b.load(*connections, secret=b"another secret altogether")
    elif why == "NO_PROPOSAL_CHOSEN":
        proposals = parse_proposals(["aes256gcm16-prfsha384-ecp384"], Protocol.IKE)
        pair.b.load(*(replace(one, proposals=proposals) for one in connections))
    elif why == "no answer":
        pair.world.filter = lambda host, data: None if parse_header(data).exchange == 34 else data
    else:
        # who has no way makes no IKE_SA
        emit = pair.a.engine.emit
        pair.a.engine.emit = lambda event: None if isinstance(event, Initiate) else emit(event)  # type: ignore[method-assign]
    before = len(pair.a.events(IkeUp))
    pair.world.run(170)
    assert len(pair.a.events(IkeUp)) == before
    assert not pair.a.events(ChildDown)
    pair.world.filter = None
    pair.a.engine.__dict__.pop("emit", None)
    pair.b.load(*(replace(one, proposals=IKE) for one in connections))
    pair.world.run(70)
    assert len(pair.a.events(IkeUp)) == before + 1
    pair.a.load(*(replace(one, rekey_time=0.0, reauth_time=0.0) for one in pair.a.connections.values()))
    pair.finish()


def test_reauthentication_for_want_of_child_sas_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CHILD_SA that can be rekeyed no other way (RFC 7296 section 1.3: NO_ADDITIONAL_SAS) would come to its end."""

    def full(*args: object) -> list[Payload]:
        raise PeerError(NotifyType.NO_ADDITIONAL_SAS, "full")

    monkeypatch.setattr("ipsec.ike.dispatch.handle_create_child", full)
    pair = Pair(a={"child": {"rekey_time": 100.0, "life_time": 300.0, "rand_time": 0.0}}).up()
    pair.b.load(*pair.b.connections.values(), secret=b"another secret altogether")
    pair.world.run(120)
    old = pair.a.ike
    pair.b.load(*pair.b.connections.values())
    pair.world.run(60)
    assert pair.a.ike is not old
    assert not pair.a.events(ChildNotMade)
    pair.finish()


def test_no_reauthentication_of_what_is_being_closed() -> None:
    pair = Pair(a={"reauth_time": 100.0, "over_time": 400.0}).up()
    pair.world.run(99)
    pair.world.filter = lambda host, data: None
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.run(60)
    assert not pair.a.events(Initiate)
    assert len(pair.a.engine.sas) == 1


# -- a connection that is another one now (RFC 4301 section 4.4.3)


def other_peer(host: SimHost, **more: Any) -> None:
    """The name stands for another peer from now on; IKE_SAs go on."""
    host.load(connection(host.addresses[0], C, "moon", "venus", **more))


def test_an_ike_sa_with_who_was_the_peer_is_not_used() -> None:
    pair = Pair().up()
    (old,) = pair.a.ikes
    other_peer(pair.a)
    new = pair.a.initiate()
    assert new is not old
    assert new.path.remote == C
    assert pair.a.initiate() is new


@pytest.mark.parametrize("state", ["connecting", "established"])
def test_an_ike_sa_whose_connection_has_other_children_is_used(state: str) -> None:
    pair = Pair(b={"children": ("net", "other")})
    old = pair.a.initiate()
    if state == "established":
        pair.world.settle()
    pair.a.load(connection(*(host.addresses[0] for host in (pair.a, pair.b)), "moon", "sun", children=("other",)))
    assert pair.a.initiate() is old
    pair.world.settle()
    assert {child.name for child in pair.a.children} == {"net", "other"}


def test_who_is_the_peer_now_is_not_asked_for_what_the_old_one_had() -> None:
    """Re-authentication is with whom the configuration has now, and so are its children."""
    pair = Pair(a={"children": ("net", "other")}, b={"children": ("net", "other")})
    pair.a.initiate()
    pair.world.settle()
    (old,) = pair.a.ikes
    other_peer(pair.a, children=("other", "third"))
    new = pair.a.initiate(children=(), replaces=old.uid)
    assert new.auth is not None
    assert [config.name for config, _ in new.auth.configs] == ["other"]
    assert new.auth.configs[0][0] is pair.a.connections["c"].child("other")


# -- both ends begin


def test_who_still_knocks_gives_way() -> None:
    """The peer was not there when we began, and has brought the same children up by the time it hears us."""
    pair = Pair()
    pair.world.link = replace(pair.world.link, loss=1.0)
    first = pair.a.initiate()
    pair.world.run(1)
    pair.world.link = Link()
    pair.b.initiate()
    pair.world.settle()
    assert [sa.uid for sa in pair.a.ikes] != [first.uid]
    pair.world.run(60)
    pair.finish()


def test_who_wants_more_goes_on() -> None:
    """What the peer has brought up is not all that we want."""
    pair = Pair(children=("net", "two"))
    pair.world.link = replace(pair.world.link, loss=1.0)
    pair.a.initiate()
    pair.world.run(1)
    pair.world.link = Link()
    pair.b.initiate(children=("net",))
    pair.world.run(60)
    assert {child.name for child in pair.a.children} == {"net", "two"}


def test_who_wants_an_ike_sa_alone_goes_on() -> None:
    """The peer has brought children up in one of its own, and nobody has said that these would do."""
    pair = Pair()
    pair.world.link = replace(pair.world.link, loss=1.0)
    first = pair.a.initiate(children=())
    pair.world.run(1)
    pair.world.link = Link()
    pair.b.initiate()
    pair.world.run(60)
    assert first in pair.a.ikes
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2


@pytest.mark.parametrize("unique", [Unique.NO, Unique.NEVER])
def test_both_at_once_stay(unique: Unique) -> None:
    """Neither can know which of the two the other will keep, and nobody wants one only."""
    pair = Pair(unique=unique)
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(60)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2


def both(seed: str, names: tuple[str, ...], **more: Any) -> Pair:
    """Children of which each is for networks of its own."""
    pair = Pair(seed, children=names, **more)
    networks = [
        SelectorTemplate((ip_address(f"10.9.{number}.0"), ip_address(f"10.9.{number}.255")))
        for number in range(len(names))
    ]
    for host, far in ((pair.a, False), (pair.b, True)):
        (one,) = host.connections.values()
        children = [
            replace(child, **{"local_ts" if far else "remote_ts": (network,)})
            for child, network in zip(one.children, networks, strict=True)
        ]
        host.load(replace(one, children=tuple(children)))
    return pair


class Talk:
    """Packets all the time, counted."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.sent = 0
        self.over = False
        self._go()

    def _go(self) -> None:
        if not self.over:
            self.sent += len(self.host.current())
            self.host.send_traffic()
            self.host.world.at(0.01, self._go)


def lose_nothing(pair: Pair, seconds: float) -> None:
    """Both talk for so long, and all of it arrives."""
    before = pair.world.delivered
    talks = [Talk(host) for host in (pair.a, pair.b)]
    pair.world.run(seconds)
    for one in talks:
        one.over = True
    pair.world.run(1)
    assert pair.world.delivered - before == sum(one.sent for one in talks)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("children", [("net",), ("net", "two", "three")])
@pytest.mark.parametrize("action", [Action.NONE, Action.START, Action.TRAP])
@pytest.mark.parametrize("unique", [Unique.REPLACE, Unique.KEEP])
def test_one_of_two_that_cross_stays(unique: Unique, action: Action, children: tuple[str, ...], seed: int) -> None:
    """Both ends mean the same one, nothing is lost, what was closed is no failure, and nobody brings it back."""
    child = {"close_action": action, "dpd_action": action}
    pair = both(f"{seed}/crossed", children, unique=unique, child=child)
    pair.a.initiate()
    pair.world.run(seed * 0.0019)
    pair.b.initiate()
    pair.world.run(1)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    lose_nothing(pair, 30.0)
    for host in (pair.a, pair.b):
        assert [len(host.events(kind)) for kind in (IkeUp, IkeDown)] == [2, 1]
        assert not [event for kind in (Failed, Initiate, TrapWanted) for event in host.events(kind)]
    pair.finish(children=len(children))


@pytest.mark.parametrize("seed", range(50))
def test_one_of_two_that_cross_stays_on_a_bad_network(seed: int) -> None:
    """Not none, and both ends think the same of it, also where one alone knows that they have crossed."""
    link = Link(latency=0.03, loss=0.3, duplicate=0.2, reorder=0.15, late=2.0)
    settings = IkeSettings(retransmit_timeout=1.0, retransmit_base=1.4, retransmit_tries=12)
    unique = (Unique.REPLACE, Unique.KEEP)[seed % 2]
    pair = both(f"{seed}/crossed", ("net", "two"), unique=unique, link=link, settings=settings)
    rng = random.Random(seed)
    hosts = [pair.a, pair.b]
    rng.shuffle(hosts)
    hosts[0].initiate()
    pair.world.run(rng.random() * 0.3)
    hosts[1].initiate()
    pair.world.run(150)
    pair.world.settle()
    assert [{child.name for child in host.children} for host in hosts] == [{"net", "two"}] * 2
    pair.finish(children=len(pair.a.children))


def test_what_both_ends_reauthenticate_does_not_multiply() -> None:
    """Now and then both do it at once, which makes two of one; each of them would be two the next time."""
    pair = both("multiply", ("net", "two"), unique=Unique.NO, a={"reauth_time": 18.0}, b={"reauth_time": 12.0})
    pair.a.initiate()
    pair.world.settle()
    for _ in range(8):
        pair.world.run(45.0)
        assert 1 <= len(pair.a.ikes) <= 4, pair.a.ikes
    # nothing is lost where one too many is closed
    lose_nothing(pair, 60.0)


@pytest.mark.parametrize("unique", [Unique.NO, Unique.NEVER])
@pytest.mark.parametrize("rekeyed", [False, True])
def test_what_both_ends_reauthenticate_by_command_does_not_multiply(unique: Unique, rekeyed: bool) -> None:
    pair = Pair(unique=unique).up()
    for _ in range(3):
        for host in (pair.a, pair.b):
            for sa in host.ikes:
                host.do(host.engine.reauthenticate, sa)
        pair.world.run(60)
        assert len(pair.a.ikes) == len(pair.b.ikes) == 2
        if rekeyed:
            pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ikes[0])
            pair.world.run(60)
    pair.world.close()


def loser(pair: Pair) -> SimHost:
    """Who has begun the one of two IKE_SAs that is to go."""
    lowest = min(pair.a.ikes, key=lambda sa: min(sa.spi_i, sa.spi_r))
    return pair.a if lowest.initiator else pair.b


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("what", ["addresses", "ppk", "mobike"])
def test_what_has_more_is_not_redundant(what: str, seed: int) -> None:
    """Only what moon begins has a virtual address, a PPK, or (as if sun had not been able to) MOBIKE."""
    more: dict[str, Any] = {"addresses": {"vips": (ip_address("0.0.0.0"),)}, "ppk": {"ppk_id": parse_pattern("ppk")}}
    pair = Pair(f"{seed}/more", unique=Unique.REPLACE, a=more.get(what, {}))
    pair.b.pools = [PoolConfig("p", ip_address("10.3.0.1"), ip_address("10.3.0.8"))]
    for host in (pair.a, pair.b):
        ppks = [Ppk(b"\xa5" * 32, (parse_pattern("ppk"),), "ppk")]
        pools = ("p",) if host is pair.b and what == "addresses" else ()
        host.load(replace(host.connections["c"], pools=pools), ppks=ppks)
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(1)
    for host in (pair.a, pair.b):
        for sa in host.ikes:
            moons = sa.initiator is (host is pair.a)
            sa.mobike = what == "mobike" and moons
            assert bool(sa.addresses or sa.leases) is (what == "addresses" and moons)
            assert sa.ppk is (what == "ppk" and moons)
    stay = 2 if loser(pair) is pair.a else 1
    pair.world.run(120)
    assert len(pair.a.ikes) == len(pair.b.ikes) == stay
    assert not pair.a.events(AddressesReleased)
    pair.finish(children=stay, ikes=stay)


@pytest.mark.parametrize("seed", range(4))
def test_a_peer_that_cannot_agree_at_once_is_asked_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its CHILD_SAs may be replaced just then."""
    pair = Pair(f"{seed}/later", unique=Unique.REPLACE)
    real, world = giveway.agree, pair.world
    ready = world.now + 20
    monkeypatch.setattr("ipsec.ike.informational.agree", lambda sa, v: real(sa, v) if world.now > ready else [])
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(20)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    pair.world.run(giveway.CROSSED_S)
    pair.finish()


def crossing(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Pair:
    """moon's IKE_AUTH with INITIAL_CONTACT is under way while sun's IKE_SA comes up."""
    # charon takes it for the end of whatever it has by then, and has no token that would show that
    monkeypatch.setattr("ipsec.ike.admit._check_unique", _as_charon)
    pair = Pair(settings=IkeSettings(qcd=False), **more)
    pair.world.hold()
    pair.a.initiate()
    pair.world.deliver("moon")
    pair.world.deliver("sun")
    pair.b.initiate()
    for name in ("sun", "moon", "sun", "moon"):
        pair.world.deliver(name, 1 if name == "moon" else 0)
    assert [len(host.ikes) for host in (pair.a, pair.b)] == [1, 1]
    return pair


def _as_charon(sa: IkeSa, contact: bool, now: float) -> None:
    for other in sa.core.of_peer(sa.our_id, sa.peer_id):
        if contact and other is not sa and other.established:
            other.response = []
            other.destroy("INITIAL_CONTACT", now)


@pytest.mark.parametrize("action", [Action.NONE, Action.START])
def test_what_a_peer_has_dropped_at_our_initial_contact_is_found_dead(
    action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked at once, without dpd_delay; and nothing is made again that the other one has."""
    pair = crossing(monkeypatch, unique=Unique.NO, child={"dpd_action": action})
    dead = pair.a.ike
    pair.world.deliver("moon")
    assert [sa.spi_i for sa in pair.b.ikes] != [dead.spi_i]
    pair.world.deliver("sun")
    assert len(pair.a.ikes) == 2
    assert dead.doubted
    pair.world.settle(300.0)
    assert pair.a.ike is not dead
    pair.finish()


def test_what_a_peer_has_not_dropped_at_our_initial_contact_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = crossing(monkeypatch, unique=Unique.NO)
    monkeypatch.undo()
    (other,) = pair.a.ikes
    pair.world.deliver("moon")
    pair.world.deliver("sun")
    assert other.doubted
    pair.world.settle()
    assert not other.doubted
    pair.finish(children=2, ikes=2)


def test_a_peer_that_is_back_without_initial_contact_is_not_sent_what_it_has_lost() -> None:
    """OpenIKED 7.2 after a crash: what it had is asked for at once, without dpd_delay, and comes second until then."""
    pair = Pair(unique=Unique.NO, a={"unique": Unique.NEVER}, settings=IkeSettings(qcd=False)).up()
    lost = pair.b.ike
    pair.world.run(5.0)
    pair.a.restart()
    pair.a.initiate()
    pair.world.run(1.0)
    assert lost.doubted
    assert lost.pending is not None
    pair.world.settle(300.0)
    assert lost not in pair.b.ikes
    pair.finish()


def test_a_peer_that_begins_beside_what_it_uses_is_sent_both() -> None:
    pair = Pair(unique=Unique.NO, a={"unique": Unique.NEVER}, settings=IkeSettings(make_before_break=True)).up()
    other = pair.b.ike
    pair.world.run(5.0)
    pair.a.send_traffic()
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.settle()
    assert not other.doubted
    pair.finish()


@pytest.mark.parametrize("seed", range(12))
def test_one_of_two_that_cross_stays_if_one_is_rekeyed_before(seed: int) -> None:
    """Whichever is rekeyed, by either end: that they have crossed is still known, and which one stays is said anew."""
    pair = both(f"{seed}/rekeyed", ("net", "two"), unique=Unique.REPLACE)
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(0.5)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    host = (pair.a, pair.b)[seed % 2]
    for sa in host.ikes[seed // 2 % 2 :][: 1 + seed // 8]:
        host.do(host.engine.rekey_ike_sa, sa)
    pair.world.run(60)
    assert not [event for one in (pair.a, pair.b) for event in one.events(Failed)]
    pair.finish(children=2)


def test_where_the_peer_has_no_rule_for_it_both_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Vendor ID is ours: another peer takes no notice of it, and may want back what we close."""
    asked: list[float] = []
    pair = Pair(unique=Unique.REPLACE)
    monkeypatch.setattr("ipsec.ike.informational.agree", lambda sa, vendor: asked.append(pair.world.now) or [])
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(600)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    # of both ends, ever more rarely, and no more after a while
    assert 4 <= len(asked) <= 12
    assert asked[-1] - asked[0] < 2 * giveway.CROSSED_S
    pair.finish(children=2, ikes=2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", ["child", "ike"])
def test_who_has_agreed_may_be_busy_when_the_other_one_is_closed(
    what: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rekeys a CHILD_SA of the one that goes, or the IKE_SA that stays: the Delete is no failure for that."""
    pair = Pair(f"{seed}/busy", unique=Unique.REPLACE, child={"close_action": Action.TRAP})
    real, hosts = giveway.agree, (pair.a, pair.b)
    busy: list[SimHost] = []

    def agreeing(sa: IkeSa, vendor: VendorPayload) -> list[Payload]:
        answer = real(sa, vendor)
        if answer:
            host = next(one for one in hosts if one.engine is sa.core)
            goes = next(one for one in host.ikes if one is not sa)
            engine, (child,) = host.engine, goes.children_up()
            command = (engine.rekey_child, child) if what == "child" else (engine.rekey_ike_sa, sa)
            pair.world.at(0.001, host.do, *command)
            busy.append(host)
        return answer

    monkeypatch.setattr("ipsec.ike.informational.agree", agreeing)
    pair.world.link = Link(latency=0.03)
    pair.a.initiate()
    pair.b.initiate()
    pair.world.run(60)
    assert len(busy) == 1
    assert not [event for kind in (Failed, Initiate, TrapWanted) for host in hosts for event in host.events(kind)]
    pair.finish()


@pytest.mark.parametrize("seed", range(4))
def test_the_peer_closes_one_of_two_that_is_not_redundant(seed: int) -> None:
    """What is closed has a child that the other one has not: that is a failure, and its close_action counts."""
    pair = both(f"{seed}/closed", ("net", "two"), unique=Unique.REPLACE, child={"close_action": Action.TRAP})
    pair.a.initiate()
    pair.b.initiate(children=("net",))
    pair.world.run(1)
    moons = next(sa for sa in pair.a.ikes if sa.initiator)
    assert len(moons.children) == 2
    pair.a.do(pair.a.engine.terminate_ike, moons)
    pair.world.settle()
    assert sorted(event.child for event in pair.b.events(TrapWanted)) == ["net", "two"]
    assert [event.problem.failure.cause for event in pair.b.events(Failed)] == [Cause.CLOSED]


def test_what_is_about_to_be_closed_does_not_stay_for_another() -> None:
    """One end alone takes the other's for a re-authentication: it closes its own, and agrees to nothing else."""
    for seed in range(8):
        pair = Pair(f"{seed}/late", unique=Unique.REPLACE)
        pair.world.hold()
        pair.a.initiate()
        pair.world.deliver("moon")
        pair.b.initiate()
        for name in ("sun", "moon", "sun"):
            pair.world.deliver(name, -1 if name == "sun" else 0)
        pair.world.settle()
        pair.world.run(30)
        assert len(pair.a.ikes) == len(pair.b.ikes) == 1
        pair.finish()


def test_an_answer_that_is_lost_gives_nothing_up() -> None:
    """The peer has given up what we take to be up: what we knock for is all there is."""
    pair = Pair(1, a={"keyingtries": 0})
    world = pair.world
    world.link = replace(world.link, loss=1.0)
    pair.a.initiate()
    world.run(1)
    world.link = Link()
    pair.b.initiate()
    world.filter = lambda host, data: None if host is pair.a and any(sa.established for sa in host.ikes) else data
    world.run(200)
    world.filter = None
    world.run(600)
    assert [sa.established for sa in pair.a.ikes] == [sa.established for sa in pair.b.ikes] == [True]
    pair.finish()


def test_who_knocks_at_another_peer_of_the_connection_goes_on() -> None:
    pair = Pair()
    hub = connection(A, C, "moon", "%any", remote_addrs=(str(C), "%any"), keyingtries=0)
    pair.a.load(hub)
    pair.a.initiate()
    pair.world.run(1)
    pair.b.initiate()
    pair.world.run(3)
    carol = pair.world.host("carol", C)
    carol.load(connection(C, A, "carol", "moon"))
    pair.world.run(300)
    assert {str(sa.peer_id) for sa in pair.a.ikes if sa.established} == {"sun", "carol"}


def test_only_what_we_have_begun_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of peers of one connection cost each other nothing."""
    pair = Pair()
    pair.up()
    assert not pair.a.engine.initiating
    assert not pair.b.engine.initiating
    pair.b.initiate(replaces=0)
    (one,) = pair.a.connections.values()
    assert one.is_alike(replace(one, children=()))
    assert one._without_parts is one._without_parts
    pair.world.settle()
    assert not pair.b.engine.initiating
