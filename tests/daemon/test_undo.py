"""What becomes of an IKE_SA when a child that its start action began is loaded no more (``ipsec.daemon.vici``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from ipsec.daemon.vici import ViciControl
from ipsec.ike.config import Action
from tests.pair import Pair
from tests.sim.host import SimHost


class Control:
    """A daemon's control in virtual time, as far as a start action is undone."""

    def __init__(self, host: SimHost) -> None:
        self.engine = host.engine
        self._host = host
        self._ike = self
        self.guards = self

    def remove(self, *_: Any, **__: Any) -> None:
        """No guard is in the way."""

    def now(self) -> float:
        """The time of the simulation."""
        return self._host.world.now


@pytest.mark.parametrize("before", ["nothing", "rekeying", "deletion"])
def test_an_ike_sa_without_another_child_goes(before: str) -> None:
    """Also if the child was rekeyed a moment ago, and lingers, or was closed by the peer."""
    pair = Pair(a={"child": {"start_action": Action.START}}).up()
    a, b, world = pair.a, pair.b, pair.world
    if before == "rekeying":
        a.do(a.engine.rekey_child, a.child)
        world.run(2)
    if before == "deletion":
        b.do(b.engine.terminate_child, b.child)
        world.run(20)
    connection = a.connections["c"]
    ViciControl._undo(cast(Any, Control(a)), connection, connection.children[:1], replaced=False)
    world.after(a)
    world.run(10)
    assert not a.ikes
    assert not b.ikes


def test_children_that_are_loaded_anew_come_up_anew() -> None:
    """However many of an IKE_SA that stays: they are closed one after the other, and asked for at once."""
    names = [f"n{number}" for number in range(7)]
    pair = Pair(children=names, a={"child": {"start_action": Action.START}})
    a, world = pair.a, pair.world
    a.initiate()
    world.settle()
    old = a.connections["c"]
    stays, *changed = old.children
    new = replace(old, children=(stays, *(replace(child, rekey_time=77.0) for child in changed)))
    ViciControl._undo(cast(Any, Control(a)), old, changed, replaced=True)
    a.load(new)
    a.engine.rename(a.ike, new)
    for child in new.children[1:]:
        a.engine.initiate(new, [(child, 0)], a.ike.path, world.now)
    world.after(a)
    world.run(10)
    assert len(a.ikes) == 1
    assert {child.name: child.config for child in a.children} == {child.name: child for child in new.children}
    assert len(a.children) == len(names)
