"""Keeps systemd informed, if it started us: ready, reloading, stopping, how it goes, and the watchdog.

The watchdog is fed by a timer of the event loop, so that systemd ends a daemon whose loop hangs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from ipsec.net import systemd

#: ``systemctl status`` shows what has changed after so long
STATUS_S = 5.0


class Supervisor:
    """Speaks from ``ready`` to ``stopping``; before and after, and without systemd, it says nothing."""

    def __init__(self, status: Callable[[], str]) -> None:
        """``status`` is one line for people."""
        self._status = status
        self._told = ""
        self._due: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._speaks = False

    def ready(self) -> None:
        """Sockets are bound and the configuration is loaded."""
        self._speaks = bool(os.environ.get("NOTIFY_SOCKET"))
        if not self._speaks:
            return
        self._told = self._status()
        systemd.notify("READY=1", f"STATUS={self._told}")
        interval = systemd.watchdog_interval()
        if interval is not None:
            systemd.notify("WATCHDOG=1")
            self._repeat(interval, lambda: systemd.notify("WATCHDOG=1"))
        self._repeat(STATUS_S, self._tell)

    def reloading(self) -> None:
        """A reload begins."""
        if self._speaks:
            systemd.reloading()

    def reloaded(self, error: str = "") -> None:
        """It has ended; everything goes on as it was if there was an error."""
        if self._speaks:
            self._told = f"not reloaded: {error}" if error else self._status()
            systemd.notify("READY=1", f"STATUS={self._told}")

    def stopping(self) -> None:
        """The end has begun."""
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()
        if self._speaks:
            self._speaks = False
            systemd.notify("STOPPING=1", "STATUS=stopping")

    def _tell(self) -> None:
        status = self._status()
        if status != self._told:
            self._told = status
            systemd.notify(f"STATUS={status}")

    def _repeat(self, interval: float, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def turn() -> None:
            self._due[turn] = loop.call_later(interval, turn)
            work()

        self._due[turn] = loop.call_later(interval, turn)
