"""The user-space backend: a TUN device, the outside's sockets, routes, and the compiled data path between them.

Two ways to run the same pumps: from the event loop (``workers=0``: least memory and wake-ups), or one thread per
worker that never takes the GIL, with a TUN queue and sockets of its own. Either way the control plane is only in the
event loop's thread. What blocks (netlink, joining threads) runs on one helper thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar, assert_never

from ipsec.backend.base import Acquire, BackendEvent, Datagram, DeviceLost, Expire, Feature, Mapping
from ipsec.backend.core import Core, CoreEngine, compiled_core
from ipsec.backend.settings import OFFLOADS, UserspaceSettings
from ipsec.backend.worker import Worker, socket_name
from ipsec.errors import BackendError, SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind, SaStats
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.sa import Action, Direction, IpAddress, Lifetime, Policy, SaParams
from ipsec.net import udp
from ipsec.net.monitor import Change, LinkMonitor
from ipsec.net.route import RoutePlan, Router, plan_routes
from ipsec.net.tun import Tun, device_exists, open_tun, tun_from_fd

log = logging.getLogger(__name__)

T = TypeVar("T")

#: a worker looks at its stop descriptor at least once per batch, so this is generous
JOIN_SECONDS = 0.8
#: until SAs say what fits (RFC 8200 section 5 wants 1280 for IPv6)
DEFAULT_MTU = 1400
#: octets in front of IKE on an ESP port (RFC 3948 section 2.2)
NON_ESP_MARKER = 4
MIN_MTU = 1280


class UserspaceBackend:
    """See ``ipsec.backend.base.Backend``."""

    def __init__(self, settings: UserspaceSettings, *, core: Core | None = None) -> None:
        """``core`` replaces the compiled data path in tests."""
        self._settings = settings
        self._core = core
        self._engine: CoreEngine | None = None
        self._tun: Tun | None = None
        self._router: Router | None = None
        self._monitor: LinkMonitor | None = None
        self._workers: list[Worker] = []
        self._sockets: list[socket.socket] = []
        self._ports: dict[int, int] = {}
        self._stop_fd = -1
        self._verdicts: dict[str, udp.Verdict] = {}
        self._sas: dict[int, SaParams] = {}
        self._policies: dict[int, Policy] = {}
        self._spis: set[int] = set()
        self._outbound: dict[int, set[int]] = {}
        "outbound SAs by reqid"
        self._mtu = 0
        self._past: dict[str, int] = {}
        self._handler: Callable[[BackendEvent], None] = lambda event: None
        self._datagram_handler: Callable[[Datagram], None] = lambda datagram: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._helper: ThreadPoolExecutor | None = None
        self._running = False
        self._recovering = False
        self._routed = False
        "routes were applied: what protects now is ours, no longer a predecessor's"
        self._lost = False

    # -- start and stop

    async def start(self) -> None:
        """Acquire everything, or release it again and raise BackendError."""
        self._routed = self._lost = False
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self._settings
        core = self._core = self._core or compiled_core()
        self._helper = ThreadPoolExecutor(1, "ipsec-netlink")
        self._engine = core.Engine(
            provider=settings.crypto_provider,
            workers=max(1, settings.workers),
            # No icmp_source: the kernel takes no packet from the device that claims to come from one of its own
            # addresses, so "packet too big" comes from the packet's destination.
            mss_clamp=settings.mss_clamp,
        )
        if settings.install_routes and settings.memory is None:
            self._router = await self._blocking(self._make_router)
        self._probe()
        try:
            self._open_tun()
            self._open_sockets()
        except OSError as error:
            raise BackendError(f"cannot open the device or its sockets: {error.strerror}") from error
        await self._configure_device(settings.mtu or DEFAULT_MTU, path_mtu=1500)
        self._make_pumps()
        self._log_start()
        self._go()

    def _make_router(self) -> Router:
        settings = self._settings
        router = Router(table=settings.routing_table, priority=settings.routing_priority, fwmark=settings.fwmark)
        try:
            stale = router.claim(keep_closed=settings.fail_closed)
        except BaseException:
            router.close()
            raise
        if stale:
            log.info(
                "removed or took over %d routes and rules that a predecessor left in table %d",
                stale,
                settings.routing_table,
            )
        return router

    def _probe(self) -> None:
        if self._settings.memory is not None:
            self._verdicts = {name: udp.Verdict(name, False, "links are in memory") for name in OFFLOADS[:4]}
            return
        for name, probe in (("udp_gso", udp.probe_gso), ("udp_gro", udp.probe_gro)):
            wanted = self._settings.offload.get(name, True)
            self._verdicts[name] = probe() if wanted else udp.Verdict(name, False, "switched off")

    def _open_tun(self) -> None:
        settings = self._settings
        if settings.memory is not None:
            ends = settings.memory
            self._tun = Tun("memory", [os.dup(ends.tun.fd)], ends.tun.vnet_hdr, tso=False, uso=False, persistent=True)
            return
        tso, uso = settings.offload.get("tun_tso", True), settings.offload.get("tun_uso", True)
        if settings.tun_fd is not None:
            if settings.workers > 1:
                raise BackendError("one inherited TUN queue serves one worker", remedy="set ipsecd.workers to 0 or 1")
            # the supervisor's descriptor stays open, so that the device can be taken over again
            self._tun = tun_from_fd(os.dup(settings.tun_fd), tso=tso, uso=uso)
        else:
            self._tun = open_tun(settings.device, queues=max(1, settings.workers), tso=tso, uso=uso)
        for name, on in (("tun_tso", self._tun.tso), ("tun_uso", self._tun.uso)):
            reason = self._tun.refused.get(name, "the kernel has it")
            self._verdicts[name] = udp.Verdict(name, on, reason)
        for verdict in self._verdicts.values():
            if settings.offload.get(verdict.name) and not verdict.on:
                raise BackendError(
                    f"offload {verdict}", remedy=f"set ipsecd.offload.{verdict.name} to auto to go on without it"
                )

    def _open_sockets(self) -> None:
        settings = self._settings
        workers = max(1, settings.workers)
        if settings.memory is not None:
            self._sockets = [socket.socket(fileno=os.dup(settings.memory.wire.fd(settings.memory.side)))]
            self._ports = {4: settings.port}
            return
        gro = self._verdicts["udp_gro"].on
        for address in self._listen():
            group = udp.open_udp(address, settings.port, workers=workers, gro=gro, fwmark=settings.fwmark)
            self._sockets += group
            self._ports[address.version] = group[0].getsockname()[1]
            if settings.raw_esp:
                self._sockets += udp.open_raw_esp(address, workers=workers, fwmark=settings.fwmark)
            if settings.bypass:
                for _ in range(workers):
                    self._sockets.append(udp.open_bypass(address.version, fwmark=settings.fwmark))

    def _listen(self) -> list[IpAddress]:
        listen = self._settings.listen
        versions = [address.version for address in listen]
        if len(set(versions)) != len(versions):
            raise BackendError(
                "ipsecd.listen names two addresses of one family", remedy="name one, or leave it out for the wildcard"
            )
        if listen:
            return list(listen)
        return [IPv4Address(0), *([IPv6Address(0)] if _has_ipv6() else [])]

    async def _configure_device(self, mtu: int, *, path_mtu: int) -> None:
        router, tun = self._router, self._tun
        assert tun is not None
        self._mtu = mtu
        if router is None:
            return
        settings = self._settings

        def work() -> None:
            notes = router.configure(
                tun.name,
                mtu=mtu,
                addresses=settings.addresses,
                queue_length=settings.queue_length,
                gso_max_size=superframe_size(mtu, path_mtu),
            )
            for note in notes:
                log.info("%s: %s", tun.name, note)

        self._unwatch()
        await self._blocking(work)
        self._watch()

    def _make_pumps(self) -> None:
        settings, tun, core = self._settings, self._tun, self._core
        assert tun is not None
        assert core is not None
        count = max(1, settings.workers)
        for index, tun_fd in enumerate(tun.fds):
            # each group holds one socket per worker, in the workers' order
            mine = self._sockets[index::count]
            fds = {socket_name(sock): sock.fileno() for sock in mine}
            pump = core.Pump(
                self._engine,
                index,
                tun_fd=tun_fd,
                vnet_hdr=tun.vnet_hdr,
                tun_tso=tun.tso,
                tun_uso=tun.uso,
                udp_gso=self._verdicts["udp_gso"].on,
                udp_gro=self._verdicts["udp_gro"].on,
                coalesce_tcp=settings.offload.get("coalesce_tcp", True),
                coalesce_udp=settings.offload.get("coalesce_udp", True),
                connected=settings.memory is not None,
                # the filter on each raw socket leaves every packet to one worker
                read_raw=True,
                mark=settings.fwmark,
                **fds,
            )
            self._workers.append(Worker(pump, tun_fd, mine, drain=self._drain, lost=self._device_gone))

    def _go(self) -> None:
        """Let packets flow."""
        if self._settings.workers:
            self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for index, worker in enumerate(self._workers):
            if self._settings.workers:
                worker.start_thread(f"ipsec-worker-{index}", self._stop_fd, self._settings.busy_poll_us)
            else:
                worker.start()
        self._running = True

    async def quiesce(self) -> None:
        """Stop moving packets, and nothing else: counters and sequence numbers are final afterwards."""
        if not self._running:
            return
        self._running = False
        for worker in self._workers:
            worker.detach()
        threads = [worker.thread for worker in self._workers if worker.thread is not None]
        if threads:
            os.eventfd_write(self._stop_fd, 1)
            await self._blocking(lambda: _join(threads))
            stuck = [thread.name for thread in threads if thread.is_alive()]
            if stuck:
                # Closing descriptors under a running worker could hand it somebody else's file.
                raise BackendError(f"{', '.join(stuck)} did not stop within {JOIN_SECONDS} s")
            os.close(self._stop_fd)
            self._stop_fd = -1
        self._drain_engine()

    async def stop(self) -> None:
        """Release everything; whatever fails on the way is logged, and the rest is released all the same."""
        me = asyncio.current_task()
        for task in [task for task in self._tasks if task is not me]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        try:
            await self.quiesce()
        except BackendError as error:
            log.error("%s; leaving the rest to the end of the process", error)
            return
        self._drop_pumps()
        self._unwatch()
        if self._router is not None:
            router, keep_closed = self._router, self._stays_closed(self._router)
            await self._blocking(lambda: router.close(keep_closed=keep_closed))
            self._router = None
        if self._tun is not None:
            self._tun.close()
            self._tun = None
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._engine = None
        self._sas.clear()
        self._policies.clear()
        self._spis.clear()
        self._outbound.clear()
        if self._helper is not None:
            self._helper.shutdown(wait=False)
            self._helper = None

    def _stays_closed(self, router: Router) -> bool:
        """Whether unreachable routes outlive this stop, because nobody asked for it: see ``fail_closed``."""
        if not self._settings.fail_closed:
            return False
        return self._lost or (router.inherited and not self._routed)

    def _drop_pumps(self) -> None:
        self._past = self.counters()
        self._workers.clear()

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper, work)

    # -- what the data path has to say

    def _drain(self, worker: Worker) -> None:
        for data, source, local, fd in worker.pump.datagrams():
            if source is not None:
                to = ip_address(local) if local is not None else None
                self._datagram_handler(Datagram(data[NON_ESP_MARKER:], ip_address(source[0]), source[1], to, fd))
        self._drain_engine()

    def _drain_engine(self) -> None:
        if self._engine is not None:
            for event in self._engine.events():
                self._translate(event)

    def _translate(self, event: Event) -> None:
        match event.kind:
            case EventKind.SOFT_LIFETIME:
                self._handler(Expire(event.sa, False, "volume"))
            case EventKind.HARD_LIFETIME:
                self._handler(Expire(event.sa, True, "volume"))
            case EventKind.SEQUENCE_SOFT:
                self._handler(Expire(event.sa, False, "sequence"))
            case EventKind.SEQUENCE_HARD:
                self._handler(Expire(event.sa, True, "sequence"))
            case EventKind.ACQUIRE:
                self._handler(Acquire(event.sa, event.value))
            case EventKind.MAPPING:
                if event.source is not None:
                    self._follow(event.sa, *event.source)
                    self._handler(Mapping(event.sa, *event.source))
            case EventKind.DEVICE_LOST:
                # with worker threads, and without a monitor, nobody else notices
                self._device_gone()
            case _:
                assert_never(event.kind)

    def _follow(self, sa: int, address: IpAddress, port: int) -> None:
        """An inbound SA's peer has moved: what we send to where it was goes to where it is (RFC 7296 section 2.23)."""
        inbound = self._sas.get(sa)
        if inbound is None:
            return
        self._sas[sa] = _moved(inbound, address, port)
        for number in list(self._outbound.get(inbound.reqid, ())):
            params = self._sas[number]
            if (params.remote, params.encap) != (inbound.remote, inbound.encap):
                continue
            moved = _moved(params, address, port)
            try:
                self.update_sa(number, local=moved.local, remote=address, encap=moved.encap, path_mtu=moved.path_mtu)
            except SaError as error:
                log.warning("SA 0x%08x cannot follow its peer: %s", params.spi, error)
        if address != inbound.remote:
            # a peer inside a protected network has a throw route of its own
            self._spawn(self.sync_routes())

    # -- the device under us

    def _watch(self) -> None:
        if self._tun is not None and self._router is not None:
            try:
                self._monitor = LinkMonitor(self._tun.index, up=True)
            except OSError as error:
                raise BackendError(f"device {self._tun.name} went away during start: {error.strerror}") from error
            asyncio.get_running_loop().add_reader(self._monitor.fd, self._on_link)

    def _unwatch(self) -> None:
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fd)
            self._monitor.close()
            self._monitor = None

    def _on_link(self) -> None:
        assert self._monitor is not None
        assert self._tun is not None
        changes = self._monitor.changes()
        if Change.GONE in changes:
            self._device_gone()
            return
        for change in changes:
            log.warning("device %s went %s", self._tun.name, change.value)
            if change is Change.UP:
                # the kernel dropped the routes with the link
                self._spawn(self.sync_routes())

    def _device_gone(self) -> None:
        if self._running and not self._recovering:
            self._recovering = True
            log.error("device %s was deleted; making it again", self.device)
            self._unwatch()
            self._spawn(self._recover())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recover(self) -> None:
        """Make the device again, with everything that hung on it. SAs and their counters stay."""
        try:
            await self.quiesce()
            self._drop_pumps()
            assert self._tun is not None
            self._tun.close()
            self._check_ours()
            self._open_tun()
            await self._configure_device(self._mtu, path_mtu=self._path_mtu())
            self._make_pumps()
            await self.sync_routes()
            self._go()
        except BackendError as error:
            self._lost = True
            log.error("cannot make the device again: %s", error)
            self._handler(DeviceLost(str(error)))
            return
        finally:
            self._recovering = False
        log.info("device %s is back", self._tun.name)

    def _check_ours(self) -> None:
        """A device that somebody else prepared can be attached to again, but a new one would lack what they gave it."""
        settings = self._settings
        if settings.memory is not None:
            raise BackendError("its other end is closed")
        if self._router is None and settings.tun_fd is None and not device_exists(settings.device):
            raise BackendError(
                f"device {settings.device} was prepared by somebody else (ipsecd.install_routes = no) and is gone",
                remedy="make it again with its addresses and routes, then start ipsecd",
            )

    # -- SAs and policies

    @property
    def features(self) -> Feature:
        """What this backend can do."""
        found = Feature.ESN | Feature.TRANSPORT | Feature.IMPLICIT_IV | Feature.UPDATE_SA
        if self._settings.raw_esp:
            found |= Feature.RAW_ESP
        if self._settings.bypass:
            found |= Feature.BYPASS
        if self._router is not None:
            found |= Feature.EXCLUDE_ROUTES
        return found

    def get_spi(self) -> int:
        """A random SPI that no inbound SA has; ``SPI % workers`` decides which worker it keeps busy."""
        while True:
            spi = secrets.randbits(32)
            if spi >= 256 and spi not in self._spis:
                self._spis.add(spi)
                return spi

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if it cannot be, also because this daemon has no socket that fits it."""
        version = params.local.version
        name = f"SA 0x{params.spi:08x}"
        if version not in self._ports:
            raise SaError(f"{name}: no socket for IPv{version} (see ipsecd.listen)")
        if params.encap is None and not self._settings.raw_esp:
            raise SaError(f"{name}: IP protocol 50 is off (set ipsecd.raw_esp = yes, or encap = yes)")
        if params.encap is not None and params.encap[0] != self._ports[version]:
            port = self._ports[version]
            raise SaError(f"{name}: local UDP port {params.encap[0]} is not the one in use, {port} (ipsecd.port_nat_t)")
        sa = self._need_engine().add_sa(params)
        self._sas[sa] = params
        if params.direction is Direction.IN:
            self._spis.add(params.spi)
        else:
            self._outbound.setdefault(params.reqid, set()).add(sa)
        return sa

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses in place."""
        self._need_engine().update_sa(sa, local=local, remote=remote, encap=encap, path_mtu=path_mtu)
        self._sas[sa] = replace(self._sas[sa], local=local, remote=remote, encap=encap, path_mtu=path_mtu)

    def set_lifetime(self, sa: int, lifetime: Lifetime) -> None:
        """Other limits by volume, counted since the SA was added; both lifetime events may come again."""
        self._need_engine().set_lifetime(sa, lifetime)
        self._sas[sa] = replace(self._sas[sa], lifetime=lifetime)

    def query_sa(self, sa: int) -> SaStats:
        """Counters of an SA."""
        return self._need_engine().query_sa(sa)

    def del_sa(self, sa: int) -> None:
        """Remove an SA and wipe its keys."""
        self._need_engine().del_sa(sa)
        params = self._sas.pop(sa)
        if params.direction is Direction.IN:
            self._spis.discard(params.spi)
            return
        same = self._outbound[params.reqid]
        same.discard(sa)
        if not same:
            del self._outbound[params.reqid]

    def add_policy(self, policy: Policy) -> int:
        """Add a policy; its id."""
        number = self._need_engine().add_policy(policy)
        self._policies[number] = policy
        return number

    def set_policies(self, policies: Sequence[Policy]) -> list[int]:
        """Replace all policies at once."""
        numbers = self._need_engine().set_policies(policies)
        self._policies = dict(zip(numbers, policies, strict=True))
        return numbers

    def del_policy(self, policy: int) -> None:
        """Remove a policy."""
        self._need_engine().del_policy(policy)
        del self._policies[policy]

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason."""
        return self._need_engine().drops()

    def on_event(self, handler: Callable[[BackendEvent], None]) -> None:
        """Who hears of events, called in the event loop."""
        self._handler = handler

    def on_datagram(self, handler: Callable[[Datagram], None]) -> None:
        """Who gets datagrams that are not ESP."""
        self._datagram_handler = handler

    async def sync_routes(self) -> None:
        """Bring the device's MTU and the routes in line with the SAs and policies installed now."""
        router, tun = self._router, self._tun
        if router is None or tun is None:
            return
        mtu = self._settings.mtu or self._fitting_mtu()
        if mtu != self._mtu:
            await self._configure_device(mtu, path_mtu=self._path_mtu())
        own = await self._blocking(router.local_addresses)
        plan = self._plan(own)
        await self._blocking(lambda: router.apply(tun.name, plan))
        self._routed = True

    def _plan(self, own: list[IpAddress]) -> RoutePlan:
        pairs = [(p.action, s) for p in self._policies.values() for s in p.selectors]
        return plan_routes(
            [(s.local.networks(), s.remote.networks()) for action, s in pairs if action is Action.PROTECT],
            peers=[p.remote for p in self._sas.values()],
            # A BYPASS policy for some ports only must not take the whole network out of the tunnel.
            bypass=[
                network
                for action, s in pairs
                if action is Action.BYPASS and not (s.remote.protocol or s.local.protocol)
                for network in s.remote.networks()
            ],
            own=own,
            fail_closed=self._settings.fail_closed,
        )

    def _fitting_mtu(self) -> int:
        fits = [inner_mtu(p) for p in self._sas.values() if p.direction is Direction.OUT]
        return max(min(fits), MIN_MTU) if fits else DEFAULT_MTU

    def _path_mtu(self) -> int:
        return min((p.path_mtu for p in self._sas.values()), default=1500)

    def _need_engine(self) -> CoreEngine:
        if self._engine is None:
            raise BackendError("the backend is not running")
        return self._engine

    # -- what is going on

    @property
    def device(self) -> str:
        """Name of the TUN device, once started."""
        return self._tun.name if self._tun is not None else self._settings.device

    @property
    def ports(self) -> dict[int, int]:
        """UDP port in use, by IP version."""
        return dict(self._ports)

    def providers(self) -> dict[str, str]:
        """Suite name -> crypto provider."""
        return self._need_engine().providers()

    def verdicts(self) -> list[udp.Verdict]:
        """What the start-up probes found."""
        return list(self._verdicts.values())

    def offloads(self) -> dict[str, bool]:
        """Offloads in use now, by all workers."""
        found: dict[str, bool] = {}
        for worker in self._workers:
            for name, on in worker.pump.offloads().items():
                found[name] = found.get(name, True) and on
        return found

    def counters(self) -> dict[str, int]:
        """Counters of all pumps since the start, pumps of an earlier device included."""
        total = dict(self._past)
        for worker in self._workers:
            for name, value in worker.pump.counters().items():
                total[name] = total.get(name, 0) + value
        return total

    def _log_start(self) -> None:
        assert self._tun is not None
        for verdict in self._verdicts.values():
            log.info("offload %s", verdict)
        for name in ("coalesce_tcp", "coalesce_udp"):
            if not self._settings.offload.get(name, True):
                log.info("offload %s off: switched off", name)
        where = f"{self._settings.workers} threads" if self._settings.workers else "the event loop"
        ports = ", ".join(f"IPv{version} UDP port {port}" for version, port in self._ports.items())
        raw = " and IP protocol 50" if self._settings.raw_esp else ""
        log.info("device %s, %s%s, packets move in %s", self._tun.name, ports, raw, where)


def superframe_size(mtu: int, path_mtu: int) -> int:
    """IFLA_GSO_MAX_SIZE that makes one TCP superframe one UDP train: 64 segments, 65507 octets of datagrams.

    ``mtu`` octets inside become a datagram of at most ``path_mtu`` less IP and UDP headers outside.
    """
    segments = min(64, 65507 // max(path_mtu - 28, 1))
    # 52 octets: IPv4 and TCP headers with timestamps, once in the superframe and once in each segment
    return min(segments * (mtu - 52) + 52, 65535)


def _moved(params: SaParams, address: IpAddress, port: int) -> SaParams:
    return replace(params, remote=address, encap=(params.encap[0], port) if params.encap else None)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(JOIN_SECONDS)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True
