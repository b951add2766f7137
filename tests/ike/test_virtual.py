"""Virtual addresses of IKE_SAs that are up (RFC 7296 section 2.19): through reloads of pools, and re-authentication."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike.config import (
    DYNAMIC,
    Action,
    AuthClass,
    IkeSettings,
    IpAddress,
    LocalAuth,
    PoolConfig,
    RemoteAuth,
    SelectorTemplate,
    Unique,
)
from ipsec.ike.events import AddressesAssigned, AddressesReleased, Failed, Initiate
from ipsec.ike.failure import Cause
from tests.pair import A, B, Pair, connection
from tests.sim.host import SimHost

CAROL = ip_address("192.0.2.3")
ANY4, ANY6 = ip_address("0.0.0.0"), ip_address("::")


def inside(last: int, *, first: int = 1, name: str = "p") -> PoolConfig:
    return PoolConfig(name, ip_address(f"10.3.0.{first}"), ip_address(f"10.3.0.{last}"))


def inside6(last: int, *, name: str = "six") -> PoolConfig:
    return PoolConfig(name, ip_address("2001:db8:3::1"), ip_address(f"2001:db8:3::{last:x}"))


def give(pair: Pair, *pools: PoolConfig) -> None:
    """Load sun with other pools, all of which its connection uses."""
    anybody = RemoteAuth(AuthClass.PSK, parse_pattern("*"))
    one = replace(pair.b.connections["c"], pools=tuple(pool.name for pool in pools), remote=anybody)
    pair.b.pools = list(pools)
    pair.b.load(one)


def roads(*pools: PoolConfig, vips: tuple[IpAddress, ...] = (ANY4,), **more: Any) -> Pair:
    """moon asks sun for virtual addresses; sun takes whoever proves who he is."""
    pair = Pair(
        a=more.pop("a", {"vips": vips, "child": {"local_ts": (DYNAMIC,)}}),
        b={"remote_addrs": ("%any",), "child": {"remote_ts": (DYNAMIC,)}},
        **more,
    )
    give(pair, *pools)
    return pair


def guest(pair: Pair, name: str = "carol", address: IpAddress = CAROL, **more: Any) -> SimHost:
    """Somebody else who asks sun for an address."""
    host = pair.world.host(name, address)
    one = connection(address, B, "moon", "sun", **{"vips": (ANY4,), "child": {"local_ts": (DYNAMIC,)}, **more})
    host.load(replace(one, local=LocalAuth(AuthClass.PSK, parse_identity(name))))
    host.initiate()
    pair.world.run(5.0)
    return host


def first(host: SimHost) -> str:
    return str(host.ike.addresses[0])


def leased(host: SimHost, *, online: bool = True) -> dict[str, str]:
    """Who has which address, or had it last, in all pools together."""
    found = [lease for pool in host.engine.pools.values() for lease in pool.leases() if lease.online is online]
    assert len({lease.address for lease in found}) == len(found)
    return {str(lease.address): str(lease.identity) for lease in found}


# -- pools that are loaded anew


@pytest.mark.parametrize(
    "pools",
    [
        pytest.param((inside(99),), id="longer"),
        pytest.param((inside(99, name="q"),), id="renamed"),
        pytest.param((inside(1, name="p"), inside(99, first=2, name="q")), id="split"),
        pytest.param((inside(99, first=2, name="p"), inside(1, name="q")), id="the name has the others"),
        pytest.param((inside6(9), inside(99)), id="with one of the other family"),
    ],
)
def test_a_pool_of_another_range_gives_no_address_twice(pools: tuple[PoolConfig, ...]) -> None:
    pair = roads(inside(9)).up()
    assert first(pair.a) == "10.3.0.1"
    give(pair, *pools)
    assert leased(pair.b) == {"10.3.0.1": "moon"}
    carol = guest(pair)
    assert first(carol) == "10.3.0.2"
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    assert leased(pair.b) == {"10.3.0.2": "carol"}
    assert leased(pair.b, online=False) == {"10.3.0.1": "moon"}


def test_a_pool_that_comes_back_knows_who_has_its_addresses() -> None:
    pair = roads(inside(9)).up()
    give(pair)
    assert not pair.b.engine.pools
    give(pair, inside(9))
    assert leased(pair.b) == {"10.3.0.1": "moon"}
    assert first(guest(pair)) == "10.3.0.2"


def test_an_address_without_a_pool_is_released_all_the_same() -> None:
    pair = roads(inside(9)).up()
    give(pair, inside(99, first=50))
    assert leased(pair.b) == {}
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    assert not pair.b.engine.sas
    assert leased(pair.b) == leased(pair.b, online=False) == {}


def test_an_address_that_is_shared_is_released_by_the_last() -> None:
    # a further CHILD_SA keeps the old IKE_SA for a while
    pair = roads(inside(9), vips=(ip_address("10.3.0.1"),), children=("net", "two"))
    pair.a.initiate()
    pair.world.settle()
    pair.a.initiate(replaces=pair.a.ike.uid)
    pair.world.run(0.5)
    give(pair, inside(99))
    sharing = [sa for sa in pair.b.engine.sas.values() if sa.leases]
    assert len(sharing) == 2
    for sa in sharing:
        assert leased(pair.b) == {"10.3.0.1": "moon"}
        sa.destroy("", pair.world.now)
    assert leased(pair.b) == {}
    assert leased(pair.b, online=False) == {"10.3.0.1": "moon"}


def test_who_is_away_finds_his_address_in_the_other_range() -> None:
    pair = roads(inside(9))
    carol = guest(pair)
    pair.a.initiate()
    pair.world.settle()
    assert (first(carol), first(pair.a)) == ("10.3.0.1", "10.3.0.2")
    for host in (carol, pair.a):
        host.do(host.engine.terminate_ike, host.ike)
        pair.world.settle()
    give(pair, inside(99, first=2))
    assert leased(pair.b, online=False) == {"10.3.0.2": "moon"}
    carol.initiate()
    pair.world.settle()
    assert first(carol) == "10.3.0.3"
    pair.a.initiate()
    pair.world.settle()
    assert first(pair.a) == "10.3.0.2"


def test_dynamic_is_the_address_that_we_were_given() -> None:
    """A responder may leave more: it had to be offered everything before there was an address. charon does as much."""
    pair = roads(inside(9))
    config = pair.b.connections["c"]
    network = SelectorTemplate((ip_address("10.3.0.0"), ip_address("10.3.0.255")))
    pair.b.load(replace(config, children=(replace(config.children[0], remote_ts=(network,)),)))
    pair.a.initiate()
    pair.world.settle()
    assert [str(one) for one in pair.b.child.remote_ts] == ["10.3.0.0/24"]
    assert [str(one) for one in pair.a.child.local_ts] == ["10.3.0.1/32"]
    other = SelectorTemplate((ip_address("10.4.0.0"), ip_address("10.4.0.255")))
    pair.b.load(replace(config, children=(replace(config.children[0], remote_ts=(other,)),)))
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.children


def test_who_has_addresses_of_ours_authenticates_anew_by_himself() -> None:
    """We could not: no CHILD_SA that we ask for is one for his address. What there is stays."""
    pair = roads(inside(9)).up()
    before = pair.b.ike
    pair.b.do(pair.b.engine.reauthenticate, before)
    pair.world.settle()
    assert pair.b.ike is before
    assert not pair.b.events(Initiate)
    pair.finish()


def test_an_ike_sa_without_an_address_to_give_has_mobike_all_the_same() -> None:
    """INTERNAL_ADDRESS_FAILURE is about the CHILD_SA (section 3.15.4); RFC 4555 section 3.1 has no such exception."""
    pair = roads(inside(0, first=1), mobike=True)
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.children
    assert pair.a.ike.mobike
    assert pair.b.ike.mobike


def test_who_asks_for_no_address_where_there_are_pools() -> None:
    """FAILED_CP_REQUIRED: no CHILD_SA, least of all for the address that the peer's own packets come from."""
    pair = roads(inside(9), a={"child": {}})
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.children
    assert not pair.b.children
    assert len(pair.a.ikes) == len(pair.b.ikes) == 1
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.ADDRESS]
    pair.world.close()


def test_ipv6_through_a_reload() -> None:
    pair = roads(inside6(9), vips=(ANY6,)).up()
    give(pair, inside6(0x99, name="other"))
    assert leased(pair.b) == {"2001:db8:3::1": "moon"}


def test_pools_that_overlap_each_take_back_what_they_know() -> None:
    """The file and vici together may have such pools: an address goes back to where it is known, whichever that is."""
    pair = roads(inside(9)).up()
    give(pair, inside(20, name="q"), inside(30, name="r"))
    assert leased(pair.b) == {"10.3.0.1": "moon"}
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    assert leased(pair.b) == {}


# -- re-authentication and what else makes an IKE_SA again


def never_without(host: SimHost) -> None:
    """From its first virtual address on, the host always had one: who counts them never came to nothing."""
    count = 0
    changes = [e for e in host.seen if isinstance(e, AddressesAssigned | AddressesReleased)]
    for event in changes:
        count += 1 if isinstance(event, AddressesAssigned) else -1
        assert count > 0, changes
    assert count == 1


@pytest.mark.parametrize("children", [("net",), ("net", "two")])
@pytest.mark.parametrize("nat", [False, True])
@pytest.mark.parametrize("vips", [(ANY4,), (ANY4, ANY6), (ip_address("10.3.0.9"), ANY6)])
@pytest.mark.parametrize("unique", [Unique.NO, Unique.REPLACE, Unique.KEEP])
def test_reauthentication_keeps_the_addresses(
    unique: Unique, vips: tuple[IpAddress, ...], nat: bool, children: tuple[str, ...]
) -> None:
    """Each IKE_SA of sun's has the same lease until the old one is closed, and nobody else gets it then."""
    pair = roads(inside(8), inside6(8), vips=vips, nat=nat, unique=unique, children=children)
    carol = guest(pair, vips=(ANY4, ANY6), children=children)
    pair.a.initiate()
    pair.world.settle()
    had = pair.a.ike.addresses
    assert [str(address) for address in had] == ["10.3.0.2", "2001:db8:3::2"][: len(vips)]
    for _ in range(2):
        old = pair.a.ike
        pair.a.do(pair.a.engine.reauthenticate, old)
        pair.world.run(30.0)
        assert pair.a.ike is not old
        assert pair.a.ike.addresses == had
        assert {str(address): "moon" for address in had}.items() <= leased(pair.b).items()
        assert len(leased(pair.b)) == len(had) + 2
        assert leased(pair.b, online=False) == {}
    never_without(pair.a)
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    assert set(leased(pair.b).values()) == {"carol"}
    assert len(carol.children) == len(children)


def test_reauthentication_where_another_address_is_given() -> None:
    pair = roads(inside(8)).up()
    give(pair, inside(99, first=50))
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30.0)
    assert first(pair.a) == "10.3.0.50"
    never_without(pair.a)
    pair.finish()


def test_reauthentication_without_an_address_asks_as_configured() -> None:
    """Who got none asks again; so for the family that was refused."""
    pair = roads(inside(8), vips=(ANY6, ANY4)).up()
    assert first(pair.a) == "10.3.0.1"
    give(pair, inside(8), inside6(8))
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30.0)
    assert [str(address) for address in pair.a.ike.addresses] == ["2001:db8:3::1", "10.3.0.1"]


def test_reauthentication_after_a_move_keeps_the_address() -> None:
    """RFC 4555: the peer that may share an address is where it is now, not where it was."""
    pair = roads(inside(8), mobike=True).up()
    moved = ip_address("192.0.2.77")
    pair.a.addresses.append(moved)
    pair.a.do(lambda now: pair.a.engine.update_address(pair.a.ike, moved, now))
    pair.world.settle()
    pair.a.addresses.remove(A)
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30.0)
    assert pair.b.ike.path.remote == moved
    assert first(pair.a) == "10.3.0.1"
    assert leased(pair.b) == {"10.3.0.1": "moon"}


def with_second(pair: Pair) -> Pair:
    """sun remembers nobody, and the first address is free: moon gets the second one again only by asking for it."""
    pair.b.engine.pools["p"]._keep = 0
    carol = guest(pair)
    pair.a.initiate()
    pair.world.settle()
    carol.do(carol.engine.terminate_ike, carol.ike)
    pair.world.settle()
    assert first(pair.a) == "10.3.0.2"
    return pair


def test_break_before_make_asks_for_the_address_again() -> None:
    pair = with_second(roads(inside(8), settings=IkeSettings(make_before_break=False)))
    old = pair.a.ike
    pair.a.do(pair.a.engine.reauthenticate, old)
    pair.world.settle()
    assert pair.a.ike is not old
    assert first(pair.a) == "10.3.0.2"


def test_a_gateway_that_we_are_sent_to_is_asked_for_the_address() -> None:
    """RFC 5685: gateways may share what they know about addresses."""
    pair = with_second(roads(inside(8)))
    where = ip_address("192.0.2.4")
    third = pair.world.host("venus", where)
    third.pools = pair.b.pools
    third.load(replace(pair.b.connections["c"], local_addrs=(str(where),)))
    pair.b.do(pair.b.engine.redirect_peer, pair.b.ike, where)
    pair.world.settle()
    assert pair.a.ike.path.remote == where
    assert first(pair.a) == "10.3.0.2"


@pytest.mark.parametrize("ends", ["dead", "closed"])
def test_what_starts_again_asks_for_the_address(ends: str) -> None:
    actions = {"local_ts": (DYNAMIC,), "dpd_action": Action.START, "close_action": Action.START}
    pair = with_second(roads(inside(8), a={"child": actions, "vips": (ANY4,), "dpd_delay": 10.0}))
    if ends == "dead":
        pair.b.restart()
    else:
        pair.b.do(pair.b.engine.terminate_ike, pair.b.ike)
    pair.world.run(300.0)
    assert first(pair.a) == "10.3.0.2"
    assert leased(pair.b) == {"10.3.0.2": "moon"}


# -- none was assigned


def without(**more: Any) -> Pair:
    """moon asks for an address, and sun has none to give; the child comes up in a second exchange."""
    mine = {"vips": (ANY4,), "child": {"local_ts": (DYNAMIC,)}}
    return Pair(a=mine, b={"remote_addrs": ("%any",), "child": {"remote_ts": (DYNAMIC,)}}, mobike=True, **more)


@pytest.mark.parametrize("by", ["moon", "sun"])
def test_without_an_address_a_child_is_rekeyed_after_a_move(by: str) -> None:
    """A successor carries what was agreed (section 2.9.2), not what ``dynamic`` means where we are now."""
    pair = without()
    pair.a.addresses.append(CAROL)
    pair.a.initiate()
    pair.world.settle()
    pair.up()
    had = pair.a.child.local_ts
    assert had == DYNAMIC.resolve((A,))
    pair.a.do(pair.a.engine.update_address, pair.a.ike, CAROL)
    pair.world.settle()
    assert pair.a.ike.path.local == CAROL
    host = pair.a if by == "moon" else pair.b
    old = host.child
    host.do(host.engine.rekey_child, old)
    pair.world.settle()
    assert host.child is not old
    assert pair.a.child.local_ts == had
    pair.finish()


def test_without_an_address_a_child_is_for_ours_alone() -> None:
    """The peer, whoever asks, gets no more of us than ``dynamic`` means once it is known that there is no address."""
    pair = without()
    everything = SelectorTemplate((ip_address("0.0.0.0"), ip_address("255.255.255.255")))
    one = pair.b.connections["c"]
    pair.b.load(replace(one, children=tuple(replace(child, remote_ts=(everything,)) for child in one.children)))
    pair.a.initiate()
    pair.world.settle()
    pair.b.initiate(remote=A)
    pair.world.settle()
    assert {tuple(child.local_ts) for child in pair.a.children} == {tuple(DYNAMIC.resolve((A,)))}
    pair.world.close()
