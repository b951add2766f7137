"""The data path as the user-space backend sees it: the faces of ``ipsec.esp.fast.Engine`` and ``Pump``."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol, cast

from ipsec.crypto.suites import EspSuite, all_esp_suites
from ipsec.errors import BackendError, SuiteError
from ipsec.esp.engine import EspEngine

log = logging.getLogger(__name__)

#: for everybody else, between one suite's provider and the next one's
PAUSE_S = 0.005
#: bits of what run_tun and run_sockets return
MORE = 1
"the budget ended with more to read"
BLOCKED = 2
"``blocked_fd`` is full: read no more from the TUN queue until it is writable"
DEVICE_LOST = 4
"the TUN queue has no device any more"

#: (data, (source address, port), local address, descriptor); the middle two may be unknown
RawDatagram = tuple[bytes, tuple[str, int] | None, str | None, int]


class CoreEngine(EspEngine, Protocol):
    """An ESP engine that pumps can share."""

    def providers(self) -> dict[str, str]:
        """Suite name -> crypto provider that serves it."""

    def provider_of(self, suite: EspSuite) -> str:
        """The crypto provider for SAs of a suite. Finding it takes some milliseconds, once in a process."""


class CorePump(Protocol):
    """Moves packets between one TUN queue and one set of sockets. Descriptors stay the caller's."""

    @property
    def event_fd(self) -> int:
        """An eventfd, readable when ``events`` of the engine or ``datagrams`` have something."""

    def run_tun(self, budget: int) -> int:
        """Read the TUN queue up to ``budget`` times; MORE, BLOCKED and DEVICE_LOST."""

    def run_sockets(self, budget: int) -> int:
        """Read the sockets up to ``budget`` times each; MORE and DEVICE_LOST."""

    def wake(self) -> None:
        """Let ``run_forever`` look at what waits for an SA, either way; without it the next ``run_tun`` does."""

    def blocked_fd(self) -> int:
        """The socket that had no room for the last message, -1 if none."""

    def discard(self, *, held: bool = ...) -> None:
        """Count what waits for a socket as dropped, for nobody will send it; with ``held`` also what waits for an SA.
        Not while the pump runs."""

    def run_forever(self, stop_fd: int, busy_poll_us: int = 0) -> None:
        """Do both on this thread, without the GIL, until ``stop_fd`` is readable."""

    def datagrams(self, limit: int = ...) -> list[RawDatagram]:
        """What came in and is not ESP, oldest first, at most ``limit`` of them."""

    def forget_df(self) -> None:
        """Somebody else has changed DF of the sockets."""

    def counters(self) -> dict[str, int]:
        """Packets and octets at both ends, batches, system calls, fall-backs."""

    def batches(self) -> dict[str, list[int]]:
        """System calls by the datagrams that each received (in) or sent (out): of 1, 2, up to 4, up to 8, ..., more."""

    def offloads(self) -> dict[str, bool]:
        """What is in use now."""


class Core(Protocol):
    """A module, or an object in a test, with both classes."""

    Engine: Any
    Pump: Any


def compiled_core() -> Core:
    """The compiled data path. BackendError if this installation has none."""
    try:
        from ipsec.esp import fast
    except ImportError as error:
        raise BackendError(
            f"the compiled data path cannot be loaded: {error}",
            remedy="build it with 'pip install .' (needs a C compiler and the headers of libssl)",
        ) from error
    return cast(Core, fast)


async def choose_providers(engine: CoreEngine) -> None:
    """Find the crypto provider of each suite before an SA needs it: its peer, and all others, would wait."""
    for suite in all_esp_suites():
        try:
            engine.provider_of(suite)
        except SuiteError as error:
            # whoever adds such an SA is told again
            log.error("%s", error)
        await asyncio.sleep(PAUSE_S)
