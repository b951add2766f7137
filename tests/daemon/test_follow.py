"""IKE_SAs after a change of addresses, without any: the engine and the ways are stand-ins that record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec.daemon.follow import SLICE_S, Follower
from tests.daemon.test_ike import run

COST_S = SLICE_S / 4


class Lab:
    """IKE_SAs by unique id; looking at one takes a quarter of a slice."""

    def __init__(self, uids: range) -> None:
        self.sas = {uid: self.sa(uid) for uid in uids}
        self.seen: list[int] = []
        self.turns = 0
        self.now = 0.0
        self.then: Callable[[int], None] = lambda uid: None
        "what happens when one was looked at"
        self.moved: list[tuple[int, str]] = []
        paths = SimpleNamespace(best_local=lambda sa: sa.best)
        self.follower = Follower(cast(Any, self), cast(Any, paths), self.turn, clock=lambda: self.now)

    @staticmethod
    def sa(uid: int) -> Any:
        return SimpleNamespace(uid=uid, established=True, path=SimpleNamespace(local="here"), best="here")

    def turn(self) -> None:
        self.turns += 1

    def update_address(self, sa: Any, local: str, now: float) -> None:
        self.moved.append((sa.uid, local))

    def addresses_changed(self, sa: Any, now: float) -> None:
        self.seen.append(sa.uid)
        self.now += COST_S
        self.then(sa.uid)

    async def done(self) -> None:
        while self.follower._soon is not None:
            before = len(self.seen)
            await asyncio.sleep(0)
            assert len(self.seen) - before <= SLICE_S / COST_S


def test_few_in_each_turn_of_the_loop_and_each_once() -> None:
    async def main() -> None:
        lab = Lab(range(1, 42))
        lab.follower.host_changed()
        assert len(lab.seen) == SLICE_S / COST_S
        await lab.done()
        assert lab.seen == list(range(1, 42))
        assert lab.turns > 10

    run(main())


def test_a_change_meanwhile_lets_it_finish_and_begin_anew() -> None:
    """However often something changes, the last one has its turn."""

    async def main() -> None:
        lab = Lab(range(1, 12))
        lab.follower.host_changed()
        for _ in range(3):
            lab.follower.host_changed()
        await lab.done()
        assert lab.seen == [*range(1, 12), *range(1, 12)]

    run(main())


def test_successors_have_their_turn_and_what_has_gone_has_none() -> None:
    async def main() -> None:
        lab = Lab(range(1, 12))

        def rekeyed(uid: int) -> None:
            if uid == 2:
                lab.sas[20] = lab.sa(20)
                del lab.sas[9]
                lab.sas[8].established = False

        lab.then = rekeyed
        lab.follower.host_changed()
        await lab.done()
        assert lab.seen == [1, 2, 3, 4, 5, 6, 7, 10, 11, 20]

    run(main())


def test_the_kernels_choice_is_followed() -> None:
    async def main() -> None:
        lab = Lab(range(1, 4))
        lab.sas[2].best = "there"
        lab.follower.host_changed()
        assert lab.moved == [(2, "there")]
        assert lab.seen == [1, 2, 3]

    run(main())


def test_stopped_it_looks_at_nothing() -> None:
    async def main() -> None:
        lab = Lab(range(1, 42))
        lab.follower.host_changed()
        lab.follower.stop()
        before = len(lab.seen)
        await asyncio.sleep(0.01)
        assert len(lab.seen) == before

    run(main())


def test_one_that_cannot_follow_keeps_none_from_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        lab = Lab(range(1, 12))

        def fail(uid: int) -> None:
            if uid == 3:
                raise ValueError("a bug")

        lab.then = fail
        lab.follower.host_changed()
        await lab.done()
        assert lab.seen == list(range(1, 12))

    run(main())
    assert "does not follow" in caplog.text
