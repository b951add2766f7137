"""The daemon: configuration -> backend -> SAs, IKEv2, policies and routes, until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ipsec.backend.base import BackendEvent, Datagram, DeviceLost, Expire, Mapping
from ipsec.backend.core import Core
from ipsec.backend.manual import ManualSas
from ipsec.backend.seqstore import SequenceStore
from ipsec.backend.settings import MemoryEnds
from ipsec.backend.userspace import UserspaceBackend
from ipsec.backend.ways import ways
from ipsec.config import Config, load_again
from ipsec.config.settings import BackendKind, EventLoopKind
from ipsec.daemon.changed import SourceWatch
from ipsec.daemon.changed import wanted as watch_wanted
from ipsec.daemon.endpoint import Endpoint
from ipsec.daemon.health import Health, Phase
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.needs import Prepared
from ipsec.daemon.needs import refuse as refuse_connection
from ipsec.daemon.secret import qcd_secret
from ipsec.daemon.settings import backend_settings, ike_port, say_limits, vici_wanted
from ipsec.daemon.supervisor import Supervisor
from ipsec.daemon.threads import Threads
from ipsec.daemon.updown import Updown
from ipsec.daemon.vici import start as start_vici
from ipsec.errors import BackendError, ConfigError, IpsecError, PolicyError, SaError, SequenceError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Direction, SaParams
from ipsec.exits import ExitCode
from ipsec.net.inherited import Inherited, take_inherited
from ipsec.net.link import has_address
from ipsec.net.memory import MemoryLink, MemoryTun
from ipsec.text import plural
from ipsec.vici.commands import ViciService

log = logging.getLogger(__name__)

__all__ = ["Daemon", "run"]

Main = Callable[[], Coroutine[Any, Any, ExitCode]]

#: open files, of this process or of all
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class Daemon:
    """One run of ``ipsecd``. ``start`` and ``stop`` may also be called by a program that embeds it."""

    def __init__(self, config: Config, *, core: Core | None = None, inherited: Inherited | None = None) -> None:
        """``core`` replaces the compiled data path in tests."""
        self._config = config
        self._ends = MemoryEnds(MemoryTun(), MemoryLink(), 0) if config.settings.backend is BackendKind.MEMORY else None
        self._backend_settings = backend_settings(config, self._ends, inherited)
        say_limits(config, self._backend_settings)
        self.backend = UserspaceBackend(self._backend_settings, core=core)
        self.ike: IkeControl | None = None
        ours = config.settings.install_routes and not config.settings.namespace
        self.health = Health(self.backend, config.settings.http.ready, to_be_up=ours)
        self._vici: ViciService | None = None
        self._endpoint: Endpoint | None = None
        self._supervisor = Supervisor(self._status)
        self._updown: Updown | None = None
        self._manual = ManualSas(self.backend, SequenceStore(Path(config.settings.state_dir)))
        self._stopping = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        "asked for while one was under way, which may have read what was there before"
        self._reload_lock = asyncio.Lock()
        self._reader = Threads(1, "ipsec-config")
        self._sources: SourceWatch | None = None
        self._exit_code = ExitCode.OK

    async def start(self) -> None:
        """Bring everything up, or release what came up and raise an IpsecError.

        A signal ends it early, with the rest left out; ``stop`` is what comes then.
        """
        # a reload that is asked for meanwhile comes after it
        async with self._reload_lock:
            await self._start()

    async def _start(self) -> None:
        config = self._config
        _say_configuration(config)
        self.backend.on_event(self._on_event)
        self.backend.on_datagram(_ignore)
        try:
            if config.settings.http.listen:
                # first, so that who asks is told "starting" instead of nothing
                self._endpoint = Endpoint(config.settings.http, self.backend, self.health, self._manual_stats)
                await self._endpoint.start()
            await self.backend.start()
            # Policies first: what they protect is dropped until its SA is there, and never leaves in clear.
            self.backend.set_policies(config.policies())
            self._manual.install([sa.params() for sa in config.sas])
            if (config.connections or vici_wanted(config)) and not self._stopping.is_set():
                await self._start_ike(config, vici=vici_wanted(config))
            if self.ike is None or self._stopping.is_set():
                # Else it has said so itself. Also before a stop: what a predecessor left goes only with one that had
                # routes of its own.
                self.backend.begun()
            await self.backend.sync_routes()
        except BaseException:
            await self.stop()
            raise
        if self._stopping.is_set():
            return
        self.health.phase = Phase.RUNNING
        if watch_wanted(config):
            self._sources = SourceWatch(config, self._on_hangup)
        self._say_running(config)

    def _say_running(self, config: Config) -> None:
        if config.sas:
            policies = plural(len(config.policies()), "policy", "policies")
            log.info("%d SAs and %s installed", 2 * len(config.sas), policies)
        if self._ends is None:
            for sa in config.sas:
                if not has_address(sa.local):
                    log.warning("SA %s: %s is no address of this host; nothing leaves before it is", sa.name, sa.local)
        if config.connections:
            log.info("%s", plural(len(config.connections), "connection"))

    async def _start_ike(self, config: Config, *, vici: bool) -> None:
        """IKE, and ``vici``. BackendError if that cannot be served; whatever is raised, there is neither then."""
        secret = qcd_secret(Path(config.settings.state_dir))
        fwmark = self._backend_settings.fwmark
        refuse = partial(refuse_connection, settings=self._backend_settings)
        device = self.backend.device
        ike = IkeControl(config, self.backend, fwmark=fwmark, device=device, qcd_secret=secret, refuse=refuse)
        updown = self._updown = Updown(device, ike.children.routed)
        ike.observers.append(updown.on_event)
        try:
            if vici:
                # before anything is started: another daemon may be there
                self._vici = await start_vici(
                    ike, self.backend, config.settings, self.health, self, manual=self._manual_stats
                )
            self.ike = ike
            self.health.attach(ike)
            if self._endpoint is not None:
                self._endpoint.metrics.attach(ike)
            await self._until_stopping(ike.start())
        except BaseException:
            await self._end_ike(ike)
            raise

    async def _end_ike(self, ike: IkeControl) -> None:
        """Undo ``_start_ike``, however far it came."""
        vici, self._vici, self.ike = self._vici, None, None
        self.health.detach()
        if self._endpoint is not None:
            self._endpoint.metrics.detach()
        if vici is not None:
            await vici.stop()
        await ike.stop()
        if self._updown is not None:
            await self._updown.stop()

    async def _begin_ike(self, config: Config) -> None:
        """IKE where there were manual SAs alone. BackendError, ConfigError; whatever is raised, all is as it was."""
        port = ike_port(config)
        if port is not None:
            self.backend.open_ike(port)
        try:
            # what cannot begin is no reason to end: connections come as they do with any other reload
            await self._start_ike(replace(config, connections=()), vici=vici_wanted(config))
        except BaseException:
            self.backend.on_datagram(_ignore)
            self.backend.close_ike()
            raise

    async def _until_stopping(self, work: Coroutine[object, object, None]) -> None:
        """What may have to wait for others, and is broken off when a signal says stop."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            stopping.cancel()

    async def reload(self) -> str:
        """Read the configuration file again. If it is wrong, everything goes on as it was: why, else an empty text."""
        async with self._reload_lock:
            self._supervisor.reloading()
            error = "this is a bug, see the log"
            try:
                error = await self._reload()
            finally:
                self._supervisor.reloaded(error)
        return error

    async def _reload(self) -> str:
        try:
            config = await self._read_again()
        except ConfigError as error:
            for line in error.lines():
                log.error("not reloaded: %s", line)
            return error.in_short()
        effective = replace(config, settings=self._config.settings, sas=self._config.sas)
        if self.ike is None and config.connections:
            try:
                await self._begin_ike(effective)
            except (BackendError, ConfigError) as error:
                why = f"IKE, which there was no connection for at the start, cannot begin: {error}"
                log.error("not reloaded: %s", why)
                return why
        for what, old, new in (
            ("ipsecd", self._config.settings, config.settings),
            ("sas", self._config.sas, config.sas),
        ):
            if old != new:
                log.warning("section %s changed, which takes a restart", what)
        self._config = effective
        if self._sources is not None:
            self._sources.read(config)
        for warning in config.warnings:
            log.warning("%s", warning)
        if self.ike is not None:
            await self.ike.reload(self._config)
        log.info("reloaded %s: %s", config.file, plural(len(config.connections), "connection"))
        return ""

    async def _read_again(self) -> Config:
        """The configuration file as it is now. ConfigError also for what this daemon, as it was started, cannot do."""
        # a thousand keys and certificates, or a slow disk, must not keep the peers waiting
        config = await self._reader.run(partial(load_again, self._config))
        before = {connection.name: connection for connection in self._config.connections}
        loaded = self.ike.loaded.connection if self.ike is not None else before.get
        prepared = Prepared(self._backend_settings)
        for connection in config.connections:
            # what has been there since the start was warned of then
            if connection not in (before.get(connection.name), loaded(connection.name)):
                refuse_connection(connection, self._backend_settings, file=config.file, prepared=prepared)
        return config

    async def preview(self) -> tuple[Config, Config]:
        """What is in effect, and what would be if a ``reload`` could change all of it. ConfigError, as it would say."""
        config = await self._read_again()
        if self.ike is None:
            return self._config, config
        loaded = self.ike.loaded
        return loaded.config(), replace(loaded.after(config), settings=config.settings, sas=config.sas)

    async def stop(self) -> None:
        """Release everything; safe in any state."""
        self.health.phase = Phase.STOPPING
        if self._sources is not None:
            self._sources.close()
        if self._reloading is not None:
            # what it would put in place must not come after the end
            self._reloading.cancel()
            await asyncio.wait((self._reloading,))
        if self._vici is not None:
            await self._vici.stop()
        if self.ike is not None:
            await self.ike.stop()
        if self._updown is not None:
            await self._updown.stop()
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
        if self._endpoint is not None:
            await self._endpoint.stop()

    async def run(self) -> ExitCode:
        """Start, serve until a signal or a fatal event, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._log_counters)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            await self.start()
            if not self._stopping.is_set():
                log.info("ready")
                self._supervisor.ready()
            await self._stopping.wait()
            self._supervisor.stopping()
            await self.stop()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                loop.remove_signal_handler(number)
        if self._exit_code is ExitCode.OK:
            log.info("stopped")
        return self._exit_code

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set():
            # The device goes with the process; routes that stay are removed by the next start.
            log.warning("forced to stop")
            # what is kept for who reads the log, for a moment
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: stopping", signal.Signals(number).name)
        self._stopping.set()

    def _on_hangup(self) -> None:
        self._reload_again = True
        if not self._stopping.is_set() and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.get_running_loop().create_task(self._reload_as_asked())

    async def _reload_as_asked(self) -> None:
        while self._reload_again:
            self._reload_again = False
            try:
                await self.reload()
            except Exception:
                log.exception("this is a bug; not everything was reloaded")

    def _log_counters(self) -> None:
        """What SIGUSR1 asks for: every SA that was used, then the totals."""
        names = self._manual_names()
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
            log.info("%s had no packet", plural(unused, "more SA has", "more SAs have"))
        self._log_totals()

    def _status(self) -> str:
        """How it goes, for ``systemctl status``."""
        wanted, down = sum(map(len, self.health.wanted().values())), len(self.health.down())
        parts = [f"{wanted - down} of {plural(wanted, 'child', 'children')} up"] if wanted else []
        if self.ike is not None:
            parts.append(plural(len(self.ike.established()), "IKE_SA"))
        if self._config.sas:
            parts.append(plural(len(self._config.sas), "manual SA pair"))
        return ", ".join(parts) or "no connections"

    def _manual_names(self) -> dict[tuple[Direction, int, object], str]:
        names: dict[tuple[Direction, int, object], str] = {}
        for sa in self._config.sas:
            names[Direction.IN, sa.spi_in, sa.remote] = names[Direction.OUT, sa.spi_out, sa.remote] = sa.name
        return names

    def _manual_stats(self) -> Iterator[tuple[str, SaParams, SaStats]]:
        names = self._manual_names()
        for params, stats in self._manual.stats():
            name = names.get((params.direction, params.spi, params.remote))
            if name is not None:
                yield name, params, stats

    def _log_totals(self) -> None:
        with contextlib.suppress(BackendError):
            drops = self.backend.drops()
            log.info("drops: %s", _counts({reason.name: count for reason, count in drops.items()}))
            log.info("counters: %s", _counts(self.backend.counters()))
            in_use = [name for name, on in self.backend.offloads().items() if on]
            log.info("offloads in use: %s", " ".join(in_use) or "none")

    def _on_event(self, event: BackendEvent) -> None:
        if isinstance(event, DeviceLost):
            log.error("stopping: %s", event.error)
            self._exit_code = ExitCode.DEVICE_LOST
            self._stopping.set()
            return
        if self.ike is not None:
            self.ike.on_event(event)
        if isinstance(event, Expire):
            self._manual.handle(event)
        elif isinstance(event, Mapping) and (self.ike is None or self.ike.children.of_sa(event.sa) is None):
            log.info("SA %d: the peer is now at %s port %d", event.sa, event.address, event.port)


def _say_configuration(config: Config) -> None:
    log.info("configuration %s", config.file)
    for line in config.overridden:
        log.info("%s", line)
    for warning in config.warnings:
        log.warning("%s", warning)
    if not config.sas and not config.connections:
        log.warning("%s configures neither connections nor SAs: nothing will pass", config.file)


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in counts.items() if count) or "none"


def _ignore(datagram: Datagram) -> None:
    """SAs are manual, so nobody here speaks IKE; RFC 7296 section 2.21 lets us ignore what we do not know."""
    log.debug("ignored %d octets of IKE from %s port %d", len(datagram.data), datagram.source, datagram.port)


def run(config: Config, *, core: Core | None = None) -> ExitCode:
    """Run until stopped; errors of start-up become one log line and the exit code."""

    async def main() -> ExitCode:
        return await Daemon(config, core=core, inherited=take_inherited(os.environ)).run()

    try:
        return _loop_runner(config.settings.event_loop)(main)
    except ConfigError as error:
        log.error("%s", error)
        return ExitCode.CONFIG
    except (SaError, PolicyError, SequenceError) as error:
        log.error("%s", error)
        return ExitCode.SA
    except BackendError as error:
        log.error("%s", error)
        _log_ways(config)
        return ExitCode.REQUIREMENT
    except IpsecError as error:
        log.error("%s", error)
        return ExitCode.SA
    except Exception as error:
        if getattr(error, "errno", None) in _TOO_MANY:
            log.error("%s; raise the limit: ulimit -n, LimitNOFILE= of systemd, --ulimit=nofile= of a container", error)
            return ExitCode.REQUIREMENT
        log.exception("this is a bug")
        return ExitCode.BUG


def _log_ways(config: Config) -> None:
    """Say what would have to be given for each way to run, if the one taken lacks something."""
    if config.settings.backend is not BackendKind.USERSPACE:
        return
    found = ways(backend_settings(config))
    if any(way.used and way.missing for way in found):
        for way in found:
            log.error("way to run: %s", way)


def _loop_runner(kind: EventLoopKind) -> Callable[[Main], ExitCode]:
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


def _with(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[Main], ExitCode]:
    def runner(main: Main) -> ExitCode:
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(main())

    return runner
