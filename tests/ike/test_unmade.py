"""A further child that was asked for in an IKE_SA that ends before the child is there.

What becomes of it then, by who wants it, is in ``tests/daemon/test_unmade.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ipsec.ike.delete import Liveness
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.events import ChildNotMade
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.lifetimes import Timer
from ipsec.ike.redirect import redirect
from ipsec.wire.iana import ExchangeType, NotifyType
from ipsec.wire.ike import parse_header
from ipsec.wire.payloads import NotifyPayload, Payload
from tests.pair import A, B, Pair, connection

ELSEWHERE = ip_address("192.0.2.9")
BOTH = ("net", "two")

COMES = "it comes up, by itself"
LOST = "nothing is heard of it any more"


def asked(where: str, patch: pytest.MonkeyPatch) -> Pair:
    """moon has ``net`` up, and has asked for ``two``."""
    pair = Pair(7, children=BOTH, a={"remote_addrs": (str(B), str(ELSEWHERE))})
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
        (no_answer, LOST),
        (peer_has_restarted, LOST),
        (malformed_answer, LOST),
        (malformed_request, LOST),
        (bug_of_ours, LOST),
        (peer_does_not_believe_us, LOST),
        (over_time, LOST),
        (over_time_of_a_dead_peer, LOST),
        (session_is_over, LOST),
        (initial_contact, LOST),
        (peer_comes_from_elsewhere, LOST),
        (peer_comes_again, LOST),
        (reauthenticate, LOST),
        (break_before_make, LOST),
        (redirected, COMES),
        (rekey, COMES),
        (peer_reauthenticates, LOST),
        (peer_closes, LOST),
        (close, LOST),
        (reload, LOST),
        (close_at_a_dead_peer, LOST),
        (close_by_force, LOST),
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
    assert (len(told), len(said), up) == {COMES: (0, 0, 1), LOST: (0, 0, 0)}[what]
    world.close()
