"""What a command does to thousands of SAs takes turns: peers that have nothing to do with it must not wait."""

from __future__ import annotations

from functools import partial

import pytest

from ipsec.ike.config import Unique
from ipsec.ike.registry import AT_ONCE
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from tests.pair import A, B, Pair, connection

MANY = 3 * AT_ONCE + 1


@pytest.fixture
def pair() -> Pair:
    """Between two hosts as many IKE_SAs as take some turns, each of a connection of its own."""
    pair = Pair(unique=Unique.NEVER)
    pair.a.load(*(connection(A, B, "moon", "sun", name=f"c{n}", unique=Unique.NEVER) for n in range(MANY)))
    for n in range(MANY):
        pair.a.initiate(f"c{n}")
    pair.world.settle()
    assert len(pair.a.ikes) == len(pair.b.ikes) == MANY
    return pair


def test_a_few_are_closed_in_each_turn(pair: Pair) -> None:
    engine, now = pair.a.engine, pair.world.now
    engine.terminate_all(engine.sas.values(), now)
    begun = 0
    while engine._asked:
        assert engine.next_timer() == now
        sent = len(engine.datagrams_to_send())
        assert 0 < sent <= AT_ONCE
        begun += sent
        engine.handle_timer(now)
    begun += len(engine.datagrams_to_send())
    assert begun == MANY
    assert all(sa.state is IkeState.DELETING for sa in engine.sas.values())
    assert engine.next_timer() > now


def test_commands_share_a_turn(pair: Pair) -> None:
    """A reload closes the IKE_SAs of one connection after the other."""
    engine = pair.a.engine
    for sa in list(engine.sas.values()):
        engine.terminate_all([sa], pair.world.now)
    assert len(engine.datagrams_to_send()) == AT_ONCE


def test_what_waits_to_be_closed_is_used_for_nothing_new(pair: Pair) -> None:
    engine = pair.a.engine
    engine.terminate_all(engine.sas.values(), pair.world.now)
    (last,) = engine.named(f"c{MANY - 1}")
    assert last.established
    assert pair.a.initiate(f"c{MANY - 1}") is not last
    pair.world.settle()
    assert [sa.name for sa in pair.a.ikes] == [f"c{MANY - 1}"]


def test_what_was_rekeyed_before_its_turn_is_closed_all_the_same(pair: Pair) -> None:
    """By the peer, who could not know."""
    engine = pair.a.engine
    engine.terminate_all(engine.sas.values(), pair.world.now)
    engine._asked.clear()
    last = pair.a.ikes[-1]
    peers = next(sa for sa in pair.b.ikes if sa.spi_i == last.spi_i)
    pair.b.do(pair.b.engine.rekey_ike_sa, peers)
    pair.world.run(300)
    assert last.uid not in engine.sas
    assert not engine.named(last.name)


def test_a_child_that_has_gone_to_a_successor_is_found_there(pair: Pair) -> None:
    engine = pair.a.engine
    children = pair.a.children
    engine.in_turns("close", ((one, partial(engine.terminate_child, one)) for one in children), pair.world.now)
    waiting, engine._asked = engine._asked, type(engine._asked)()
    last = children[-1]
    old = last.ike
    pair.a.do(engine.rekey_ike_sa, old)
    pair.world.run(300)
    assert last.ike is not old
    assert old.state is IkeState.DESTROYING
    engine._asked = waiting
    pair.world.run(300)
    assert not last.ike.children


def test_what_is_asked_again_before_its_turn_is_done_once(pair: Pair) -> None:
    """Or a client of vici that says it in a loop would fill the memory."""
    engine, now = pair.a.engine, pair.world.now
    done: list[tuple[str, int]] = []

    def ask(what: str, number: int) -> None:
        engine.in_turns(what, ((sa, lambda _, sa=sa: done.append((sa.name, number))) for sa in pair.a.ikes), now)

    for number in range(100):
        ask("this", number)
        ask("that", number)
    assert len(engine._asked) == 2 * MANY  # the first few were done, and are asked for anew
    pair.world.after(pair.a)
    pair.world.run(1)
    assert not engine._asked
    assert done[AT_ONCE:].count(("c0", 99)) == 2
    assert len(done) == 2 * MANY + AT_ONCE


def test_one_that_fails_costs_none_of_the_others(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    engine, seen = pair.a.engine, []

    def work(sa: IkeSa, now: float) -> None:
        if sa.name == "c2":
            raise ValueError("a bug")
        seen.append(sa.name)

    engine.in_turns("work", ((sa, partial(work, sa)) for sa in pair.a.ikes), pair.world.now)
    pair.world.after(pair.a)
    pair.world.run(1)
    assert len(seen) == MANY - 1
    assert "giving up c2" in caplog.text
    assert not engine.named("c2")


def test_the_end_of_all_takes_turns_too(pair: Pair) -> None:
    pair.a.engine.stop(pair.world.now)
    assert len(pair.a.engine.datagrams_to_send()) == AT_ONCE
