"""IKE_SAs follow this host's addresses and routes (RFC 4555)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from ipsec.daemon.paths import Paths
from ipsec.ike.engine import IkeEngine
from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

#: each IKE_SA takes some 0.1 ms, in which the kernel is asked for its way: the loop has its turn after so many seconds
SLICE_S = 0.002


class Follower:
    """Looks at all IKE_SAs after a change, a few in each turn of the event loop."""

    def __init__(
        self,
        engine: IkeEngine,
        paths: Paths,
        turn: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``turn`` lets the engine speak; ``clock`` has not to stand still during a turn of the loop, as uvloop's."""
        self._engine = engine
        self._paths = paths
        self._turn = turn
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.Handle | None = None
        "the next slice"
        self._uids: deque[int] = deque()
        self._last = 0
        "the newest that was among them: a successor has its predecessor's way, and its turn at the end"
        self._once_more = False

    def host_changed(self) -> None:
        """Addresses or routes are others. If this is not yet done with an earlier change, it begins anew afterwards:
        at once would leave out the last ones for as long as something changes."""
        if self._soon is not None:
            self._once_more = True
            return
        self._begin()
        self._slice()

    def stop(self) -> None:
        """Look at nothing any more."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _begin(self) -> None:
        self._once_more = False
        self._last = 0
        self._take()

    def _take(self) -> None:
        self._uids = deque(uid for uid in self._engine.sas if uid > self._last)
        self._last = max(self._uids, default=self._last)

    def _slice(self) -> None:
        self._soon = None
        now, end = self._loop.time(), self._clock() + SLICE_S
        while self._uids:
            sa = self._engine.sas.get(self._uids.popleft())
            if sa is not None and sa.established:
                try:
                    self._follow(sa, now)
                except Exception:
                    # those behind it must not stay where nothing leads any more
                    log.exception("this is a bug: %s does not follow", sa)
            if self._clock() >= end:
                break
        if not self._uids:
            self._take()
            if not self._uids and self._once_more:
                self._begin()
        if self._uids:
            self._soon = self._loop.call_soon(self._slice)
        self._turn()

    def _follow(self, sa: IkeSa, now: float) -> None:
        local = self._paths.best_local(sa)
        if local != sa.path.local:
            log.info("%s: our address changes from %s to %s", sa, sa.path.local, local)
            self._engine.update_address(sa, local, now)
        self._engine.addresses_changed(sa, now)
