"""MOBIKE with several addresses at each end (RFC 4555): what is told, which way is taken, and who decides."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from ipsec.ike import informational
from ipsec.ike.config import Action, IkeSettings, SelectorTemplate
from ipsec.ike.delete import Liveness
from ipsec.ike.events import KEEPALIVE, IkeDown, IkeMoved, IkeRekeyed, Initiate, Path
from ipsec.ike.lifetimes import TELL_AFTER_S, TELL_WITHIN_S
from ipsec.ike.mobike import (
    ADDRESSES_MAX,
    WAYS_MAX,
    Announce,
    Routability,
    UpdateAddresses,
    behind_nat,
    detection,
    handle_addresses,
    move,
    nat_is_unexpected,
    ways,
)
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload
from tests.pair import A, B, Pair
from tests.sim.host import SimHost
from tests.sim.link import IpAddress, Link
from tests.sim.world import IN_FLIGHT_S

A2, B2 = ip_address("198.51.100.1"), ip_address("198.51.100.2")
A6, B6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")
GONE = ip_address("203.0.113.9")
NATS_SHOW = IkeSettings(force_encapsulation=False)


def pair(*, near: Sequence[IpAddress] = (A, A2), far: Sequence[IpAddress] = (B, B2), **more: Any) -> Pair:
    """Two networks between moon and sun, and nothing across."""
    made = Pair(**{"mobike": True, "dpd_delay": 10.0, **more})
    made.a.addresses, made.b.addresses = list(near), list(far)
    cross(made)
    return made.up()


def cross(made: Pair) -> None:
    for one, other in ((A, B2), (A2, B)):
        made.world.broken.add(frozenset((one, other)))


def changed(host: SimHost) -> None:
    """The host's addresses or routes are others."""
    for sa in list(host.engine.sas.values()):
        host.do(host.engine.addresses_changed, sa)


def told(made: Pair) -> None:
    """Whatever is to be told has been."""
    made.world.run(TELL_AFTER_S + TELL_WITHIN_S)
    made.world.settle()


def paths(made: Pair) -> tuple[tuple[IpAddress, IpAddress], tuple[IpAddress, IpAddress]]:
    """(local, remote) of the IKE_SA at moon, and (remote, local) at sun."""
    a, b = made.a.ike.path, made.b.ike.path
    return (a.local, a.remote), (b.remote, b.local)


def goes(made: Pair, local: IpAddress, remote: IpAddress) -> None:
    """IKE and both ways of the CHILD_SA are between these addresses, and packets arrive."""
    assert paths(made) == ((local, remote), (local, remote))
    ((out_a,), (out_b,)) = made.a.current(), made.b.current()
    assert (out_a.path.local, out_a.path.remote) == (local, remote)
    assert (out_b.path.local, out_b.path.remote) == (remote, local)
    assert out_a.encap == out_b.encap
    before = made.world.delivered
    for host in (made.a, made.b):
        host.send_traffic()
    made.world.run(IN_FLIGHT_S)
    assert made.world.delivered == before + 2


def notifies(payloads: Iterable[Payload], number: int) -> list[bytes]:
    return [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == number]


# -- which addresses there are


def test_both_tell_their_other_addresses() -> None:
    made = pair()
    assert made.b.ike.peer_addresses == (A2,)
    assert made.a.ike.peer_addresses == (B2,)
    made.finish()


def test_without_mobike_nothing_is_told() -> None:
    for own in ({"mobike": False}, {"a": {"mobike": False}}, {"b": {"mobike": False}}):
        made = pair(**own)
        assert made.a.ike.peer_addresses == made.b.ike.peer_addresses == ()
        assert not made.a.ike.mobike
        assert not made.b.ike.mobike
        made.finish()


def test_what_is_told_and_kept_is_bounded() -> None:
    many = [ip_address("198.18.0.0") + number for number in range(60)]
    made = pair(far=[B, *many])
    assert made.a.ike.peer_addresses == tuple(many[:ADDRESSES_MAX])
    assert len(ways(made.a.ike)) == WAYS_MAX
    these = [NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, address.packed) for address in many]
    made.b.do(made.b.ike.ask, Told(these))
    made.world.settle()
    assert len(made.a.ike.peer_addresses) == ADDRESSES_MAX
    made.finish()


class Told(Announce):
    """A list of addresses as the test wants it."""

    def __init__(self, payloads: list[Payload] | list[NotifyPayload]) -> None:
        super().__init__()
        self.payloads: list[Payload] = list(payloads)

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        return self.payloads


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1"])
def test_addresses_that_nobody_has_are_left_out(address: str) -> None:
    made = pair()
    this = NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, ip_address(address).packed)
    made.b.do(made.b.ike.ask, Told([this]))
    made.world.settle()
    assert made.a.ike.peer_addresses == ()
    made.finish()


def test_our_own_addresses_are_not_the_peers() -> None:
    """Of private ones both ends may have the same; what we send there comes back to us."""
    made = pair()
    these = [NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, address.packed) for address in (A2, B2, A)]
    made.b.do(made.b.ike.ask, Told(these))
    made.world.settle()
    assert made.a.ike.peer_addresses == (B2,)
    made.finish()


def test_a_list_that_comes_from_an_address_of_ours() -> None:
    """Somebody on the way has put that there: the peer is not at it."""
    made = pair(dpd_delay=0.0)
    made.world.broken.clear()
    here = made.a.ike.path
    this = NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, B2.packed)
    made.a.do(lambda now: handle_addresses(made.a.ike, [this], here._replace(remote=A2), now))
    assert made.a.ike.peer_addresses == (B2,)
    made.world.settle()
    goes(made, A, B)
    made.finish()


def test_addresses_of_the_wrong_size_say_nothing() -> None:
    made = pair()
    made.b.do(made.b.ike.ask, Told([NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, b"\1\2\3")]))
    made.world.settle()
    assert made.a.ike.peer_addresses == (B2,)
    made.finish()


def test_support_is_agreed_in_ike_auth_alone() -> None:
    made = pair(b={"mobike": False})
    made.b.do(made.b.ike.ask, Told([NotifyPayload(NotifyType.MOBIKE_SUPPORTED)]))
    made.world.settle()
    assert not made.a.ike.mobike
    made.finish()


def test_addresses_inside_the_tunnel_are_not_told() -> None:
    """LEFT is what moon's CHILD_SA is for; a tunnel for everything hides nothing."""
    inner = ip_address("10.1.0.1")
    made = pair(near=[A, inner, A2])
    assert made.b.ike.peer_addresses == (A2,)
    whole = SelectorTemplate((ip_address("0.0.0.0"), ip_address("255.255.255.255")))
    made = pair(near=[A, inner, A2], child={"local_ts": (whole,), "remote_ts": (whole,)})
    assert made.b.ike.peer_addresses == (inner, A2)


def test_peers_addresses_inside_the_tunnel_are_not_tried() -> None:
    made = pair()
    inner = NotifyPayload(NotifyType.ADDITIONAL_IP4_ADDRESS, ip_address("10.2.0.1").packed)
    made.b.do(made.b.ike.ask, Told([inner]))
    made.world.settle()
    assert made.a.ike.peer_addresses == (IPv4Address("10.2.0.1"),)
    assert {way.remote for way in ways(made.a.ike)} == {B}


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_list_that_changes_is_told_again(who: str) -> None:
    made = pair()
    host, other = (made.a, made.b) if who == "a" else (made.b, made.a)
    second = host.addresses.pop()
    changed(host)
    told(made)
    assert other.ike.peer_addresses == ()
    host.addresses += [GONE, second]
    changed(host)
    told(made)
    assert other.ike.peer_addresses == (GONE, second)


@pytest.mark.parametrize("who", ["a", "b"])
def test_what_comes_and_goes_is_not_told(who: str) -> None:
    """An interface that loses its carrier for a moment, again and again; a route that has to do with nothing."""
    made = pair(dpd_delay=0.0)
    host = made.a if who == "a" else made.b
    before = host.ike.message_id_out
    for _ in range(7):
        second = host.addresses.pop()
        changed(host)
        made.world.run(0.1)
        host.addresses.append(second)
        changed(host)
        made.world.run(0.1)
    told(made)
    assert host.ike.message_id_out == before
    made.finish()


def test_a_list_outlives_the_ike_sa() -> None:
    made = pair()
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.world.settle()
    assert made.a.ike.peer_addresses == (B2,)
    assert made.b.ike.peer_addresses == (A2,)
    made.finish()


def test_a_change_outlives_the_ike_sa() -> None:
    """It is rekeyed before the change is told."""
    made = pair()
    made.b.addresses.append(GONE)
    changed(made.b)
    made.a.do(made.a.engine.rekey_ike_sa, made.a.ike)
    made.world.settle()
    assert GONE not in made.a.ike.peer_addresses
    told(made)
    assert made.a.ike.peer_addresses == (B2, GONE)
    made.finish()


# -- which way is taken


def test_the_path_in_use_is_dead_and_nobody_says_so() -> None:
    """A router on the way has failed: the liveness check goes all ways, and finds one."""
    made = pair()
    made.world.broken.add(frozenset((A, B)))
    made.world.run(60.0)
    goes(made, A2, B2)
    assert len(made.a.events(IkeMoved)) == len(made.b.events(IkeMoved)) == 1
    assert made.a.ike.peer_addresses == (B,)
    assert made.b.ike.peer_addresses == (A,)
    made.finish()


def test_there_and_back_again() -> None:
    made = pair()
    first, second = frozenset((A, B)), frozenset((A2, B2))
    for _ in range(3):
        made.world.broken ^= {first}
        made.world.run(60.0)
        goes(made, A2, B2)
        made.world.broken ^= {first, second}
        made.world.run(60.0)
        goes(made, A, B)
        made.world.broken ^= {second}
    made.finish()


def test_a_request_under_way_finds_the_way_too() -> None:
    """CREATE_CHILD_SA without any liveness check."""
    made = pair(dpd_delay=0.0)
    made.world.broken.add(frozenset((A, B)))
    made.a.do(made.a.engine.rekey_child, made.a.child)
    made.world.settle()
    goes(made, A2, B2)
    made.finish()


def test_rekeying_the_ike_sa_finds_the_way_too() -> None:
    made = pair(dpd_delay=0.0)
    made.world.broken.add(frozenset((A, B)))
    made.a.do(made.a.engine.rekey_ike_sa, made.a.ike)
    made.world.settle()
    goes(made, A2, B2)
    made.finish()


def test_loss_alone_moves_nobody() -> None:
    made = pair()
    made.world.filter = lambda host, data: None
    made.a.do(made.a.engine.rekey_child, made.a.child)
    made.world.run(5.0)
    made.world.filter = None
    made.world.settle()
    goes(made, A, B)
    assert not made.a.events(IkeMoved)
    made.finish()


def test_no_way_is_left() -> None:
    made = pair(child={"dpd_action": Action.START})
    made.world.broken |= {frozenset((A, B)), frozenset((A2, B2))}
    made.a.connections.clear()
    made.world.run(400.0)
    assert not made.a.ikes
    assert not made.b.ikes
    assert len(made.a.events(IkeDown)) == len(made.a.events(Initiate)) == 1


def test_the_host_knows_that_the_path_is_dead() -> None:
    """moon's first interface is down: its address is gone, and no way leads to sun's first address."""
    made = pair(dpd_delay=0.0)
    made.a.addresses.remove(A)
    made.a.unrouted.add((A2, B))
    changed(made.a)
    made.world.run(1.0)
    goes(made, A2, B2)
    assert made.b.ike.peer_addresses == ()
    made.finish()


def test_the_responder_loses_its_address() -> None:
    """It cannot move by itself; what it has is told from the address that is left (section 3.6)."""
    made = pair(dpd_delay=0.0)
    made.b.addresses.remove(B)
    made.b.unrouted.add((B2, A))
    changed(made.b)
    made.world.run(1.0)
    goes(made, A2, B2)
    assert made.a.ike.peer_addresses == ()
    made.finish()


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_host_that_is_away_asks_nobody(who: str) -> None:
    """A laptop without a network for an hour: a request would end the IKE_SA."""
    made = pair(dpd_delay=0.0)
    host = made.a if who == "a" else made.b
    had = list(host.addresses)
    second = host.addresses.pop()
    changed(host)  # about to be told
    host.addresses.clear()
    changed(host)
    made.world.run(3600.0)
    host.addresses += [had[0], second]
    changed(host)
    told(made)
    goes(made, A, B)
    made.finish()


@pytest.mark.parametrize("who", ["a", "b"])
def test_the_path_dies_while_addresses_are_told(who: str) -> None:
    """Nothing else may be asked before that is answered."""
    made = pair(dpd_delay=0.0)
    host = made.a if who == "a" else made.b
    made.world.broken.add(frozenset((A, B)))
    host.do(host.ike.ask, Announce(needed=True))
    made.world.run(120.0)
    goes(made, A2, B2)
    made.finish()


def test_a_list_leaves_out_where_it_comes_from() -> None:
    """Section 3.4; the peer has not heard yet that we have gone to another one of its addresses."""
    made = pair(dpd_delay=0.0)
    made.world.broken.clear()
    made.world.hold()
    made.a.do(lambda now: move(made.a.ike, made.a.ike.path._replace(remote=B2), now))
    made.b.do(made.b.ike.ask, Announce(needed=True))
    made.world.deliver("sun")
    assert {way.remote for way in ways(made.a.ike)} == {B, B2}
    made.world.settle()
    goes(made, A, B2)
    made.finish()


def test_the_responder_asks_by_another_way() -> None:
    """Only its checks of liveness show that the path in use is dead: the initiator looks for itself."""
    made = pair(a={"dpd_delay": 0.0})
    made.world.broken.add(frozenset((A, B)))
    made.world.run(90.0)
    goes(made, A2, B2)
    made.finish()


def test_from_one_family_to_the_other() -> None:
    made = pair(near=[A, A6], far=[B, B6])
    made.world.broken.add(frozenset((A, B)))
    made.world.run(60.0)
    goes(made, A6, B6)
    made.finish()


def test_the_responder_has_rekeyed_and_the_initiator_moves() -> None:
    """Who decides is who began the first IKE_SA (section 1.3), whoever began the one in use."""
    made = pair()
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.world.settle()
    assert not made.a.ike.initiator
    made.world.broken.clear()
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.settle()
    goes(made, A2, B)
    made.finish()


def test_a_newer_move_replaces_one_that_waits() -> None:
    made = pair()
    made.world.broken.clear()
    made.world.hold()
    made.a.do(made.a.engine.rekey_child, made.a.child)
    made.a.addresses.append(GONE)
    for address in (GONE, A2):
        made.a.do(made.a.engine.update_address, made.a.ike, address)
    waiting = [request for request in made.a.ike.queue if isinstance(request, UpdateAddresses)]
    assert [request.path.local for request in waiting if request.path] == [A2]
    made.world.settle()
    goes(made, A2, B)
    made.finish()


@pytest.mark.parametrize("seed", range(6))
def test_networks_come_and_go(seed: int) -> None:
    """Whatever fails in between: as long as there is a way for long enough, it is found, and both ends agree."""
    rng = random.Random(f"networks/{seed}")
    made = pair()
    pairs = [frozenset((A, B)), frozenset((A2, B2)), frozenset((A, B2)), frozenset((A2, B))]
    for _ in range(8):
        alive = rng.choice(pairs)
        made.world.broken = {one for one in pairs if one is not alive and rng.random() < 0.7}
        host = rng.choice((made.a, made.b))
        changed(host)
        if rng.random() < 0.5:
            made.a.do(made.a.engine.rekey_child, made.a.child)
        made.world.run(rng.choice((3.0, 40.0)))
    made.world.broken = {one for one in pairs if one is not pairs[0]}
    made.world.run(120.0)
    made.world.settle()
    goes(made, A, B)
    made.finish()


# -- a move that meets a rekeying of the IKE_SA (RFC 7296 section 2.8: the successor has the CHILD_SAs)


def open_pair(*near: IpAddress, **more: Any) -> Pair:
    """moon may use any of its addresses to one of sun's; what is sent waits for ``deliver``."""
    made = pair(near=near or (A, A2), far=(B,), **{"dpd_delay": 0.0, **more})
    made.world.broken.clear()
    made.world.hold()
    return made


def asks(host: SimHost) -> type:
    """What the IKE_SA in use waits to have answered."""
    assert host.ike.pending is not None
    return type(host.ike.pending.request)


@pytest.mark.parametrize("first", ["update", "rekeying"])
def test_the_peer_rekeys_while_we_move(first: str) -> None:
    made = open_pair()
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.deliver("sun")
    assert asks(made.a) is UpdateAddresses
    for which in (0, 0) if first == "update" else (1, 0):
        made.world.deliver("moon", which)
    made.world.settle()
    goes(made, A2, B)
    made.finish()


def test_a_move_that_waits_goes_on_in_the_successor() -> None:
    """Our own rekeying is under way."""
    made = open_pair()
    made.a.do(made.a.engine.rekey_ike_sa, made.a.ike)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.settle()
    goes(made, A2, B)
    made.finish()


def test_back_from_no_network_into_a_rekeying() -> None:
    """The peer has asked for it while we were away, and asks again."""
    made = open_pair(A)
    made.world.release()
    made.a.addresses.clear()
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.world.run(3.0)
    made.a.addresses.append(A2)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.settle()
    goes(made, A2, B)
    made.finish()


def test_an_update_that_comes_late_moves_no_successor() -> None:
    """It has moved since, and said so itself."""
    made = open_pair(A, A2, GONE)
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.deliver("sun")
    for name in ("moon", "moon", "sun", "sun"):
        # all but the update and the Delete of what it is for
        made.world.deliver(name, 1)
    made.a.do(made.a.engine.update_address, made.a.ike, GONE)
    made.world.deliver("moon", len(made.world.waiting("moon")) - 1)
    assert made.b.ike.path.remote == GONE
    made.world.deliver("moon")
    assert made.b.ike.path.remote == GONE
    made.world.settle()
    goes(made, GONE, B)
    made.finish()


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_list_that_meets_a_rekeying_is_told(who: str, lost: bool) -> None:
    """It comes when the peer has a successor already, and heeds none for the IKE_SA that it was for."""
    made = open_pair()
    host, other = (made.a, made.b) if who == "a" else (made.b, made.a)
    host.addresses.append(GONE)
    host.do(host.ike.ask, Announce())
    other.do(other.engine.rekey_ike_sa, other.ike)
    made.world.deliver(other.name)
    made.world.deliver(host.name, 1)
    made.world.deliver(host.name, drop=lost)
    made.world.settle()
    assert GONE in other.ike.peer_addresses
    made.finish()


def test_a_new_address_is_checked_in_the_successor_too() -> None:
    """Whoever is not where he says (section 3.7) does not get away with it by rekeying."""
    made = open_pair()
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.deliver("moon")
    made.world.deliver("sun", 1)
    assert asks(made.b) is Routability
    made.a.do(made.a.engine.rekey_ike_sa, made.a.ike)
    old = made.b.ike
    made.world.deliver("moon")
    assert made.b.ike is not old
    assert asks(made.b) is Routability
    made.world.settle()
    goes(made, A2, B)
    made.finish()


@pytest.mark.parametrize("all_ways", [False, True])
def test_a_move_is_heard_by_who_does_not_know_the_successor(all_ways: bool) -> None:
    """Our answer to the peer's rekeying is lost, and the peer asks again where we are no more."""
    made = open_pair(A)
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.world.deliver("sun")
    made.world.deliver("moon", drop=True)
    made.a.addresses[:] = [A2]
    if all_ways:
        # the first one that is tried leads nowhere
        made.a.addresses.append(GONE)
        made.world.broken.add(frozenset((A2, B)))
    changed(made.a)
    made.world.settle()
    goes(made, GONE if all_ways else A2, B)
    assert len(made.a.events(IkeRekeyed)) == len(made.b.events(IkeRekeyed)) == 1
    made.finish()


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("seed", [*range(24), 38, 85, 94, 163, 186, 206])
def test_moves_and_rekeyings(seed: int, loss: float) -> None:
    """In any order, at once, by both ends: wherever moon is in the end, IKE and ESP are there."""
    rng = random.Random(f"moves and rekeyings/{seed}")
    made = open_pair(seed=seed, settings=IkeSettings(retransmit_timeout=1.0, retransmit_base=1.4, retransmit_tries=14))
    made.world.release()
    made.world.link = Link(reorder=0.3, loss=loss)
    for _ in range(6):
        if rng.random() < 0.4:
            made.a.addresses[:] = [rng.choice((A, A2, GONE))]
            changed(made.a)
        else:
            for host in rng.choice(((made.a,), (made.b,), (made.a, made.b))):
                host.do(host.engine.rekey_ike_sa, host.ikes[0])
        made.world.run(rng.choice((0.0, 0.01, 0.03, 0.1, 1.0, 3.0)))
    made.world.settle()
    # a rekeying that is tried again puts it off
    told(made)
    told(made)
    # one that was never left may be left where much is lost
    local = made.a.ike.path.local
    goes(made, local, B)
    assert {local, *made.b.ike.peer_addresses} == set(made.a.addresses)
    made.finish()


@pytest.mark.parametrize("seed", [*range(30), 439, 504, 641, 652])
def test_ways_that_die_rekeyings_and_loss(seed: int) -> None:
    """Two addresses at each end, and mostly one way of four: neither end stays where the other one is not reached."""
    rng = random.Random(f"ways/{seed}")
    settings = IkeSettings(retransmit_timeout=1.0, retransmit_base=1.4, retransmit_tries=14, retransmit_limit=8.0)
    made = pair(seed=seed, settings=settings)
    world, hosts = made.world, ((made.a,), (made.b,), (made.a, made.b))
    all_ways = [(A, B), (A2, B2), (A, B2), (A2, B)]
    world.link = Link(latency=0.03, loss=0.3, reorder=0.1, late=1.0)
    for _ in range(8):
        alive = rng.choice(all_ways)
        world.broken = {frozenset(one) for one in all_ways if one is not alive and rng.random() < 0.7}
        if rng.random() < 0.6:
            for host in rng.choice(hosts):
                host.do(host.engine.rekey_ike_sa, host.ikes[0])
        world.run(rng.choice((0.05, 0.5, 3.0, 20.0)))
    final = rng.choice(all_ways)
    world.broken = {frozenset(one) for one in all_ways if one is not final}
    world.link = Link(latency=0.03)
    world.run(200.0)
    world.settle()
    goes(made, *final)
    made.finish()


@pytest.mark.parametrize("seed", range(12))
def test_a_responder_that_moves_rekeyings_and_loss(seed: int) -> None:
    """It can only say where it is: also while something else waits for an answer, and in what the peer knows alone."""
    rng = random.Random(f"x/{seed}/sun")
    settings = IkeSettings(retransmit_timeout=1.0, retransmit_base=1.4, retransmit_tries=14, retransmit_limit=8.0)
    made = pair(seed=seed, settings=settings)
    made.world.broken.clear()
    made.world.link = Link(latency=0.03, reorder=0.2, loss=0.3, late=1.0)
    for _ in range(8):
        if rng.random() < 0.5:
            made.b.addresses[:] = rng.choice(([B], [B2], [B, B2]))
            changed(made.b)
        else:
            for host in rng.choice(((made.a,), (made.b,), (made.a, made.b))):
                if rng.random() < 0.7:
                    host.do(host.engine.rekey_ike_sa, host.ikes[0])
                elif host.ikes[0].children_up():
                    host.do(host.engine.rekey_child, host.ikes[0].children_up()[0])
        made.world.run(rng.choice((0.0, 0.01, 0.03, 0.1, 1.0, 3.0, 10.0)))
    made.b.addresses[:] = rng.choice(([B], [B2], [B, B2]))
    changed(made.b)
    made.world.link = Link(latency=0.03)
    made.world.run(200.0)
    made.world.settle()
    local, remote = paths(made)[0]
    assert remote in made.b.addresses
    goes(made, local, remote)
    made.finish()


def test_a_responder_whose_address_goes_while_it_checks_the_peer_s() -> None:
    """What the check is about cannot be known any more, and nothing else is said before it is answered."""
    made = pair()
    made.world.broken.clear()
    made.world.hold()
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.deliver("moon")
    assert asks(made.b) is Routability
    made.world.held = []
    made.b.addresses[:] = [B2]
    changed(made.b)
    made.world.release()
    made.world.settle()
    goes(made, A2, B2)
    made.finish()


def test_a_responder_that_changes_again_and_again_says_once_where_it_is() -> None:
    made = pair()
    made.world.broken.clear()
    made.world.hold()
    made.b.do(made.b.ike.ask, Liveness())
    made.b.addresses[:] = [B2]
    for _ in range(3):
        changed(made.b)
    assert [type(request) for request in made.b.ike.queue] == [Announce]


def test_a_responder_that_moves_is_heard_by_who_does_not_know_the_successor() -> None:
    """Our answer to the peer's rekeying is lost, and the peer asks again where we are no more."""
    made = pair(far=[B])
    made.world.broken.clear()
    made.world.hold()
    made.a.do(made.a.engine.rekey_ike_sa, made.a.ike)
    made.world.deliver("moon")
    made.world.deliver("sun", drop=True)
    made.b.addresses[:] = [B2]
    changed(made.b)
    made.world.release()
    made.world.settle()
    goes(made, A, B2)
    made.finish()


# -- keepalives (RFC 3948 section 4)


def keepalives(made: Pair) -> list[Path]:
    """Where moon sends some in five minutes."""
    sent: list[Path] = []
    transmit = made.world.transmit

    def watched(host: SimHost, data: Any, path: Path) -> None:
        if data == KEEPALIVE:
            assert host is made.a
            sent.append(path)
        transmit(host, data, path)

    made.world.transmit = watched  # type: ignore[method-assign]
    made.world.run(301.0)
    made.world.transmit = transmit  # type: ignore[method-assign]
    return sent


@pytest.mark.parametrize("settings", [IkeSettings(), NATS_SHOW], ids=["encapsulated", "plain"])
def test_who_moves_behind_a_nat_keeps_its_mapping(settings: IkeSettings) -> None:
    """There and back again, and once more."""
    made = open_pair(A, settings=settings)
    made.world.release()
    inner = ip_address("10.99.0.5")
    assert not keepalives(made)
    for _ in range(2):
        made.a.addresses[:] = [inner]
        made.world.put_nat(made.a)
        changed(made.a)
        made.world.settle()
        assert len(keepalives(made)) == 15
        made.a.addresses[:] = [A]
        made.a.nat = None
        changed(made.a)
        made.world.settle()
        assert not keepalives(made)
    made.finish()


def test_keepalives_go_on_in_a_successor() -> None:
    """The IKE_SA that it replaces sends none of its own."""
    made = open_pair(A)
    made.a.addresses[:] = [ip_address("10.99.0.5")]
    made.world.put_nat(made.a)
    changed(made.a)
    made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
    made.world.settle()
    assert len(keepalives(made)) == 15
    made.finish()


@pytest.mark.parametrize("rekeyed", [False, True])
@pytest.mark.parametrize("asks", [False, True])
def test_a_nat_that_rebinds_and_a_peer_that_does_not_follow_esp(
    monkeypatch: pytest.MonkeyPatch, asks: bool, rekeyed: bool
) -> None:
    """Section 3.8: moon tells it, before it has ever had a reason to ask, and though its requests are answered."""
    made = Pair(nat=True, mobike=True, dpd_delay=10.0).up()
    monkeypatch.setattr(made.b, "_follow", lambda child, path: None)

    def busy(seconds: int) -> None:
        for _ in range(seconds):
            made.b.send_traffic()
            made.a.send_traffic()
            if asks:
                made.a.do(made.a.engine.rekey_child, made.a.child)
            made.world.run(1.0)

    busy(25)
    if rekeyed:
        made.b.do(made.b.engine.rekey_ike_sa, made.b.ike)
        busy(1)
    port = made.b.current()[0].path.remote_port
    assert made.nat is not None
    made.nat.rebind()
    busy(15)
    assert made.b.current()[0].path.remote_port != port
    made.world.settle()
    moves = len(made.b.events(IkeMoved))
    for _ in range(4):
        # nothing more is told once it is known
        made.world.run(11.0)
    assert len(made.b.events(IkeMoved)) == moves
    made.finish()


# -- whom to believe


def test_an_answer_from_where_nothing_was_sent_moves_nobody() -> None:
    """Somebody on the way sends the genuine answer on from an address of his own."""
    made = pair()
    made.world.hold()
    made.a.do(made.a.engine.rekey_child, made.a.child)
    made.world.deliver("moon")
    assert made.world.held is not None
    ((name, data, _, target),) = made.world.held
    made.world.held[:] = [(name, data, (GONE, 4500), target)]
    made.world.deliver("sun")
    made.world.release()
    made.world.settle()
    goes(made, A, B)
    assert not made.a.events(IkeMoved)
    made.finish()


def test_an_update_that_went_several_ways_is_repeated_on_one() -> None:
    """Its cookie proves nothing of a single address, and its hashes make NATs where there are none."""
    made = pair(settings=NATS_SHOW)
    made.world.broken = {frozenset((A, B)), frozenset((A2, B))}
    made.a.addresses.remove(A)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.run(60.0)
    goes(made, A2, B2)
    for host in (made.a, made.b):
        assert not host.ike.nat_local
        assert not host.ike.nat_remote
    made.finish()


def test_an_update_that_went_several_ways_is_repeated_even_if_answered_on_the_first() -> None:
    """The peer may have taken another copy of it before."""
    made = pair()
    before = made.a.ike.message_id_out
    request = UpdateAddresses()
    made.a.do(made.a.ike.ask, request)
    request.sent_all_ways()
    made.world.settle()
    assert made.a.ike.message_id_out == before + 2
    goes(made, A, B)
    made.finish()


@pytest.mark.parametrize("request_", [UpdateAddresses(), Routability()])
def test_a_cookie_that_comes_back_otherwise_ends_it(request_: UpdateAddresses | Routability) -> None:
    made = pair()
    made.a.do(made.a.ike.ask, request_)
    assert len(request_.cookie) == 16
    request_.cookie = bytes(16)
    made.world.run(1.0)
    assert not made.a.ikes


@pytest.mark.parametrize("make_before_break", [False, True])
def test_a_peer_that_has_forgotten_mobike_is_met_anew(make_before_break: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """libreswan 4.10 knows nothing of it in an IKE_SA that was rekeyed: it answers nothing, and sends where we were."""
    made = pair(settings=IkeSettings(make_before_break=make_before_break), b={"remote_addrs": ("%any",)})
    before, theirs, heed = made.a.ike, made.b.ike, informational._heed
    monkeypatch.setattr(informational, "_heed", lambda sa, *more: [] if sa is theirs else heed(sa, *more))
    made.a.addresses = [A2]
    made.world.broken.discard(frozenset((A2, B)))
    made.a.do(made.a.engine.update_address, before, A2)
    made.world.settle()
    assert made.a.ike is not before
    goes(made, A2, B)
    made.finish()


def test_no_way_of_the_peer_is_taken_for_its_own() -> None:
    """UNACCEPTABLE_ADDRESSES: the peer stays where it was, and so do we."""
    made = pair()
    made.world.broken.clear()
    made.b.addresses.append(A2)  # moon claims an address of sun's
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.run(5.0)
    goes(made, A, B)
    assert not made.b.events(IkeMoved)


def test_refused_with_nowhere_to_go_back() -> None:
    """The next pair is tried, none twice."""
    made = pair(near=[A, A2, GONE])
    made.world.broken.clear()
    made.b.addresses.append(A2)
    made.a.addresses.remove(A)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.run(5.0)
    goes(made, GONE, B)


def test_refused_everywhere() -> None:
    made = pair()
    made.world.broken.clear()
    made.b.addresses.append(A2)
    made.a.addresses.remove(A)
    made.a.do(made.a.engine.update_address, made.a.ike, A2)
    made.world.run(5.0)
    assert made.a.ike.pending is None
    assert made.b.ike.path.remote == A


def test_nats_are_forbidden() -> None:
    """N(NO_NATS_ALLOWED) holds what the sender believes (section 3.9)."""
    path = Path(B, 4500, A, 4500)
    right = A.packed + B.packed + (4500).to_bytes(2, "big") * 2
    assert not nat_is_unexpected([NotifyPayload(NotifyType.NO_NATS_ALLOWED, right)], path)
    assert not nat_is_unexpected([], path)
    for wrong in (right[:-1], right[:-1] + b"\0", B.packed + right[4:], b""):
        assert nat_is_unexpected([NotifyPayload(NotifyType.NO_NATS_ALLOWED, wrong)], path)


class Forbids(UpdateAddresses):
    """An update that allows no NAT."""

    def __init__(self, path: Path, believed: bytes) -> None:
        super().__init__(path)
        self.believed = believed
        self.answers: list[Payload] = []

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        payloads = super().build(sa, now)
        assert payloads is not None
        return [*payloads, NotifyPayload(NotifyType.NO_NATS_ALLOWED, self.believed)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        self.answers = payloads


@pytest.mark.parametrize("right", [True, False])
def test_an_update_that_forbids_nats(right: bool) -> None:
    made = pair()
    made.world.broken.clear()
    path = made.a.ike.path._replace(local=A2)
    ports = path.local_port.to_bytes(2, "big") + path.remote_port.to_bytes(2, "big")
    request = Forbids(path, (A2 if right else GONE).packed + B.packed + ports)
    made.a.do(made.a.ike.ask, request)
    made.world.run(1.0)
    assert bool(notifies(request.answers, NotifyType.UNEXPECTED_NAT_DETECTED)) is not right
    assert made.b.ike.path.remote == (A2 if right else A)


@pytest.mark.parametrize("nat", [False, True])
def test_ike_auth_that_forbids_nats(nat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a NAT on the way it comes to nothing."""

    def forbidding(sa: IkeSa, request: Any = None) -> list[Payload]:
        path = sa.path
        ports = path.local_port.to_bytes(2, "big") + path.remote_port.to_bytes(2, "big")
        return [NotifyPayload(NotifyType.NO_NATS_ALLOWED, path.local.packed + path.remote.packed + ports)]

    made = Pair(mobike=True, nat=nat)
    monkeypatch.setattr("ipsec.ike.auth.mobike_payloads", forbidding)
    made.a.initiate()
    made.world.run(10.0)
    assert bool(made.a.ikes) is bool(made.b.ikes) is not nat


def test_hashes_are_those_of_the_way_that_a_request_came() -> None:
    made = pair(settings=NATS_SHOW)
    a, b = made.a.ike, made.b.ike
    elsewhere = a.path._replace(local=A2, remote=B2)
    sent = detection(b, Path(B2, elsewhere.remote_port, A2, elsewhere.local_port))
    assert behind_nat(a, sent, elsewhere) == (False, False)
    assert behind_nat(a, sent, a.path) == (True, True)
    made.finish()
