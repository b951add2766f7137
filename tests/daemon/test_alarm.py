"""A timer that is set again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from ipsec.daemon.alarm import Alarm

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Both loops: their handles differ."""
    return LOOPS[request.param]


class Bell:
    """Counts, and says how often the loop's timer was made."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rung: list[float] = []
        self.alarm = Alarm(lambda: self.rung.append(self.loop.time()))


def run(factory: Callable[[], asyncio.AbstractEventLoop], test: Callable[[Bell], object]) -> None:
    async def main() -> None:
        await test(Bell())  # type: ignore[misc]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_it_rings_once_and_not_before_its_time(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test(bell: Bell) -> None:
        due = bell.loop.time() + 0.02
        bell.alarm.set(due)
        await asyncio.sleep(0.06)
        (rung,) = bell.rung
        # a loop's clock has some grain
        assert rung >= due - 0.002
        bell.alarm.set(bell.loop.time())
        await asyncio.sleep(0.02)
        assert len(bell.rung) == 2, "a time that has come rings as well"

    run(factory, test)


def test_an_earlier_time_counts_and_a_later_one_may_ring_early(
    factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bell: Bell) -> None:
        now = bell.loop.time()
        bell.alarm.set(now + 60)
        bell.alarm.set(now + 0.02)
        handle = bell.alarm._handle
        bell.alarm.set(now + 60)
        bell.alarm.set(None)
        assert bell.alarm._handle is handle, "nothing is spent on what is put off"
        await asyncio.sleep(0.06)
        assert len(bell.rung) == 1
        bell.alarm.set(bell.loop.time() + 0.02)
        await asyncio.sleep(0.06)
        assert len(bell.rung) == 2, "one that has rung is forgotten"

    run(factory, test)


def test_it_can_be_stopped(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test(bell: Bell) -> None:
        bell.alarm.stop()
        bell.alarm.set(bell.loop.time() + 0.01)
        bell.alarm.stop()
        bell.alarm.stop()
        await asyncio.sleep(0.04)
        assert not bell.rung
        bell.alarm.set(bell.loop.time() + 0.01)
        await asyncio.sleep(0.04)
        assert len(bell.rung) == 1, "and set again"

    run(factory, test)


def test_whoever_hears_it_can_set_it(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test(bell: Bell) -> None:
        times: list[int] = []

        def ring() -> None:
            times.append(1)
            if len(times) < 3:
                alarm.set(bell.loop.time() + 0.005)

        alarm = Alarm(ring)
        alarm.set(bell.loop.time())
        await asyncio.sleep(0.1)
        assert len(times) == 3

    run(factory, test)
