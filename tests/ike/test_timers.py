"""Timers: order, replacement, cancellation, and that the dead do not pile up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipsec.ike.timers import Timers


def test_empty() -> None:
    timers = Timers()
    assert timers.next() is None
    assert timers.due(1e9) == []
    assert len(timers) == 0


def test_due_in_order_and_once() -> None:
    timers = Timers()
    for key, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 4.0)):
        timers.set(key, deadline)
    assert timers.next() == 1.0
    assert timers.due(0.9) == []
    assert timers.due(3.0) == ["a", "b", "c"]
    assert timers.due(3.0) == []
    assert "c" not in timers
    assert timers.next() == 4.0


def test_equal_deadlines_keep_the_order_in_which_they_were_set() -> None:
    timers = Timers()
    # keys of different types cannot be compared: nor are they
    keys = ["x", 3, (1, "y"), b"z", frozenset()]
    for key in keys:
        timers.set(key, 5.0)
    assert timers.due(5.0) == keys


def test_set_again_replaces() -> None:
    timers = Timers()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    assert len(timers) == 1
    assert timers.next() == 5.0
    assert timers.due(4.0) == []
    timers.set("a", 2.0)
    assert timers.due(10.0) == ["a"]


def test_cancel() -> None:
    timers = Timers()
    timers.set("a", 1.0)
    timers.set("b", 2.0)
    timers.cancel("a")
    timers.cancel("a")
    timers.cancel("never set")
    assert timers.next() == 2.0
    assert timers.due(9.0) == ["b"]


def test_the_dead_do_not_pile_up() -> None:
    timers = Timers()
    for number in range(100_000):
        timers.set("dpd", 1000.0 + number)
        timers.set(number, 2000.0)
        timers.cancel(number)
    assert len(timers) == 1
    assert len(timers._heap) < 200
    assert timers.next() == 1000.0 + 99_999


def test_many() -> None:
    timers = Timers()
    count = 100_000
    for number in range(count):
        timers.set(number, float(number * 7919 % count))
    for number in range(0, count, 2):
        timers.cancel(number)
    due = timers.due(float(count))
    assert len(due) == count // 2
    assert due == sorted(due, key=lambda number: number * 7919 % count)  # type: ignore[operator]


operations = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 9), st.integers(0, 20)),
    st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("due"), st.just(0), st.integers(0, 20)),
)


@given(st.lists(operations, max_size=300))
def test_as_a_plain_dictionary(steps: list[tuple[str, int, int]]) -> None:
    timers, model = Timers(), dict[int, tuple[int, int]]()
    for count, (what, key, time) in enumerate(steps):
        if what == "set":
            timers.set(key, float(time))
            model[key] = (time, count)
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            expected = sorted((k for k, (deadline, _) in model.items() if deadline <= time), key=model.__getitem__)
            assert timers.due(float(time)) == expected
            for k in expected:
                del model[k]
        assert timers.next() == (min(model.values())[0] if model else None)
        assert len(timers) == len(model)
        assert all((k in timers) == (k in model) for k in range(10))
