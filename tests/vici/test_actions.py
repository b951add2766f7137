"""Commands on engines in the simulated network: ``terminate`` with ``force``, ``redirect``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ipsec.ike.delete import Liveness
from ipsec.ike.events import ChildDown
from ipsec.vici.actions import Actions
from ipsec.vici.server import CommandError
from tests.pair import Pair
from tests.sim.host import SimHost


class Host:
    """A simulated host as what commands need of a daemon; nothing happens while one waits."""

    def __init__(self, host: SimHost) -> None:
        self.engine = host.engine
        self._host = host
        self._late = 0.0
        self.retried: set[tuple[str, str]] = set()
        "children that have failed and are tried again"

    def now(self) -> float:
        """Each look at the clock takes a while, so that a time-out passes."""
        self._late += 0.01
        return self._host.world.now + self._late

    def turn(self) -> None:
        self._host.world.after(self._host)

    def give_up(self, connection: str, child: str) -> int:
        found = {one for one in self.retried if connection in ("", one[0]) and child in ("", one[1])}
        self.retried -= found
        return len(found)

    def observe(self, observer: object) -> Any:
        return lambda: None


def ask(host: SimHost, command: str, **message: str) -> dict[str, Any]:
    """The answer."""
    encoded = {key.replace("_", "-"): value.encode() for key, value in message.items()}
    handler: Any = Actions(Host(host)).commands[command]  # type: ignore[arg-type]
    return dict(asyncio.run(handler(None, encoded)))


def terminate(host: SimHost, **message: str) -> dict[str, Any]:
    """The answer."""
    return ask(host, "terminate", **message)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(
    ("named", "left"),
    [
        ({"ike": "c"}, {("d", "net")}),
        ({"child": "net"}, {("c", "other")}),
        ({"ike": "c", "child": "net"}, {("c", "other"), ("d", "net")}),
    ],
    ids=["connection", "child", "both"],
)
def test_what_is_terminated_is_not_tried_again(named: dict[str, str], left: set[tuple[str, str]], up: bool) -> None:
    """A child of it that has failed would bring it up again; also while nothing else is there to be closed."""
    pair = Pair().up() if up else Pair()
    host = Host(pair.a)
    host.retried = {("c", "net"), ("c", "other"), ("d", "net")}
    encoded = {key: value.encode() for key, value in named.items()}
    handler: Any = Actions(host).commands["terminate"]  # type: ignore[arg-type]
    assert dict(asyncio.run(handler(None, {**encoded, "timeout": b"-1"})))["success"] == "yes"
    assert host.retried == left


@pytest.mark.parametrize("which", ["one of two", "both", "one that is not up"])
def test_one_ike_sa_of_a_connection_takes_no_tries_from_the_others(which: str) -> None:
    pair = Pair()
    pair.a.initiate()
    if which != "one that is not up":
        pair.b.initiate()
        pair.world.settle()
    host = Host(pair.a)
    host.retried = {("c", "net"), ("d", "net")}
    handler: Any = Actions(host).commands["terminate"]  # type: ignore[arg-type]
    named = {"ike": b"c"} if which == "both" else {"ike-id": str(next(iter(pair.a.engine.sas))).encode()}
    asyncio.run(handler(None, {**named, "timeout": b"-1"}))
    assert host.retried == ({("c", "net"), ("d", "net")} if which == "one of two" else {("d", "net")})


@pytest.mark.parametrize("busy", [False, True], ids=["at-once", "behind-another-request"])
@pytest.mark.parametrize("dead", [False, True], ids=["frozen", "dead"])
@pytest.mark.parametrize("again", [False, True], ids=["at-first", "after-a-try"])
def test_children_of_a_peer_that_does_not_answer_are_forgotten(busy: bool, dead: bool, again: bool) -> None:
    """``down --force CONN/CHILD``; the IKE_SA stays until it is known that the peer is dead."""
    pair = Pair().up()
    pair.world.hold()
    if busy:
        pair.a.do(pair.a.ike.ask, Liveness())
    if again:
        with pytest.raises(CommandError, match="not all matching SAs"):
            terminate(pair.a, ike="c", child="net", timeout="50")
    before = len(pair.a.events(ChildDown))
    assert terminate(pair.a, ike="c", child="net", timeout="50", force="yes")["terminated"] == 1
    assert not pair.a.ike.children
    assert len(pair.a.events(ChildDown)) == before + 1
    if dead:
        pair.world.filter = lambda host, data: None
        assert pair.world.until(lambda: not pair.a.engine.sas)
        return
    pair.world.settle()
    assert not pair.b.children
    assert len(pair.a.events(ChildDown)) == before + 1
    pair.finish(children=0)


def test_without_force_nothing_is_forgotten() -> None:
    pair = Pair().up()
    pair.world.hold()
    with pytest.raises(CommandError, match="not all matching SAs"):
        terminate(pair.a, ike="c", child="net", timeout="50")
    with pytest.raises(CommandError, match="no matching SAs"):
        terminate(pair.a, ike="c", child="net", timeout="50")
    assert len(pair.a.ike.children) == 1
    pair.finish(children=0)


@pytest.mark.parametrize("support", [True, False])
def test_only_who_can_be_is_redirected(support: bool) -> None:
    """RFC 5685 section 5: REDIRECT is for clients that have said REDIRECT_SUPPORTED."""
    pair = Pair()
    pair.a.engine.settings = replace(pair.a.engine.settings, follow_redirects=support)
    pair.up()
    wanted = {"ike": "c", "gateway": "192.0.2.3"}
    if support:
        assert ask(pair.b, "redirect", **wanted) == {"success": "yes", "matches": 1}
        assert pair.b.ike.pending is not None
        return
    with pytest.raises(CommandError, match=r"no matching SAs to redirect found: .*RFC 5685") as failed:
        ask(pair.b, "redirect", **wanted)
    assert failed.value.extra == {"matches": "0", "unsupported": 1}
    assert pair.b.ike.pending is None
    with pytest.raises(CommandError, match=r"no matching SAs to redirect found$") as failed:
        ask(pair.a, "redirect", **wanted)
    assert failed.value.extra == {"matches": "0"}
    pair.finish()
