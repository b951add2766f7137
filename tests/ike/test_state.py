"""The tables of ipsec.ike.state: every pair of states is either allowed or a StateError."""

from __future__ import annotations

from itertools import product

import pytest

from ipsec.ike.state import (
    ACCEPTED_REQUESTS,
    CHILD_TRANSITIONS,
    CHILD_UP,
    IKE_TRANSITIONS,
    ChildState,
    IkeState,
    StateError,
    check_child,
    check_ike,
)
from ipsec.wire.iana import ExchangeType
from tests.pair import Pair


@pytest.mark.parametrize(("old", "new"), list(product(IkeState, IkeState)))
def test_ike(old: IkeState, new: IkeState) -> None:
    if new in IKE_TRANSITIONS[old]:
        assert check_ike(old, new) is new
    else:
        with pytest.raises(StateError, match=f"{old.value} -> {new.value}"):
            check_ike(old, new)


@pytest.mark.parametrize(("old", "new"), list(product(ChildState, ChildState)))
def test_child(old: ChildState, new: ChildState) -> None:
    if new in CHILD_TRANSITIONS[old]:
        assert check_child(old, new) is new
    else:
        with pytest.raises(StateError, match=f"{old.value} -> {new.value}"):
            check_child(old, new)


@pytest.mark.parametrize("table", [IKE_TRANSITIONS, CHILD_TRANSITIONS], ids=["ike", "child"])
def test_shape(table: dict) -> None:  # type: ignore[type-arg]
    """Every state is there, all but the last can end, the last is the end, and nothing follows itself."""
    kind = type(next(iter(table)))
    assert set(table) == set(kind)
    assert table[kind.DESTROYING] == frozenset()
    for state, following in table.items():
        assert state not in following
        assert state is kind.DESTROYING or kind.DESTROYING in following
    reached, todo = {kind.CREATED}, [kind.CREATED]
    while todo:
        fresh = table[todo.pop()] - reached
        reached |= fresh
        todo += fresh
    assert reached == set(kind)


def test_nobody_unauthenticated_gets_further() -> None:
    """CVE-2014-2338: before IKE_AUTH is done there is IKE_AUTH, and what comes before it, and nothing else."""
    assert ACCEPTED_REQUESTS[IkeState.CREATED] == frozenset()
    first = {ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH}
    assert ACCEPTED_REQUESTS[IkeState.CONNECTING] == first
    for state in set(IkeState) - {IkeState.CREATED, IkeState.CONNECTING}:
        assert not first & ACCEPTED_REQUESTS[state]
    assert set(ACCEPTED_REQUESTS) == set(IkeState)
    assert {ChildState.INSTALLED, ChildState.REKEYING} == CHILD_UP


def test_a_wrong_transition_costs_one_ike_sa() -> None:
    pair = Pair().up()
    with pytest.raises(StateError):
        pair.a.ike.change(IkeState.CREATED)
