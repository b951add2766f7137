"""Beginning again with a peer that the connection may not name: who is meant, where, and how often it is tried."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import ANY_IDENTITY
from ipsec.ike.again import leads_to, standing
from ipsec.ike.config import Action, AuthClass, IkeSettings, RemoteAuth, SelectorTemplate
from ipsec.ike.events import Initiate, IpAddress
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.lifetimes import REPLACED_S, Timer
from ipsec.ike.table import names_its_peers
from tests.ike.test_virtual import ANY4, DYNAMIC, give, inside
from tests.pair import RIGHT, A, B, Pair, connection
from tests.sim.host import SimHost

C = ip_address("192.0.2.3")
ANYBODY = RemoteAuth(AuthClass.PSK, ANY_IDENTITY)
CLOSED = {"child": {"close_action": Action.START}}


def up(host: SimHost) -> list[tuple[str, list[str]]]:
    """Peers of the IKE_SAs that are up, and the children in each."""
    return sorted((str(ike.peer_id), sorted(child.name for child in ike.children_up())) for ike in host.ikes)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("remote", "nat"), [("%any", False), ("192.0.2.0/24", False), ("%any", True)])
def test_a_responder_that_knows_no_address_authenticates_anew_where_the_peer_is(
    remote: str, first: bool, nat: bool
) -> None:
    """Behind a NAT it is at a port of the NAT's."""
    pair = Pair(settings=IkeSettings(make_before_break=first), nat=nat, b={"remote_addrs": (remote,)}).up()
    path = pair.b.ike.path
    pair.b.do(pair.b.engine.reauthenticate, pair.b.ike)
    (event,) = pair.b.events(Initiate)
    assert event.path == path
    pair.world.run(REPLACED_S)
    assert pair.b.ike.initiator
    pair.finish()


def test_a_responder_that_knows_no_address_brings_back_what_the_peer_has_closed() -> None:
    pair = Pair(b={"remote_addrs": ("%any",), **CLOSED}).up()
    ike = pair.b.ike
    pair.a.do(pair.a.engine.terminate_child, pair.a.child)
    pair.world.settle()
    assert pair.b.ike is ike
    # nobody else who comes by the same connection is meant
    assert not leads_to(ike, ike.path._replace(remote=C))
    assert leads_to(pair.a.ike, ike.path)
    assert standing(pair.b.engine, ike.connection) == ike.path
    assert standing(pair.a.engine, pair.a.ike.connection) is None
    pair.finish()


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ((), False),
        (("%any",), False),
        ((str(C), "%any"), False),
        (("gw.example", str(C)), True),
        (("10.0.0.0/8",), False),
    ],
)
def test_who_names_its_peers(texts: tuple[str, ...], named: bool) -> None:
    assert names_its_peers(replace(Pair().a.connections["c"], remote_addrs=texts)) is named


def sun_came(*remote_addrs: str) -> tuple[Pair, SimHost]:
    """moon, whose connection is for these addresses, and that sun has come by; at C there is carol."""
    pair = Pair(a={"remote_addrs": remote_addrs})
    pair.a.load(replace(pair.a.connections["c"], remote=ANYBODY))
    carol = pair.world.host("carol", C)
    carol.load(connection(C, A, "carol", "moon"))
    pair.b.initiate()
    pair.world.run(3)
    return pair, carol


def test_a_peer_that_came_is_not_replaced_by_the_one_that_is_named() -> None:
    """The connection is for carol's address and for anybody: who is to authenticate anew is who has come."""
    pair, carol = sun_came(str(C), "%any")
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30)
    assert up(pair.a) == [("sun", ["net"])]
    assert up(pair.b) == [("moon", ["net"])]
    assert not carol.ikes


def test_an_ike_sa_with_another_peer_replaces_none() -> None:
    """Two peers are named, and the second one came: what leads to the first does not take its place."""
    pair, _ = sun_came(str(C), str(B))
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30)
    assert ("sun", ["net"]) in up(pair.a)
    assert up(pair.b) == [("moon", ["net"])]


def network(text: str) -> SelectorTemplate:
    return SelectorTemplate((ip_address(f"{text}.0"), ip_address(f"{text}.255")))


def test_of_two_behind_a_nat_the_one_that_closed_a_child_gets_it_back() -> None:
    """Both come by one connection, from one address: the port says who is meant."""
    pair = Pair(2, nat=True, children=("net", "two"))
    ours = pair.b.connections["c"]
    nets = [network("10.1.1"), network("10.1.2")]
    both = zip(ours.children, nets, strict=True)
    children = [replace(child, remote_ts=(net,), close_action=Action.START) for child, net in both]
    pair.b.load(replace(ours, remote=ANYBODY, children=tuple(children)))
    carol = pair.world.host("carol", C)
    carol.nat = pair.a.nat
    hers = connection(C, B, "carol", "sun", children=("net", "two"))
    for host, its in ((pair.a, pair.a.connections["c"]), (carol, hers)):
        both = zip(its.children, nets, strict=True)
        own = [replace(child, local_ts=(net,), remote_ts=(RIGHT,)) for child, net in both]
        host.load(replace(its, children=tuple(own)))
    pair.a.initiate(children=["net"])
    pair.world.run(2)
    carol.initiate(children=["two"])
    pair.world.run(3)
    assert up(pair.b) == [("carol", ["two"]), ("moon", ["net"])]
    carol.close_child(carol.children[0])
    pair.world.run(10)
    assert up(pair.b) == [("carol", ["two"]), ("moon", ["net"])]
    assert up(carol) == [("sun", ["two"])]


@pytest.mark.parametrize("how", ["close", "dpd"])
def test_who_had_an_address_of_ours_comes_by_itself(how: str) -> None:
    """It alone can ask for one (section 2.19): what we began would be a tunnel without."""
    actions = {"close_action": Action.START, "dpd_action": Action.START}
    pair = Pair(
        a={"vips": (ANY4,), "child": {"local_ts": (DYNAMIC,)}},
        b={"remote_addrs": ("%any",), "dpd_delay": 10.0, "child": {"remote_ts": (DYNAMIC,), **actions}},
    )
    give(pair, inside(8))
    pair.up()
    if how == "close":
        pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    else:
        pair.world.filter = lambda host, data: None if host is pair.a else data
        pair.world.run(400)
        pair.world.filter = None
    pair.world.run(30)
    assert not pair.b.events(Initiate)
    assert not pair.b.engine.sas


def test_who_has_an_address_of_ours_is_waited_for_to_authenticate_anew() -> None:
    pair = Pair(a={"vips": (ANY4,), "child": {"local_ts": (DYNAMIC,)}}, b={"child": {"remote_ts": (DYNAMIC,)}})
    give(pair, inside(8))
    pair.up()
    ike = pair.b.ike
    pair.b.engine.timers.set((Timer.REAUTH, ike.uid), pair.world.now + 100)
    pair.world.run(400)
    assert not pair.b.events(Initiate)
    assert pair.b.ike is ike
    assert (Timer.REAUTH, ike.uid) not in pair.b.engine.timers
    pair.finish()


@pytest.mark.parametrize("how", ["child", "ike", "dead"])
@pytest.mark.parametrize(
    ("start", "after", "stays"),
    [
        (Action.START, Action.NONE, True),
        (Action.START | Action.TRAP, Action.NONE, False),
        (Action.NONE, Action.NONE, False),
        (Action.START, Action.TRAP, False),
    ],
)
def test_the_log_says_what_stays_down(
    how: str, start: Action, after: Action, stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is to be up from the start, and by default is not brought up again."""
    caplog.set_level(logging.WARNING, "ipsec")
    actions = {"start_action": start, "close_action": after, "dpd_action": after}
    pair = Pair(a={"child": actions}).up()
    if how == "child":
        pair.b.do(pair.b.engine.terminate_child, pair.b.child)
    elif how == "ike":
        pair.b.do(pair.b.engine.terminate_ike, pair.b.ike)
    else:
        pair.a.do(pair.a.engine.failed, pair.a.ike, Failure(Cause.NO_ANSWER, "no answer"))
    pair.world.settle()
    found = [line for line in caplog.messages if "stays down" in line]
    key = "dpd_action" if how == "dead" else "close_action"
    assert found == ([f"c[1]: net stays down, since its {key} is none"] if stays else [])


def test_nobody_is_knocked_for_ever_where_a_peer_was() -> None:
    """``keyingtries = 0`` is for peers that the connection names; that address may be somebody else's by now."""
    more: dict[str, Any] = {"remote_addrs": ("%any",), "dpd_delay": 10.0, "keyingtries": 0}
    pair = Pair(1, b={**more, "child": {"dpd_action": Action.START}}).up()
    pair.world.filter = lambda host, data: None if host is pair.a else data
    pair.world.run(400)
    assert pair.b.events(Initiate)
    pair.world.run(400)
    assert not pair.b.engine.sas


@pytest.mark.parametrize(("address", "tries"), [(B, -1), (C, 1)], ids=["named", "somewhere"])
def test_who_is_named_beside_others_is_tried_as_often_as_configured(address: IpAddress, tries: int) -> None:
    pair = Pair(a={"remote_addrs": (str(B), "%any"), "keyingtries": 0})
    assert pair.a.initiate(remote=address).tries_left == tries
