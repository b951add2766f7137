"""The daemon: configuration -> backend -> SAs, policies and routes, until a signal says stop.

Start-up works in full, or fails with one text and leaves nothing behind. Exit codes, kept stable for supervisors:

    0  stopped on request
    1  a bug; the log has the traceback
    2  wrong command line
    3  the configuration is wrong
    4  the machine lacks something (device, privilege, port); the text says what mends it
    5  an SA or policy was refused, or sequence numbers cannot be kept safe
    6  the device was lost and could not be made again
    130, 143  forced to stop at once by a second SIGINT or SIGTERM
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from enum import IntEnum
from pathlib import Path
from typing import Any

from ipsec.backend.base import BackendEvent, Datagram, DeviceLost, Expire, Mapping
from ipsec.backend.core import Core
from ipsec.backend.manual import ManualSas
from ipsec.backend.seqstore import SequenceStore
from ipsec.backend.settings import MemoryEnds, UserspaceSettings
from ipsec.backend.userspace import UserspaceBackend
from ipsec.config import Config
from ipsec.config.settings import ANY_ADDRESSES, BackendKind, EventLoopKind
from ipsec.config.values import Switch
from ipsec.errors import BackendError, ConfigError, IpsecError, PolicyError, SaError, SequenceError
from ipsec.esp.sa import Action, Direction
from ipsec.net.memory import MemoryLink, MemoryTun

log = logging.getLogger(__name__)

#: the mark that is used where one is needed and none is configured
DEFAULT_FWMARK = 220
#: cgroup v2, as seen from inside a container
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
#: more have not been measured
MAX_AUTO_WORKERS = 4


class ExitCode(IntEnum):
    """See the module's text."""

    OK = 0
    BUG = 1
    USAGE = 2
    CONFIG = 3
    REQUIREMENT = 4
    SA = 5
    DEVICE_LOST = 6


class Daemon:
    """One run of ``ipsecd``. ``start`` and ``stop`` may also be called by a program that embeds it."""

    def __init__(self, config: Config, *, core: Core | None = None) -> None:
        """``core`` replaces the compiled data path in tests."""
        self._config = config
        self._ends = _memory_ends() if config.settings.backend is BackendKind.MEMORY else None
        self.backend = UserspaceBackend(backend_settings(config, self._ends), core=core)
        self._manual = ManualSas(self.backend, SequenceStore(Path(config.settings.state_dir)))
        self._stopping = asyncio.Event()
        self._exit_code = ExitCode.OK

    async def start(self) -> None:
        """Bring everything up, or release what came up and raise an IpsecError."""
        config = self._config
        log.info("configuration %s", config.file)
        for warning in config.warnings:
            log.warning("%s", warning)
        if not config.sas:
            log.warning("%s configures no SA (section sas): nothing will pass", config.file)
        self.backend.on_event(self._on_event)
        self.backend.on_datagram(self._on_datagram)
        try:
            await self.backend.start()
            # Policies first: what they protect is dropped until its SA is there, and never leaves in clear.
            self.backend.set_policies(config.policies())
            self._manual.install([sa.params() for sa in config.sas])
            await self.backend.sync_routes()
        except BaseException:
            await self.stop()
            raise
        log.info("%d SAs and %d policies are installed", 2 * len(config.sas), len(config.policies()))

    async def stop(self) -> None:
        """Release everything; safe in any state."""
        try:
            await self.backend.quiesce()
        except BackendError as error:
            log.error("%s", error)
            self._manual.release(quiet=False)
        else:
            self._log_totals()
            self._manual.release()
        await self.backend.stop()
        if self._ends is not None:
            self._ends.tun.close()
            self._ends.wire.close()

    async def run(self) -> ExitCode:
        """Start, serve until a signal or a fatal event, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._log_counters)
        try:
            await self.start()
            log.info("ready")
            await self._stopping.wait()
            await self.stop()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                loop.remove_signal_handler(number)
        if self._exit_code is ExitCode.OK:
            log.info("stopped")
        return self._exit_code

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set():
            # The device goes with the process; routes that stay are removed by the next start.
            log.warning("forced to stop")
            os._exit(128 + number)
        log.info("%s: stopping", signal.Signals(number).name)
        self._stopping.set()

    def _log_counters(self) -> None:
        """What SIGUSR1 asks for: every SA that was used, then the totals."""
        names: dict[tuple[Direction, int, object], str] = {}
        for sa in self._config.sas:
            names[Direction.IN, sa.spi_in, sa.remote] = names[Direction.OUT, sa.spi_out, sa.remote] = sa.name
        unused = 0
        now = time.monotonic()
        for params, stats in self._manual.stats():
            if stats.last_use is None and not stats.drops:
                unused += 1
                continue
            log.info(
                "SA %s 0x%08x %s %s: %d packets, %d octets, number %d, %s, drops: %s",
                names.get((params.direction, params.spi, params.remote), "?"),
                params.spi,
                "from" if params.direction is Direction.IN else "to",
                f"{stats.remote} port {stats.encap[1]}" if stats.encap else stats.remote,
                stats.packets,
                stats.bytes,
                stats.seq,
                f"last {now - stats.last_use:.1f} s ago" if stats.last_use is not None else "never",
                _counts({reason.name: count for reason, count in stats.drops.items()}),
            )
        if unused:
            log.info("%d more SAs have had no packet", unused)
        self._log_totals()

    def _log_totals(self) -> None:
        with contextlib.suppress(BackendError):
            drops = self.backend.drops()
            log.info("drops: %s", _counts({reason.name: count for reason, count in drops.items()}))
            log.info("counters: %s", _counts(self.backend.counters()))
            in_use = [name for name, on in self.backend.offloads().items() if on]
            log.info("offloads in use: %s", " ".join(in_use) or "none")

    def _on_event(self, event: BackendEvent) -> None:
        if isinstance(event, Expire):
            self._manual.handle(event)
        elif isinstance(event, Mapping):
            log.info("SA %d: the peer is now at %s port %d", event.sa, event.address, event.port)
        elif isinstance(event, DeviceLost):
            log.error("stopping: %s", event.error)
            self._exit_code = ExitCode.DEVICE_LOST
            self._stopping.set()

    def _on_datagram(self, datagram: Datagram) -> None:
        # SAs are manual, so nobody here speaks IKE; RFC 7296 section 2.21 lets us ignore what we do not know.
        log.debug("ignored %d octets of IKE from %s port %d", len(datagram.data), datagram.source, datagram.port)


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in counts.items() if count) or "none"


def backend_settings(config: Config, ends: MemoryEnds | None = None) -> UserspaceSettings:
    """What the configuration means for the user-space backend. ConfigError if it asks for what that cannot do."""
    settings = config.settings
    policies = config.policies()
    bypass = any(policy.action is Action.BYPASS for policy in policies)
    fwmark = settings.fwmark
    if not fwmark and ends is None and (bypass or _protects_peer(config)):
        fwmark = DEFAULT_FWMARK
        log.info(
            "our own packets bear mark %d, because policies cover the outer addresses or bypass the tunnel", fwmark
        )
    # 0.0.0.0 and :: together mean whatever this host has; IPv6 alone may be missing without harm
    listen = () if settings.listen == ANY_ADDRESSES else settings.listen
    return UserspaceSettings(
        device=settings.device,
        mtu=settings.mtu,
        workers=auto_workers() if settings.workers is None else settings.workers,
        listen=listen,
        port=_port(config),
        raw_esp=settings.raw_esp is Switch.YES or (settings.raw_esp is Switch.AUTO and config.needs_raw_esp()),
        bypass=bypass,
        install_routes=settings.install_routes,
        routing_table=settings.routing_table,
        routing_priority=settings.routing_priority,
        fwmark=fwmark,
        queue_length=settings.tun_queue_length,
        addresses=settings.addresses,
        fail_closed=settings.fail_closed,
        crypto_provider=settings.crypto_provider.value,
        busy_poll_us=settings.busy_poll_us,
        mss_clamp=settings.mss_clamp,
        offload={
            name: value is Switch.YES for name, value in vars(settings.offload).items() if value is not Switch.AUTO
        },
        memory=ends,
    )


def auto_workers() -> int:
    """Worker threads for the processors that this process may use."""
    processors = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        # a container's limit is a share of time, not a set of processors: "200000 100000" is two of them, "max" all
        quota, period = CPU_MAX.read_text("ascii").split()
        processors = min(processors, max(1, round(int(quota) / int(period))))
    # with one processor a thread would only take turns with the event loop
    return min(processors, MAX_AUTO_WORKERS) if processors > 1 else 0


def _port(config: Config) -> int:
    ports = {sa.encap[0] for sa in config.sas if sa.encap}
    if len(ports) > 1:
        text = ", ".join(map(str, sorted(ports)))
        raise ConfigError(f"SAs use several local UDP ports ({text}), one is possible", file=config.file, key="sas")
    return ports.pop() if ports else config.settings.port_nat_t


def _protects_peer(config: Config) -> bool:
    """Whether a remote selector is nothing but its own peer (transport mode, host to host).

    No throw route can keep the outer packets out of the tunnel then; only a mark tells them from inner ones.
    """
    return any(
        pair.remote.start == pair.remote.end == sa.remote
        for sa in config.sas
        for policy in sa.policies
        if policy.action is Action.PROTECT
        for pair in policy.selectors
    )


def _memory_ends() -> MemoryEnds:
    return MemoryEnds(MemoryTun(), MemoryLink(), 0)


def run(config: Config, *, core: Core | None = None) -> ExitCode:
    """Run until stopped; errors of start-up become one log line and the exit code."""

    async def main() -> ExitCode:
        return await Daemon(config, core=core).run()

    try:
        return _loop_runner(config.settings.event_loop)(main())
    except ConfigError as error:
        log.error("%s", error)
        return ExitCode.CONFIG
    except (SaError, PolicyError, SequenceError) as error:
        log.error("%s", error)
        return ExitCode.SA
    except BackendError as error:
        log.error("%s", error)
        return ExitCode.REQUIREMENT
    except IpsecError as error:
        log.error("%s", error)
        return ExitCode.SA
    except Exception:
        log.exception("this is a bug")
        return ExitCode.BUG


def _loop_runner(kind: EventLoopKind) -> Callable[[Coroutine[Any, Any, ExitCode]], ExitCode]:
    if kind is not EventLoopKind.ASYNCIO:
        try:
            import uvloop
        except ImportError as error:
            if kind is EventLoopKind.UVLOOP:
                raise BackendError(
                    "uvloop is not installed", remedy="pip install uvloop, or event_loop = auto"
                ) from error
        else:
            return _with(uvloop.new_event_loop)
    return _with(asyncio.new_event_loop)


def _with(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[Coroutine[Any, Any, ExitCode]], ExitCode]:
    def runner(main: Coroutine[Any, Any, ExitCode]) -> ExitCode:
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(main)

    return runner
