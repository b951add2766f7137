"""Threads for what may block for long, as looking up a name does, none of which the end of the process waits for.

Those of asyncio's executors, of ``concurrent.futures`` and of uvloop are all joined at the end, however long a name
server says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """At most so many at once; whoever comes then waits for one to end."""

    def __init__(self, most: int, name: str) -> None:
        self._free = asyncio.Semaphore(most)
        self._name = name

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises. Who no longer waits for it leaves it running, and its place taken."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def ended(tell: Callable[[Any], None], what: object) -> None:
            self._free.release()
            if not answer.done():
                tell(what)

        def thread() -> None:
            tell: Callable[[Any], None] = answer.set_result
            what: object
            try:
                what = work()
            except Exception as error:
                tell, what = answer.set_exception, error
            # RuntimeError: the loop is closed, and nobody waits
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended, tell, what)

        await self._free.acquire()
        try:
            threading.Thread(target=thread, name=self._name, daemon=True).start()
        except BaseException:
            self._free.release()
            raise
        return await answer
