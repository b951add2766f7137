"""All deadlines of the engine in one heap."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

_COMPACT_MIN = 64
"heap entries below which dead ones do no harm"


class Timers:
    """Deadlines by key. Setting, cancelling and taking one cost O(log n); those set for the same time keep their order.

    A cancelled entry stays in the heap until it comes to the top or the dead outnumber the living.
    """

    __slots__ = ("_count", "_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._live: dict[Hashable, int] = {}
        "the count of each key's only entry that is not dead"
        self._count = 0

    def __len__(self) -> int:
        """How many timers are set."""
        return len(self._live)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._live

    def set(self, key: Hashable, deadline: float) -> None:
        """Have ``key`` come due at ``deadline``, instead of any time set for it before."""
        self._count += 1
        self._live[key] = self._count
        heapq.heappush(self._heap, (deadline, self._count, key))
        self._compact()

    def cancel(self, key: Hashable) -> None:
        """Forget ``key``; nothing happens if it is not set."""
        if self._live.pop(key, None) is not None:
            self._compact()

    def next(self) -> float | None:
        """The earliest deadline."""
        heap, live = self._heap, self._live
        while heap:
            deadline, count, key = heap[0]
            if live.get(key) == count:
                return deadline
            heapq.heappop(heap)
        return None

    def due(self, now: float, limit: int = 1 << 30) -> list[Hashable]:
        """Up to ``limit`` keys whose deadline is not after ``now``, earliest first; they are no longer set.

        Cancelling one of them afterwards takes nothing off the list: whoever works through it and may end what a later
        key stands for has to look whether that still exists.
        """
        keys: list[Hashable] = []
        heap, live = self._heap, self._live
        while heap and heap[0][0] <= now and len(keys) < limit:
            _, count, key = heapq.heappop(heap)
            if live.get(key) == count:
                del live[key]
                keys.append(key)
        return keys

    def _compact(self) -> None:
        heap, live = self._heap, self._live
        # half of the entries were set or cancelled since the last time, so this costs each of them O(1)
        if len(heap) > _COMPACT_MIN and len(heap) > 2 * len(live):
            self._heap = [entry for entry in heap if live.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
