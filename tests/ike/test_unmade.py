"""A further child that was asked for in an IKE_SA that ends before the child is there.

What becomes of it then, by who wants it, is in ``tests/daemon/test_unmade.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.config import Action
from ipsec.ike.delete import Liveness
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.events import ChildNotMade
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.lifetimes import Timer
from ipsec.ike.redirect import redirect
from ipsec.wire.iana import ExchangeType, NotifyType, Protocol
from ipsec.wire.ike import parse_header
from ipsec.wire.payloads import NotifyPayload, Payload
from tests.pair import A, B, Pair, connection

ELSEWHERE = ip_address("192.0.2.9")
BOTH = ("net", "two")

COMES = "it comes up, by itself"
TOLD = "whoever wants it tries again, and the log has it"
SAID = "the log has it"
ENDED = "we have ended it: nothing is said, and nothing comes back"


def asked(where: str, patch: pytest.MonkeyPatch, **child: Action) -> Pair:
    """moon has ``net`` up, and has asked for ``two``."""
    pair = Pair(7, children=BOTH, a={"remote_addrs": (str(B), str(ELSEWHERE)), "child": child})
    a, world = pair.a, pair.world
    a.initiate(children=["net"])
    world.run(1)
    if where == "busy":
        # the peer is, and will be asked again
        patch.setattr("ipsec.ike.dispatch.handle_create_child", refuse)
        a.initiate(children=["two"])
        world.run(0.1)
        patch.undo()
        return pair
    deaf = ExchangeType.INFORMATIONAL if where == "queued" else ExchangeType.CREATE_CHILD_SA
    world.filter = lambda host, data: None if host is a and parse_header(data).exchange == deaf else data
    if where == "queued":
        a.do(a.ike.ask, Liveness())
    a.initiate(children=["two"])
    world.run(0.1)
    return pair


def refuse(*_: object) -> list[Payload]:
    raise PeerError(NotifyType.TEMPORARY_FAILURE, "busy")


# -- how an IKE_SA ends


def no_answer(pair: Pair) -> None:
    pair.world.filter = lambda host, data: None if host is pair.a else data
    pair.world.run(400)


def peer_has_restarted(pair: Pair) -> None:
    pair.a.do(pair.a.engine.failed, pair.a.ike, Failure(Cause.RESTARTED, "the peer has restarted"))


def malformed_answer(pair: Pair) -> None:
    def fail(now: float) -> None:
        raise SaFailedError(Failure(Cause.MALFORMED, "an answer that makes no sense"))

    pair.a.do(pair.a.engine.contained, pair.a.ike, fail)


def malformed_request(pair: Pair) -> None:
    pair.b.do(pair.b.ike.ask, Liveness([NotifyPayload(NotifyType.REDIRECT, b"x")]))


def bug_of_ours(pair: Pair) -> None:
    pair.a.do(pair.a.engine.contained, pair.a.ike, lambda now: 1 // 0)


def peer_does_not_believe_us(pair: Pair) -> None:
    pair.b.do(pair.b.ike.ask, Liveness([NotifyPayload(NotifyType.AUTHENTICATION_FAILED)]))


def over_time(pair: Pair) -> None:
    pair.a.engine.timers.set((Timer.OVER, pair.a.ike.uid), pair.world.now + 0.5)
    pair.world.run(1)


def over_time_of_a_dead_peer(pair: Pair) -> None:
    over_time(pair)
    no_answer(pair)


def session_is_over(pair: Pair) -> None:
    pair.a.ike.session_end = pair.world.now + 0.5
    over_time(pair)


def initial_contact(pair: Pair) -> None:
    pair.b.restart()
    pair.b.initiate(children=["net"])


def peer_comes_from_elsewhere(pair: Pair) -> None:
    """``unique = replace``."""
    pair.b.addresses = [ELSEWHERE]
    pair.b.restart()
    pair.b.engine.first_contact = lambda sa: False  # type: ignore[method-assign]
    pair.b.initiate(children=["net"])
    pair.world.run(400)


def peer_comes_again(pair: Pair) -> None:
    """From where it is, and never closes the old one."""
    pair.b.restart()
    pair.b.engine.first_contact = lambda sa: False  # type: ignore[method-assign]
    pair.b.initiate(children=["net"])
    pair.world.run(20)


def peer_reauthenticates(pair: Pair) -> None:
    pair.b.do(pair.b.engine.reauthenticate, pair.b.ike)


def reauthenticate(pair: Pair) -> None:
    pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)


def break_before_make(pair: Pair) -> None:
    pair.a.engine.settings = replace(pair.a.engine.settings, make_before_break=False)
    reauthenticate(pair)


def redirected(pair: Pair) -> None:
    gateway = pair.world.host("gateway", ELSEWHERE)
    gateway.load(connection(ELSEWHERE, A, "sun", "moon", children=BOTH))
    pair.b.do(pair.b.ike.ask, Liveness([redirect(ELSEWHERE)]))


def rekey(pair: Pair) -> None:
    pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)


def peer_closes(pair: Pair) -> None:
    pair.b.do(pair.b.engine.terminate_ike, pair.b.ike)


def close(pair: Pair) -> None:
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)


def reload(pair: Pair) -> None:
    pair.a.do(pair.a.engine.terminate_all, [pair.a.ike])


def close_at_a_dead_peer(pair: Pair) -> None:
    close(pair)
    no_answer(pair)


def close_by_force(pair: Pair) -> None:
    (ike,) = pair.a.ikes
    reload(pair)
    pair.a.do(ike.destroy, "terminated")


@pytest.mark.parametrize("where", ["in flight", "queued", "busy"])
@pytest.mark.parametrize(
    ("end", "what"),
    [
        (no_answer, TOLD),
        (peer_has_restarted, TOLD),
        (malformed_answer, TOLD),
        (malformed_request, TOLD),
        (bug_of_ours, TOLD),
        (peer_does_not_believe_us, TOLD),
        (over_time, TOLD),
        (over_time_of_a_dead_peer, TOLD),
        (session_is_over, TOLD),
        (initial_contact, TOLD),
        (peer_comes_from_elsewhere, TOLD),
        (peer_comes_again, TOLD),
        (reauthenticate, COMES),
        (break_before_make, COMES),
        (redirected, COMES),
        (rekey, COMES),
        (peer_reauthenticates, SAID),
        (peer_closes, SAID),
        (close, ENDED),
        (reload, ENDED),
        (close_at_a_dead_peer, ENDED),
        (close_by_force, ENDED),
    ],
)
def test_what_becomes_of_it(
    end: Callable[[Pair], None],
    what: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = asked(where, monkeypatch)
    a, world = pair.a, pair.world
    (old,) = a.ikes
    caplog.set_level(logging.INFO, "ipsec")
    caplog.clear()
    end(pair)
    world.run(0.5)
    world.filter = None
    world.run(60)
    assert old.uid not in a.engine.sas
    told = [event.reason for event in a.events(ChildNotMade) if event.config.name == "two"]
    said = [line for line in caplog.messages if "child two" in line]
    up = [child.name for child in a.children].count("two")
    assert (len(told), len(said), up) == {COMES: (0, 0, 1), TOLD: (1, 1, 0), SAID: (0, 1, 0), ENDED: (0, 0, 0)}[what]
    world.close()


def test_what_is_to_be_up_also_if_the_peer_closes_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """``close_action = start``."""
    pair = asked("in flight", monkeypatch, close_action=Action.START)
    peer_closes(pair)
    pair.world.run(1)
    assert [event.config.name for event in pair.a.events(ChildNotMade)] == ["two"]


@pytest.mark.parametrize("where", ["queued", "in flight"])
def test_what_dies_comes_back_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``net`` brings back an IKE_SA by its ``dpd_action``, through which ``two`` comes as well, as often as asked."""
    pair = asked(where, monkeypatch, dpd_action=Action.START)
    assert pair.world.until(lambda: not pair.a.ikes)
    for _ in range(2):
        pair.a.initiate(children=["two"])
    pair.world.filter = None
    pair.world.run(60)
    assert sorted(child.name for child in pair.a.children) == ["net", "two"]
    pair.finish(children=2)


@pytest.mark.parametrize("why", [NotifyType.TEMPORARY_FAILURE, NotifyType.TS_UNACCEPTABLE])
def test_what_we_close_is_not_brought_back_by_a_refusal(why: NotifyType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which comes when the IKE_SA waits to be closed."""

    def no(*_: object) -> list[Payload]:
        raise PeerError(why, "no")

    monkeypatch.setattr("ipsec.ike.dispatch.handle_create_child", no)
    pair = asked("in flight", monkeypatch)
    close(pair)
    pair.world.filter = None
    pair.world.run(60)
    assert not pair.a.events(ChildNotMade)
    pair.world.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_comes_up_while_its_ike_sa_is_authenticated_anew_is_not_lost(when: str) -> None:
    """It was asked for before that began, or after, and is up before the new IKE_SA is."""
    pair = Pair(7, children=BOTH)
    a, world = pair.a, pair.world
    a.initiate(children=["net"])
    world.run(1)
    old = a.ike
    if when == "before":
        a.initiate(children=["two"])
    reauthenticate(pair)
    if when == "after":
        a.initiate(children=["two"])
    assert world.until(lambda: len(old.children_up()) == 2)
    world.run(60)
    assert a.ike is not old
    assert not a.events(ChildNotMade)
    pair.finish(children=2)


def test_what_is_closed_while_it_is_authenticated_anew_hands_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = asked("in flight", monkeypatch)
    reauthenticate(pair)
    close(pair)
    pair.world.run(1)
    pair.world.filter = None
    pair.world.run(60)
    assert [child.name for child in pair.a.children] == ["net"]
    assert not pair.a.events(ChildNotMade)
    pair.finish()


def still(pair: Pair) -> None:
    """Nothing else happens."""


@pytest.mark.parametrize("then", [still, rekey, reauthenticate, break_before_make])
def test_what_is_closed_while_it_is_rekeyed_does_not_stay(then: Callable[[Pair], None]) -> None:
    """Neither as the successor that was asked for before, nor in another IKE_SA."""
    pair = Pair(7)
    a, world = pair.a, pair.world
    a.initiate(children=["net"])
    world.run(1)
    deaf = ExchangeType.CREATE_CHILD_SA
    world.filter = lambda host, data: None if host is a and parse_header(data).exchange == deaf else data
    (child,) = a.children
    a.do(a.engine.rekey_child, child)
    a.do(a.engine.terminate_children, [child])
    then(pair)
    world.run(1)
    world.filter = None
    world.run(60)
    assert not a.children
    pair.world.close()


def test_what_expires_while_it_is_rekeyed_stays_as_its_successor() -> None:
    pair = Pair(7)
    a, world = pair.a, pair.world
    a.initiate(children=["net"])
    world.run(1)
    world.filter = lambda host, data: None if host is a else data
    (child,) = a.children
    a.do(a.engine.rekey_child, child)
    a.do(lambda now: a.engine.expire_child(child, now, hard=True))
    world.run(1)
    world.filter = None
    world.run(60)
    assert [one.name for one in a.children] == ["net"]
    pair.finish()


def test_what_waits_for_a_successor_is_asked_for_once_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer has begun to rekey the IKE_SA, and does not go on (RFC 9370)."""
    pair = Pair(7, children=BOTH, proposals=parse_proposals(["aes128gcm16-prfsha256-x25519-ke1_ecp256"], Protocol.IKE))
    a, world = pair.a, pair.world
    a.initiate(children=["net"])
    world.run(1)
    followup = ExchangeType.IKE_FOLLOWUP_KE
    world.filter = lambda host, data: None if parse_header(data).exchange == followup else data
    pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    world.run(0.1)
    for _ in range(2):
        a.initiate(children=["two"])
    assert a.ike.rekey is not None
    assert len(a.ike.rekey.postponed) == 1
    peer_has_restarted(pair)
    assert [event.config.name for event in a.events(ChildNotMade)] == ["two"]
