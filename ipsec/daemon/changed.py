"""Notices that a file of the configuration has changed: a Secret or ConfigMap that was renewed, a certificate.

By looking at them every few seconds, since that works on every file system, for files that are replaced as well as for
links that point elsewhere. A few dozen calls of stat cost nothing, and nobody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from ipsec.config import Config
from ipsec.config.sources import Look, look
from ipsec.config.values import Switch, is_mounted
from ipsec.daemon.threads import Threads

log = logging.getLogger(__name__)

INTERVAL_S = 2.0


class SourceWatch:
    """Calls back when something is not as it was read, and has not changed further for a moment."""

    def __init__(self, config: Config, changed: Callable[[], None], *, interval_s: float = INTERVAL_S) -> None:
        self._sources: Mapping[str, Look] = config.sources
        self._changed = changed
        self._interval_s = interval_s
        # a disk that hangs keeps nobody from stopping
        self._threads = Threads(1, "ipsec-watch")
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def read(self, config: Config) -> None:
        """The configuration was read again."""
        self._sources = config.sources

    def close(self) -> None:
        """Watch no longer."""
        self._task.cancel()

    async def _watch(self) -> None:
        told: Mapping[str, Look] = {}
        before: Mapping[str, Look] = {}
        while True:
            await asyncio.sleep(self._interval_s)
            sources = self._sources
            now = await self._threads.run(partial(_look_at, tuple(sources)))
            # what is being written is read when it is complete; what could not be used is not read over and over
            if now != sources and now == before and now != told:
                told = now
                names = [path for path in now if now[path] != sources.get(path)]
                log.info("%s changed", ", ".join(sorted(names)))
                self._changed()
            before = now


def wanted(config: Config) -> bool:
    """Whether to watch: as configured, else where a file is in a mount of its own, as those of containers are."""
    switch = config.settings.watch_files
    if switch is not Switch.AUTO:
        return switch is Switch.YES
    return any(_mounted(path) for path in config.sources)


def _look_at(paths: tuple[str, ...]) -> dict[str, Look]:
    return {path: look(path) for path in paths}


def _mounted(path: str) -> bool:
    try:
        return is_mounted(path)
    except (OSError, ValueError):
        return False
