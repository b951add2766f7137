"""What we close ourselves stays closed, whatever the peer does before it has our Delete."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ipsec.ike.config import Action
from ipsec.ike.delete import Liveness
from ipsec.ike.events import Initiate
from ipsec.ike.lifetimes import Timer
from ipsec.ike.redirect import redirect
from ipsec.ike.state import ChildState
from tests.pair import Pair


@pytest.fixture
def pair() -> Pair:
    """Nothing arrives any more by itself."""
    actions = {"close_action": Action.START, "dpd_action": Action.START}
    pair = Pair(a={"child": actions}).up()
    pair.world.hold()
    return pair


def end(pair: Pair) -> None:
    """Until the engine of A has given up."""
    while pair.a.engine.sas:
        when = pair.a.engine.next_timer()
        assert when is not None
        pair.world.steps = 0
        pair.world.run(max(when - pair.world.now, 0) + 0.001)


@pytest.mark.parametrize("waits", [False, True])
def test_a_delete_of_the_peer_that_crosses_ours_is_no_reason_to_begin_again(pair: Pair, waits: bool) -> None:
    a, b = pair.a, pair.b
    if waits:
        a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_ike, a.ike)
    b.do(b.engine.terminate_ike, b.ike)
    pair.world.deliver("sun", 0)
    assert not a.engine.sas
    assert not a.events(Initiate)


def test_nor_is_a_peer_that_was_dead_before(pair: Pair) -> None:
    a = pair.a
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_ike, a.ike)
    end(pair)
    assert not a.events(Initiate)


def test_nor_is_it_authenticated_anew(pair: Pair) -> None:
    a = pair.a
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_ike, a.ike)
    a.do(a.engine.reauthenticate, a.ike)
    assert not a.events(Initiate)


def test_what_goes_because_nobody_has_renewed_it_is_brought_back(pair: Pair) -> None:
    """The peer that does not answer a rekeying is as dead as any other."""
    a = pair.a
    a.do(a.engine.rekey_ike_sa, a.ike)
    a.engine.timers.set((Timer.OVER, a.ike.uid), pair.world.now + 1)
    end(pair)
    assert a.events(Initiate)


def test_nor_is_a_child_that_waits_to_be_closed(pair: Pair) -> None:
    """The peer closes it first, or wants to rekey it."""
    a, b = pair.a, pair.b
    child, theirs = a.child, b.child
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_children, [child])
    assert child.state is ChildState.INSTALLED
    b.do(b.engine.rekey_child, theirs)
    pair.world.deliver("sun", 0)
    assert child.peer_rekey is None
    assert a.children == [child]
    for host in ("sun", "moon"):
        while pair.world.waiting(host):
            pair.world.deliver(host, 0)
    pair.world.release()
    pair.world.run(30)
    assert not a.children
    assert not b.children
    assert not a.events(Initiate)


def test_nor_one_that_the_peer_closes_first(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_children, [a.child])
    b.do(b.engine.terminate_child, b.child)
    pair.world.deliver("sun", 0)
    assert not a.children
    assert not a.events(Initiate)


def test_to_close_one_again_and_again_leaves_one_thing_to_do(pair: Pair) -> None:
    a = pair.a
    a.do(a.ike.ask, Liveness())
    for _ in range(3):
        a.do(a.engine.terminate_children, [a.child])
    assert len(a.ike.queue) == 1


def test_nor_does_it_come_up_where_the_peer_sends_us(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_ike, a.ike)
    b.do(b.ike.ask, Liveness([redirect(ip_address("198.51.100.7"))]))
    pair.world.deliver("sun", 0)
    assert not a.events(Initiate)


def test_what_waits_to_be_closed_is_not_made_anew_with_the_others() -> None:
    """By a re-authentication, which takes along what is up."""
    pair = Pair(children=("net", "two"))
    a, world = pair.a, pair.world
    a.initiate()
    world.settle()
    world.hold()
    doomed, stays = a.children
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_children, [doomed])
    a.do(a.engine.reauthenticate, a.ike)
    world.release()
    world.run(30)
    assert [child.name for child in a.children] == [stays.name]


def test_its_end_in_time_changes_nothing_about_that(pair: Pair) -> None:
    a = pair.a
    a.do(a.ike.ask, Liveness())
    a.do(a.engine.terminate_ike, a.ike)
    a.engine.timers.set((Timer.OVER, a.ike.uid), pair.world.now + 1)
    end(pair)
    assert not a.events(Initiate)
