"""A timer that is set again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls ``ring`` in the event loop at the time that was set, or before it: whoever hears it looks what is due.

    Most times of IKE are put off, or fall away, before they come. So one that is put off costs nothing but a call too
    early, and a call that is not needed once it has none any more.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None
        # uvloop's handle has no ``when`` if that is now
        self._due = 0.0

    def set(self, when: float | None) -> None:
        """Ring at ``when`` of the loop's clock at the latest; None: there is nothing to ring for."""
        if when is None or (self._handle is not None and self._due <= when):
            return
        self.stop()
        self._due = when
        self._handle = self._loop.call_at(when, self._reached)

    def stop(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _reached(self) -> None:
        self._handle = None
        self._ring()
