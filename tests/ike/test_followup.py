"""IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4): rekeyings that take several exchanges, alone and when they cross.

Scripts are those of ``test_collisions``. With classic groups as additional key exchanges a run is a function of its
seed, and quick; that ML-KEM does the same is in ``test_intermediate``.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.delete import Liveness
from ipsec.ike.events import ChildDown
from ipsec.ike.followup import AWAITED_S
from ipsec.ike.sa import QUEUE_MAX
from ipsec.ike.state import ChildState
from ipsec.wire.iana import ExchangeType, Protocol
from ipsec.wire.ike import parse_header
from tests.ike.hostile import Lab
from tests.ike.hostile import consistent as lab_consistent
from tests.ike.test_collisions import CASES, Script, finish
from tests.sim.invariants import unique_ivs


def further(*more: str) -> dict[str, Any]:
    """Options of a pair whose IKE_SAs and CHILD_SAs have additional key exchanges."""
    tail = "-".join(("x25519", *(f"ke{n}_{word}" for n, word in enumerate(more, 1))))
    ike = parse_proposals([f"aes128gcm16-prfsha256-{tail}"], Protocol.IKE)
    esp = parse_proposals([f"aes128gcm16-{tail}"], Protocol.ESP)
    return {"proposals": ike, "child": {"esp_proposals": esp}}


ONE, TWO = further("ecp256"), further("ecp256", "x448")

#: name, script, how many CHILD_SAs there are afterwards (None: any, both ends agree), IKE_SAs
MORE: list[tuple[str, str, int | None, int]] = [
    # with each message lost or repeated
    ("child", "A:child a b a b a b", 1, 1),
    ("child-followup-lost", "A:child a b -a t a b a b", 1, 1),
    ("child-followup-repeated", "A:child a b =a a b b a b", 1, 1),
    ("child-followup-response-lost", "A:child a b a -b t a b a b", 1, 1),
    ("child-followup-response-repeated", "A:child a b a =b b a b", 1, 1),
    ("new", "A:new a b a b", 2, 1),
    ("new-followup-lost", "A:new a b -a t a b", 2, 1),
    ("new-followup-response-lost", "A:new a b a -b t a b", 2, 1),
    ("ike", "A:ike a b a b a b", 1, 1),
    ("ike-followup-lost", "A:ike a b -a t a b a b", 1, 1),
    ("ike-followup-repeated", "A:ike a b =a a b b a b", 1, 1),
    ("ike-followup-response-lost", "A:ike a b a -b t a b a b", 1, 1),
    # both begin, and one end is further than the other
    ("child-x-child", "A:child B:child a b a b a b a b", 1, 1),
    ("child-x-child-one-far", "A:child B:child b a b a b a", 1, 1),
    ("child-x-child-when-one-is-done", "A:child a b a B:child b a b a", 1, 1),
    ("child-x-child-in-the-middle", "A:child a B:child b a b a b", 1, 1),
    ("child-x-child-request-late", "A:child B:child b a1 b a b a", 1, 1),
    ("child-x-child-request-lost", "A:child B:child -a b a b a b t", 1, 1),
    ("child-x-child-response-lost", "A:child B:child a b -a b a b t", 1, 1),
    ("child-x-child-followup-lost", "A:child B:child a b a b -a -b t t", 1, 1),
    ("ike-x-ike", "A:ike B:ike a b a b a b a b", 1, 1),
    ("ike-x-ike-one-far", "A:ike B:ike b a b a b a", 1, 1),
    ("ike-x-ike-in-the-middle", "A:ike a B:ike b a b a b", 1, 1),
    ("ike-x-ike-request-late", "A:ike B:ike b a1 b a b a", 1, 1),
    ("ike-x-ike-request-lost", "A:ike B:ike -a b a b a b t", 1, 1),
    ("ike-x-ike-followup-lost", "A:ike B:ike a b a b -a -b t t", 1, 1),
    # something else in the middle
    ("child-middle-x-delete", "A:child a b B:del a b a b a", None, 1),
    ("child-middle-x-own-delete", "A:child a b A:del a b a b a b", None, 1),
    ("child-middle-x-ike", "A:child a b B:ike a b a b a b", 1, 1),
    ("child-middle-x-new", "A:child a b B:new a b a b a b", 2, 1),
    ("child-middle-x-bye", "A:child a b B:bye a b a b", 0, 0),
    ("ike-middle-x-child", "A:ike a b B:child a b a b a b", 1, 1),
    ("ike-middle-x-new", "A:ike a b B:new a b a b a b", 2, 1),
    ("ike-middle-x-delete", "A:ike a b B:del a b a b a b", 0, 1),
    ("ike-middle-x-bye", "A:ike a b B:bye a b a b", 0, 0),
    ("ike-middle-x-dpd", "A:ike a b B:dpd a b a b", 1, 1),
]


def go(text: str, children: int | None, ikes: int, options: dict[str, Any], seeds: range) -> None:
    for seed in seeds:
        with unique_ivs():
            script = Script(seed, **options)
            script.run(text)
            finish(script, children, ikes)


@pytest.mark.parametrize(("text", "children", "ikes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_crosses_crosses_with_additional_key_exchanges_too(text: str, children: int | None, ikes: int) -> None:
    go(text, children, ikes, ONE, range(4))
    go(text, children, ikes, TWO, range(2))


@pytest.mark.parametrize(("text", "children", "ikes"), [c[1:] for c in MORE], ids=[c[0] for c in MORE])
def test_exchange(text: str, children: int | None, ikes: int) -> None:
    """With several seeds, so that each end has the lowest nonce at times."""
    go(text, children, ikes, ONE, range(6))
    go(text, children, ikes, TWO, range(3))


@pytest.mark.parametrize("what", ["child", "ike"])
def test_what_is_begun_goes_on_before_all_that_waits(what: str) -> None:
    """However much that is: else the rest of it would never be asked, and the old SA never be replaced."""
    lab = Lab(**ONE).initiate()
    sa = lab.sa(lab.a)
    (old,) = sa.children_up()
    if what == "child":
        lab.a.rekey_child(old, lab.now)
    else:
        lab.a.rekey_ike_sa(sa, lab.now)
    for _ in range(QUEUE_MAX):
        sa.ask(Liveness(), lab.now)
    lab.pump()
    new = lab.sa(lab.a)
    assert (new is not sa) is (what == "ike")
    (child,) = new.children_up()
    assert (child is not old) is (what == "child")
    assert child.state is ChildState.INSTALLED
    lab_consistent(lab.a)


def test_a_child_sa_that_is_closed_meanwhile_is_reported_whatever_becomes_of_the_successor() -> None:
    """B closes the CHILD_SA while A rekeys the IKE_SA; B's Delete never comes through, neither here nor there."""
    lab = Lab(**ONE, settings={"retransmit_tries": 1}).initiate()
    (child,) = lab.sa(lab.b).children_up()
    lab.a.rekey_ike_sa(lab.sa(lab.a), lab.now)
    for target, data, path in lab.flow():
        if target is lab.a and not parse_header(data).response:
            continue
        lab.deliver(target, data, path)
        if lab.sa(lab.b).awaited and child.state is ChildState.INSTALLED:
            lab.b.terminate_child(child, lab.now)
    assert child.ike is lab.sa(lab.b)
    assert child.state is ChildState.DELETING
    while lab.b.sas:
        due = lab.b.next_timer()
        assert due is not None
        lab.b.handle_timer(due)
        lab.b.datagrams_to_send()
    down = [event for event in lab.b.drain() if isinstance(event, ChildDown)]
    assert [event.child for event in down] == [child]


def test_a_child_sa_that_is_closed_meanwhile_is_reported_though_the_answer_comes_last() -> None:
    """The same, but A has heard B's Delete; its answer comes when the successor has been closed as well."""
    lab = Lab(**ONE).initiate()
    old = lab.sa(lab.b)
    (child,) = old.children_up()
    lab.a.rekey_ike_sa(lab.sa(lab.a), lab.now)
    late = []
    for target, data, path in lab.flow():
        header = parse_header(data)
        if target is lab.b and header.spi_i == old.spi_i and header.exchange == ExchangeType.INFORMATIONAL:
            late.append((target, data, path))
            continue
        lab.deliver(target, data, path)
        if old.awaited and child.state is ChildState.INSTALLED:
            lab.b.terminate_child(child, lab.now)
    assert child.ike is not old
    assert child.state is ChildState.DELETING
    lab.b.terminate_ike(child.ike, lab.now)
    for target, data, path in lab.flow():
        lab.deliver(target, data, path)
    assert child.state is ChildState.DESTROYING
    for target, data, path in late:
        lab.deliver(target, data, path)
    down = [event for event in lab.b.drain() if isinstance(event, ChildDown)]
    assert [event.child for event in down] == [child]


def test_what_waits_for_a_successor_is_not_endless() -> None:
    """A peer begins to rekey the IKE_SA and does not go on; meanwhile somebody says the same again and again."""
    lab = Lab(**ONE).initiate()
    ours, sa = lab.sa(lab.a), lab.sa(lab.b)
    (child,) = sa.children_up()
    lab.a.rekey_ike_sa(ours, lab.now)
    for target, data, path in lab.flow():
        if target is lab.a:
            break
        lab.deliver(target, data, path)
    assert sa.awaited
    assert sa.rekey is not None
    for _ in range(3 * QUEUE_MAX):
        lab.b.rekey_child(child, lab.now)
    assert len(sa.rekey.postponed) == QUEUE_MAX
    lab.now += AWAITED_S + 1
    lab.b.handle_timer(lab.now)
    assert sa.rekey is None
    assert sa.pending is not None
    lab_consistent(lab.b)


ORDERS = list(itertools.product(("a", "b", "-a", "-b"), repeat=4))


@pytest.mark.parametrize("most", [64, pytest.param(len(ORDERS), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations_with_replacement(("child", "ike", "del", "new", "bye"), 2))
)
def test_orders_of_the_first_four(one: str, other: str, most: int) -> None:
    """Two operations at once, and the first four datagrams in other orders, each arriving or lost."""
    for order in random.Random(f"{one}/{other}").sample(ORDERS, most):
        script = Script(f"{one}/{other}", **ONE)
        script.run(f"A:{one} B:{other} " + " ".join(order))
        world, pair = script.world, script.pair
        world.settle()
        pair.agree(len(pair.a.children))
        world.close()
