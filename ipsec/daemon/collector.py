"""Keeps Python's cyclic garbage collector from stalling the event loop.

A full collection looks at every object there is, which takes over 100 ms with a thousand tunnels, and finds nothing.
What has survived one is therefore not looked at again. IKE_SAs, CHILD_SAs and what hangs on them are freed by their
reference counts, as no cycle is left of them when they are forgotten.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

#: container objects that make a collection of the youngest, such collections to one of the middle, and of these to a
#: full one beyond this number: none has to look at more than some 10 000 objects, which takes 5 ms. Larger numbers do
#: the same work in fewer and longer halts
_THRESHOLDS = (1000, 5, 1)


class Collector:
    """The collector of this process, as a daemon wants it from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self._thresholds: tuple[int, int, int] | None = None

    def start(self) -> None:
        """Collect once, and leave what is there now alone from then on. Later calls do that again."""
        gc.collect()
        gc.freeze()
        if self._thresholds is None:
            self._thresholds = gc.get_threshold()
            gc.set_threshold(*_THRESHOLDS)
            gc.callbacks.append(_after)

    def stop(self) -> None:
        """As it was before; safe in any state."""
        if self._thresholds is not None:
            gc.callbacks.remove(_after)
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()
            self._thresholds = None


def _after(phase: str, info: Mapping[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
