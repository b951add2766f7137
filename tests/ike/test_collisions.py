"""Exchanges that cross (RFC 7296 sections 2.8, 2.25), each with the order of messages that makes it what it is.

moon (A) and sun (B) have an IKE_SA and one CHILD_SA, ``old``. A script says what happens, word by word:

* ``A:child`` A asks to rekey ``old`` (HDR, SK {N(REKEY_SA), SA, Ni, TSi, TSr}), ``A:child2`` the newest CHILD_SA;
  ``A:ike`` to rekey the IKE_SA (HDR, SK {SA, Ni, KEi}); ``A:del`` to delete ``old`` (HDR, SK {D}); ``A:del2`` the
  newest CHILD_SA, ``A:bye`` the IKE_SA; ``A:new`` for another CHILD_SA (HDR, SK {SA, Ni, TSi, TSr}); ``A:dpd`` whether
  B lives (HDR, SK {}). The same for B.
* ``a`` the oldest datagram of A that is under way arrives; ``a1`` the one after it overtakes; ``-a`` the oldest is
  lost; ``=a`` it arrives, and will arrive again.
* ``t`` time passes until the next timer.

Then the network is good; both ends must agree, carry traffic, close, and leave nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.ike.config import Action
from ipsec.ike.create_child import RETRY_FAILED_S, CreateChild
from ipsec.ike.delete import Liveness
from ipsec.ike.events import Initiate
from ipsec.ike.rekey import OVERTAKEN_S
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import FLAG_RESPONSE
from ipsec.wire.payloads import NotifyPayload, Payload, TsPayload
from tests.ike.hostile import Lab
from tests.ike.hostile import consistent as lab_consistent
from tests.pair import Pair
from tests.sim.host import SimHost
from tests.sim.invariants import unique_ivs
from tests.sim.world import IN_FLIGHT_S

#: name, script, how many CHILD_SAs there are afterwards (None: any, both ends agree), IKE_SAs
CASES: list[tuple[str, str, int | None, int]] = [
    # CHILD_SA rekeying by one end, with each message lost or repeated
    ("child-rekey", "A:child a b a b", 1, 1),
    ("child-rekey-by-responder", "B:child b a b a", 1, 1),
    ("child-rekey-request-lost", "A:child -a t a b", 1, 1),
    ("child-rekey-request-repeated", "A:child =a a b b", 1, 1),
    ("child-rekey-response-lost", "A:child a -b t a b", 1, 1),
    ("child-rekey-response-repeated", "A:child a =b b a b", 1, 1),
    ("child-rekey-delete-lost", "A:child a b -a t a b", 1, 1),
    ("child-rekey-delete-repeated", "A:child a b =a a b b", 1, 1),
    ("child-rekey-delete-response-lost", "A:child a b a -b t a b", 1, 1),
    ("child-rekey-twice-in-a-row", "A:child a b a b A:child a b a b", 1, 1),
    ("child-rekey-twice-at-once", "A:child A:child a b a b", 1, 1),
    ("child-rekey-then-other-end", "A:child a b a b B:child b a b a", 1, 1),
    # both rekey the CHILD_SA (section 2.8.1)
    ("child-x-child", "A:child B:child a b a b", 1, 1),
    ("child-x-child-b-first", "A:child B:child b a b a", 1, 1),
    ("child-x-child-a-sees-all-first", "A:child B:child b b a a", 1, 1),
    ("child-x-child-b-sees-all-first", "A:child B:child a a b b", 1, 1),
    ("child-x-child-a-request-lost", "A:child B:child -a b a b t", 1, 1),
    ("child-x-child-b-request-lost", "A:child B:child -b a b a t", 1, 1),
    ("child-x-child-both-requests-lost", "A:child B:child -a -b t t a b", 1, 1),
    ("child-x-child-a-response-lost", "A:child B:child a b -a b t", 1, 1),
    ("child-x-child-b-response-lost", "A:child B:child a b a -b t", 1, 1),
    ("child-x-child-both-responses-lost", "A:child B:child a b -a -b t t", 1, 1),
    ("child-x-child-response-overtakes", "A:child B:child a b1 b a", 1, 1),
    ("child-x-child-request-after-response", "A:child a B:child b b a a", 1, 1),
    ("child-x-child-request-meets-delete", "A:child B:child a b1 a1 b", 1, 1),
    ("child-x-child-requests-repeated", "A:child B:child =a =b a b a b", 1, 1),
    ("child-x-child-first-delete-lost", "A:child B:child a b a b -a t", 1, 1),
    ("child-x-child-second-delete-lost", "A:child B:child a b a b -b t", 1, 1),
    ("child-x-child-both-deletes-lost", "A:child B:child a b a b -a -b t t", 1, 1),
    # rekeying and deleting the CHILD_SA (section 2.25.1)
    ("child-x-delete", "A:child B:del a b a b", None, 1),
    ("child-x-delete-delete-first", "A:child B:del b a b a", None, 1),
    ("child-x-delete-request-lost", "A:child B:del -a b a t", None, 1),
    ("child-x-delete-delete-lost", "A:child B:del -b a b t", None, 1),
    ("child-x-delete-response-overtakes", "A:child a B:del b1 b a", None, 1),
    ("child-x-delete-after-response", "A:child a B:del b b a a", None, 1),
    ("delete-x-child", "A:del B:child a b a b", None, 1),
    ("delete-x-child-child-first", "A:del B:child b a b a", None, 1),
    ("child-then-own-delete", "A:child A:del a b a b", None, 1),
    ("rekey-of-deleted-child", "B:del b A:child a b", 0, 1),
    # both delete the CHILD_SA (section 1.4.1)
    ("delete", "A:del a b", 0, 1),
    ("delete-lost", "A:del -a t a b", 0, 1),
    ("delete-response-lost", "A:del a -b t a b", 0, 1),
    ("delete-x-delete", "A:del B:del a b a b", 0, 1),
    ("delete-x-delete-b-first", "A:del B:del b a b a", 0, 1),
    ("delete-x-delete-one-lost", "A:del B:del -a b a t", 0, 1),
    ("delete-x-delete-both-lost", "A:del B:del -a -b t t", 0, 1),
    ("delete-x-delete-responses-lost", "A:del B:del a b -a -b t t", 0, 1),
    # IKE_SA rekeying (sections 1.3.2, 2.8.2)
    ("ike-rekey", "A:ike a b a b", 1, 1),
    ("ike-rekey-by-responder", "B:ike b a b a", 1, 1),
    ("ike-rekey-request-lost", "A:ike -a t a b", 1, 1),
    ("ike-rekey-response-lost", "A:ike a -b t a b", 1, 1),
    ("ike-rekey-delete-lost", "A:ike a b -a t a b", 1, 1),
    ("ike-rekey-delete-response-lost", "A:ike a b a -b t a b", 1, 1),
    ("ike-x-ike", "A:ike B:ike a b a b", 1, 1),
    ("ike-x-ike-b-first", "A:ike B:ike b a b a", 1, 1),
    ("ike-x-ike-a-sees-all-first", "A:ike B:ike b b a a", 1, 1),
    ("ike-x-ike-b-sees-all-first", "A:ike B:ike a a b b", 1, 1),
    ("ike-x-ike-a-request-lost", "A:ike B:ike -a b a b t", 1, 1),
    ("ike-x-ike-b-request-lost", "A:ike B:ike -b a b a t", 1, 1),
    ("ike-x-ike-responses-lost", "A:ike B:ike a b -a -b t t", 1, 1),
    ("ike-x-ike-deletes-lost", "A:ike B:ike a b a b -a t", 1, 1),
    ("ike-x-ike-response-overtakes", "A:ike B:ike a b1 b a", 1, 1),
    # IKE_SA rekeying and CHILD_SAs (section 2.25.2)
    ("ike-x-child", "A:ike B:child a b a b", 1, 1),
    ("ike-x-child-child-first", "A:ike B:child b a b a", 1, 1),
    ("child-x-ike", "A:child B:ike a b a b", 1, 1),
    ("ike-x-child-response-lost", "A:ike B:child a b -b t", 1, 1),
    ("ike-x-delete", "A:ike B:del a b a b", None, 1),
    ("ike-x-delete-delete-first", "A:ike B:del b a b a", None, 1),
    ("delete-x-ike", "A:del B:ike a b a b", None, 1),
    ("ike-x-new", "A:ike B:new a b a b", 2, 1),
    ("ike-x-new-new-first", "A:ike B:new b a b a", 2, 1),
    ("ike-then-own-child", "A:ike A:child a b", 1, 1),
    ("ike-then-own-new", "A:ike A:new a b", 2, 1),
    ("ike-x-dpd", "A:ike B:dpd a b a b", 1, 1),
    # deleting the IKE_SA, and everything else
    ("bye", "A:bye a b", 0, 0),
    ("bye-lost", "A:bye -a t a b", 0, 0),
    ("bye-response-lost", "A:bye a -b t a b", 0, 0),
    ("bye-x-bye", "A:bye B:bye a b", 0, 0),
    ("bye-x-bye-one-lost", "A:bye B:bye -a b t", 0, 0),
    ("bye-x-child", "A:bye B:child a b", 0, 0),
    ("bye-x-child-child-first", "A:bye B:child b a", 0, 0),
    ("bye-x-delete", "A:bye B:del b a", 0, 0),
    ("bye-x-ike", "A:bye B:ike a b", 0, 0),
    ("bye-x-ike-ike-first", "A:bye B:ike b a", 0, 0),
    ("bye-x-new", "A:bye B:new b a", 0, 0),
    ("bye-x-dpd", "A:bye B:dpd b a", 0, 0),
    ("ike-then-own-bye", "A:ike A:bye a b", 0, 0),
    # found by test_seeds
    ("rekey-of-a-child-whose-response-is-lost", "A:new a -b B:child2 b a t", 2, 1),
    ("lost-child-collision-then-bye", "A:child B:child a b a b -a -b A:bye a B:bye b", 0, 0),
    ("ike-x-ike-then-bye-of-the-refused", "B:ike A:ike -b a b B:bye t b a", 0, 0),
    ("ike-x-ike-delete-through-the-successor", "A:ike B:ike -a b a B:del b1 a b", 0, 1),
    ("delete-before-the-answer", "A:new a B:del2 b1 b a", 1, 1),
    ("delete-before-the-answer-that-is-lost", "A:new a -b B:del2 b a t a", 1, 1),
    ("delete-of-the-successor-before-the-answer", "A:child a B:del2 b1 b a", None, 1),
    # field failures of others
    ("strongswan-1896-collision-and-lost-packet", "A:child B:child a b -a b a t", 1, 1),
    ("strongswan-1458-rekey-x-delete-at-once", "A:child a B:del b b a", None, 1),
    ("strongswan-3042-link-bounce-in-mid-rekey", "A:ike a -b t -a t -a t a b", 1, 1),
    ("libreswan-514-ike-rekey-dies-half-way", "A:ike B:child -a -b t t -a t", 1, 1),
]


class Script:
    def __init__(self, seed: int | str, **options: Any) -> None:
        self.pair = Pair(seed, **options).up()
        self.world = self.pair.world
        self.hosts = {"a": self.pair.a, "b": self.pair.b}
        self.old = {name: (host.ike, host.child) for name, host in self.hosts.items()}
        self.world.hold()

    def run(self, text: str) -> None:
        for word in text.split():
            if word == "t":
                self.world.steps = 0
                timers = [t for h in self.hosts.values() if (t := h.engine.next_timer()) is not None]
                if timers:
                    self.world.run(min(timers) - self.world.now + 0.001)
            elif word[1:2] == ":":
                self.act(self.hosts[word[0].lower()], word[2:])
            else:
                self.packet(word)

    def packet(self, word: str) -> None:
        how, name = (word[0], word[1:]) if word[0] in "-=" else ("", word)
        host = self.hosts[name[0]].name
        which = int(name[1:] or 0)
        # what a script moves may not exist any more, where both ends have come to an end sooner
        if which < len(self.world.waiting(host)):
            self.world.deliver(host, which, keep=how == "=", drop=how == "-")

    def act(self, host: SimHost, what: str) -> None:
        name = "a" if host is self.pair.a else "b"
        sa, child = self.old[name]
        sa, child = (host.ikes or [sa])[0], (host.children or [child])[0]
        engine = host.engine
        commands = {
            "child": lambda: host.do(engine.rekey_child, child),
            "child2": lambda: host.do(engine.rekey_child, host.children[-1]),
            "ike": lambda: host.do(engine.rekey_ike_sa, sa),
            "del": lambda: host.do(engine.terminate_child, child),
            "del2": lambda: host.do(engine.terminate_child, host.children[-1]),
            "bye": lambda: host.do(engine.terminate_ike, sa),
            "new": lambda: host.do(sa.ask, CreateChild(child.config)),
            "dpd": lambda: host.do(sa.ask, Liveness()),
        }
        commands[what]()


def finish(script: Script, children: int | None, ikes: int) -> None:
    pair = script.pair
    if children is None:
        script.world.settle()
        children = len(pair.a.children)
        assert children <= 1
    if ikes:
        pair.finish(children, ikes)
    else:
        script.world.release()
        script.world.until(lambda: not (pair.a.engine.sas or pair.b.engine.sas))
        script.world.run(IN_FLIGHT_S)
        assert not pair.a.ikes
        script.world.close()


@pytest.mark.parametrize(("text", "children", "ikes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_collision(text: str, children: int | None, ikes: int) -> None:
    """With several seeds, so that each end has the lowest nonce at times."""
    for seed in range(4):
        with unique_ivs():
            script = Script(seed)
            script.run(text)
            finish(script, children, ikes)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_delete_that_overtakes_the_answer_to_our_rekeying_leaves_no_successor(seed: int, lost: bool) -> None:
    """Without anybody's timer: another peer may have none. If the answer never comes we do not wait for ever."""
    script = Script(seed)
    script.run("A:ike B:ike a b a b1" + (" -b" if lost else " b"))
    script.world.release()
    script.world.run(OVERTAKEN_S + 1)
    left = [len(host.engine.sas) for host in script.hosts.values()]
    assert left[0] == 1
    assert left[1] == 1 or lost
    finish(script, 1, 1)


def test_a_delete_that_overtakes_the_refusal_of_our_rekeying_leaves_nothing_to_delete() -> None:
    """The peer has closed the old one: to a Delete of ours nobody would answer."""
    script = Script(0)
    script.run("A:ike B:ike b a1 a b b")
    assert len(script.pair.a.engine.sas) == 1
    finish(script, 1, 1)


def test_a_successor_that_the_peer_cannot_install_is_not_waited_for() -> None:
    """Its Delete is faster than its answer, so the old one stays at both ends; and can be rekeyed."""
    script = Script(0)
    host = script.pair.b
    install = host._install
    host._install = lambda event: host.engine.child_failed(event.child, "no room", script.world.now)
    script.run("A:child a b1 b a")
    host._install = install
    finish(script, 1, 1)


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations_with_replacement(("child", "ike", "del", "new", "bye"), 2))
)
def test_every_order_of_the_first_four(one: str, other: str) -> None:
    """Two operations at once, and the first four datagrams in every order, each arriving or lost."""
    words = ("a", "b", "-a", "-b")
    for order in itertools.product(words, repeat=4):
        script = Script(f"{one}/{other}")
        script.run(f"A:{one} B:{other} " + " ".join(order))
        world, pair = script.world, script.pair
        world.settle()
        pair.agree(len(pair.a.children))
        world.close()


@pytest.mark.parametrize("seed", [0, 3, 4, 5, 8])
def test_an_ike_sa_is_not_rekeyed_while_the_peer_may_wait_for_its_child_sa(seed: int) -> None:
    """Both rekey ``old``, B's successor stays, and A's answer is lost: charon would not refuse HDR, SK {SA, Ni, KEi},
    and as it asks again in the old IKE_SA alone, there would be nothing in place of ``old``."""
    script = Script(seed)
    a = script.pair.a
    script.run("A:child B:child a b -a b a b")
    old_sa, old = script.old["a"]
    assert old.state is ChildState.REKEYED
    script.run("A:ike")
    assert old_sa.state is IkeState.ESTABLISHED
    script.world.release()
    script.world.run(30.0)
    assert a.ike is not old_sa
    finish(script, 1, 1)


@pytest.mark.parametrize("seed", [0, 3, 5, 8])
def test_a_child_sa_that_the_peer_never_deletes_ends_nevertheless(seed: int) -> None:
    """Both rekey ``old``, B's successor stays, and its HDR, SK {D} never comes: at the end of ``old`` it takes over."""
    pair = Pair(seed, child={"rekey_time": 50.0, "rand_time": 0.0, "life_time": 60.0}).up()
    world, a, b = pair.world, pair.a, pair.b
    old = a.child
    world.run(30.0)
    requests = (ExchangeType.INFORMATIONAL, 0)
    world.filter = lambda host, data: None if host is b and (data[18], data[19] & FLAG_RESPONSE) == requests else data
    world.hold()
    for one in (a, b):
        one.do(one.engine.rekey_child, one.child)
    for name in ("moon", "sun", "moon", "sun"):
        world.deliver(name)
    assert old.state is ChildState.REKEYED
    world.release()
    world.run(old.expires_at - world.now - 1)
    assert (old.serves, old.has_out) == (True, True)
    world.run(2.0)
    assert not old.serves
    assert a.child is not old
    assert a.child.state is ChildState.INSTALLED
    assert a.child.has_out
    world.filter = None
    world.run(30.0)
    pair.finish()


def test_refused_ike_rekeying_has_an_end() -> None:
    """HDR, SK {SA, Ni, KEi} of both cross, A's is refused as B is done, and B's HDR, SK {D} never comes (2.8.2)."""
    script = Script(0)
    a, b = script.pair.a, script.pair.b
    old = b.ike.spi_i
    # B's successor reaches A; A's own request is late, and meets an IKE_SA that B is closing
    script.run("A:ike B:ike b a1 a b1")
    assert a.engine.sas[script.old["a"][0].uid].state is IkeState.REKEYING
    script.world.filter = lambda host, data: None if host is b and data[:8] == old else data
    script.world.release()
    script.world.run(120.0)
    script.world.filter = None
    script.pair.finish()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_peer_that_dies_in_a_collision_is_called_again(who: str, seed: int) -> None:
    """Both rekey ``old``, and whoever wins dies before its HDR, SK {D}: what carries traffic is what is restarted."""
    pair = Pair(seed, dpd_delay=10.0, child={"dpd_action": Action.START}).up()
    world, host = pair.world, getattr(pair, who)
    world.hold()
    for one in (pair.a, pair.b):
        one.do(one.engine.rekey_child, one.child)
    for name in ("moon", "sun", "moon", "sun"):
        world.deliver(name)
    world.held = []
    world.filter = lambda *_: None
    host.connections.clear()
    world.until(lambda: not host.ikes)
    assert len(host.events(Initiate)) == 1
    assert not host.up


def test_what_the_peer_does_not_know_is_replaced_and_forgotten() -> None:
    """N(CHILD_SA_NOT_FOUND), section 2.25.1: another CHILD_SA, and nothing is kept of the old one."""
    pair = Pair().up()
    a, b = pair.a, pair.b
    old = a.child
    b.do(lambda now: b.engine.child_deleted(b.child, "lost", now))
    a.do(a.engine.rekey_child, old)
    pair.world.settle()
    assert old.uid not in a.engine.children
    assert old.uid not in a.up
    pair.finish()


@pytest.mark.parametrize("exchange", [ExchangeType.IKE_AUTH, ExchangeType.CREATE_CHILD_SA])
def test_what_we_cannot_take_is_closed_at_the_peer(exchange: ExchangeType) -> None:
    """HDR, SK {SA, Nr, TSi, TSr} with a TSr that was not offered; HDR, SK {D} follows, and rekeying works later on."""
    pair = Pair()
    a, b = pair.a, pair.b
    handle = b.engine.handle_request

    def widen(sa: IkeSa, number: int, payloads: list[Payload], *rest: Any) -> list[Payload] | None:
        answer = handle(sa, number, payloads, *rest)
        for payload in answer or []:
            if number == exchange and payload.type == PayloadType.TSR:
                assert isinstance(payload, TsPayload)
                payload.selectors = [replace(payload.selectors[0], start=ip_address("0.0.0.0"))]
                b.engine.handle_request = handle  # type: ignore[method-assign]
        return answer

    b.engine.handle_request = widen  # type: ignore[method-assign]
    if exchange == ExchangeType.IKE_AUTH:
        a.initiate()
        pair.world.settle()
        pair.agree(children=0)
        assert not b.engine.children
        a.initiate()
    else:
        pair.up()
        old = a.child
        a.do(a.engine.rekey_child, old)
        pair.world.settle()
        assert a.child is old
        assert len(b.engine.children) == 1
        pair.world.until(lambda: a.children != [old], patience=3 * RETRY_FAILED_S)
        assert a.child is not old
    pair.finish()


def test_names_are_unique() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 60


def test_strongswan_2477_a_refusal_within_a_collision() -> None:
    """Both rekey ``old``; B answers A's HDR, SK {N(REKEY_SA), SA, Ni, TSi, TSr} with TS_UNACCEPTABLE, A takes B's."""
    for seed in range(4):
        script = Script(seed)
        b = script.pair.b
        handle = b.engine.handle_request

        def refuse(sa: IkeSa, exchange: int, payloads: list[Payload], *rest: Any, real: Any = handle) -> Any:
            if exchange == ExchangeType.CREATE_CHILD_SA:
                return [NotifyPayload(NotifyType.TS_UNACCEPTABLE)]
            return real(sa, exchange, payloads, *rest)

        b.engine.handle_request = refuse  # type: ignore[method-assign]
        script.run("A:child B:child a b a b")
        b.engine.handle_request = handle  # type: ignore[method-assign]
        # B's successor stays, and both ends send through it
        script.pair.finish()


def test_strongswan_2945_a_peer_rekeys_the_same_child_sa_twice() -> None:
    """It has had an answer to the first request, forgets it, and asks once more without a Delete in between."""

    class Forgetful(CreateChild):
        def answered(self, *_: Any, **__: Any) -> None:
            """As if nothing had come."""

    lab = Lab().initiate()
    peer, child = lab.sa(lab.b), lab.sa(lab.b).children_up()[0]
    for _ in range(3):
        sent = len(lab.sent)
        child.state = ChildState.INSTALLED
        peer.ask(Forgetful(child.config, replaces=child), lab.now)
        lab.pump()
        lab_consistent(lab.a)
        assert len(lab.sent) - sent == 2
        assert lab.sa(lab.a).children_up()
    # the second and third were refused: there is a successor already
    assert len(lab.sa(lab.a).children) == 2
    lab.pass_time(60)
    assert lab.sa(lab.a).children_up()
    lab.b.terminate_ike(peer, lab.now)
    lab.pump()
    assert not lab.a.sas
    assert not lab.a.children
    assert not lab.a.host.reserved | lab.a.host.installed
