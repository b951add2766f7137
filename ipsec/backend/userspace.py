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
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar, assert_never

from ipsec.backend import outside
from ipsec.backend.base import Acquire, BackendEvent, Datagram, DeviceLost, Expire, IpInterface, Mapping
from ipsec.backend.core import Core, CoreEngine, choose_providers, compiled_core
from ipsec.backend.datagrams import Datagrams
from ipsec.backend.place import check_ours, configure, make_router, open_helper
from ipsec.backend.prepared import check_address, take_prepared
from ipsec.backend.routes import DEFAULT_PATH_MTU, Routes
from ipsec.backend.settings import UserspaceSettings
from ipsec.backend.worker import Totals, Worker, join, socket_name
from ipsec.errors import BackendError, SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind, SaStats
from ipsec.esp.sa import Direction, IpAddress, Lifetime, Policy, SaParams
from ipsec.net import readable, udp
from ipsec.net.monitor import Change, LinkMonitor
from ipsec.net.route import Router
from ipsec.net.tun import Tun, open_tun, tun_from_fd
from ipsec.wire.selector import TrafficSelector

log = logging.getLogger(__name__)

T = TypeVar("T")

#: a worker looks at its stop descriptor at least once per batch, so this is generous
JOIN_SECONDS = 0.8


class UserspaceBackend:
    """See ``ipsec.backend.base.Backend``."""

    def __init__(self, settings: UserspaceSettings, *, core: Core | None = None) -> None:
        """``core`` replaces the compiled data path in tests."""
        self._settings = settings
        self._core = core
        self._engine: CoreEngine | None = None
        self._tun: Tun | None = None
        self._router: Router | None = None
        self._claim: socket.socket | None = None
        "keeps others off the table, where that was prepared"
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
        self._totals = Totals()
        self._handler: Callable[[BackendEvent], None] = lambda event: None
        self._datagrams = Datagrams()
        self._tasks: set[asyncio.Task[None]] = set()
        self._helper: ThreadPoolExecutor | None = None
        self._running = False
        self._recovering = False
        self._lost = False
        self._routes = Routes(lambda: self._helper, settings)

    # -- start and stop

    async def start(self) -> None:
        """Acquire everything, or release it again and raise BackendError."""
        self._lost = False
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self._settings
        core = self._core = self._core or compiled_core()
        self._helper = await asyncio.to_thread(open_helper, settings)
        self._engine = core.Engine(
            provider=settings.crypto_provider,
            workers=max(1, settings.workers),
            # No icmp_source: the kernel takes no packet from the device that claims to come from one of its own
            # addresses, so "packet too big" comes from the packet's destination.
            mss_clamp=settings.mss_clamp,
            hold_packets=settings.hold_packets,
        )
        if settings.install_routes and settings.memory is None:
            self._router = await self._blocking(partial(make_router, settings))
        elif settings.prepared and settings.memory is None:
            self._claim = take_prepared(settings)
        self._verdicts = outside.probe(settings)
        try:
            await self._blocking(self._open_tun)
            self._open_sockets()
        except OSError as error:
            raise BackendError(f"cannot open the device or its sockets: {error.strerror}") from error
        await self._configure_device(self._routes.mtu, path_mtu=DEFAULT_PATH_MTU)
        await self._attach_routes(self._routes.mtu)
        self._make_pumps()
        self._log_start()
        self._go()
        self._spawn(choose_providers(self._need_engine()))

    def _open_tun(self) -> None:
        settings = self._settings
        if settings.memory is not None:
            ends = settings.memory
            self._tun = Tun("memory", [os.dup(ends.tun.fd)], ends.tun.vnet_hdr, tso=False, uso=False)
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
        if settings.memory is not None:
            self._sockets = [outside.memory_socket(settings)]
            self._ports = {4: settings.port}
            return
        listen = outside.listen_addresses(settings)
        for address in listen:
            groups = outside.open_group(address, settings, gro=self._verdicts["udp_gro"].on)
            for group in groups:
                self._sockets += group
            self._ports[address.version] = groups[0][0].getsockname()[1]
            self._datagrams.share(groups[0], df_lost=self._df_lost)
        if settings.ike_port is not None:
            self.open_ike(settings.ike_port)

    def open_ike(self, port: int) -> None:
        """Open the sockets for IKE: at the start, or later where nobody spoke any then. BackendError."""
        settings = self._settings
        if settings.memory is None and not self._datagrams.ports:
            listen = outside.listen_addresses(settings)
            self._datagrams.open(listen, port, fwmark=settings.fwmark, inherited=settings.inherited)
            if self._running:
                self._datagrams.start()

    def close_ike(self) -> None:
        """Undo ``open_ike``."""
        self._datagrams.pause()
        self._datagrams.close_ike()

    async def _configure_device(self, mtu: int, *, path_mtu: int) -> None:
        router, tun = self._router, self._tun
        assert tun is not None
        if router is None:
            return
        addresses = (*self._settings.addresses, *self._routes.addresses)
        self._unwatch()
        await self._blocking(partial(configure, router, tun.name, self._settings, addresses, mtu, path_mtu))
        await self._watch()

    async def _attach_routes(self, mtu: int) -> None:
        router = self._router
        if router is not None:
            index = await self._blocking(partial(router.index, self.device))
            self._routes.attach(router, self.device, index, mtu)
            self._routes.watch(await self._blocking(router.watch))

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
                # it would be given what is for other workers too; and what was handed down may be of another namespace
                peer_sockets=settings.peer_socket and settings.workers == 1 and not settings.inherited,
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
        self._datagrams.start()
        self._running = True

    async def quiesce(self) -> None:
        """Stop moving packets, and nothing else: counters and sequence numbers are final afterwards."""
        await self._halt(final=True)

    async def _halt(self, *, final: bool) -> None:
        """``final``: no SA will come for what waits for one."""
        if self._running:
            self._running = False
            self._datagrams.pause()
            for worker in self._workers:
                worker.detach()
        elif self._stop_fd < 0:
            return
        # also if somebody began with it before, and waits still or was cancelled
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)
            stuck = await self._blocking(partial(join, self._workers, JOIN_SECONDS))
            if stuck:
                # Closing descriptors under a running worker could hand it somebody else's file.
                raise BackendError(f"{', '.join(stuck)} did not stop within {JOIN_SECONDS} s")
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1
        for worker in self._workers:
            worker.pump.discard(held=final)
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
        await self._routes.detach()
        if self._router is not None:
            router, keep_closed = self._router, self._stays_closed(self._router)
            await self._blocking(lambda: router.close(keep_closed=keep_closed))
            self._router = None
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        if self._tun is not None:
            self._tun.close()
            self._tun = None
        self._datagrams.close()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._engine = None
        settings = self._settings
        self._routes = Routes(lambda: self._helper, settings)
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
        return self._lost or (bool(router.inherited) and not self._routes.applied)

    def _drop_pumps(self) -> None:
        self._totals.retire(self._workers)
        self._workers.clear()

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper, work)

    # -- what the data path has to say

    def _drain(self, worker: Worker) -> None:
        # first what the data path has to say: a datagram may be handled for long
        self._drain_engine()
        if self._datagrams.drain(worker.pump):
            worker.drain_again()

    def _df_lost(self) -> None:
        for worker in self._workers[:1]:
            worker.pump.forget_df()

    def _drain_engine(self) -> None:
        if self._engine is not None:
            for event in self._engine.events():
                try:
                    self._translate(event)
                except Exception:
                    # most are told once only: one must not take those behind it along
                    log.exception("an event of the data path was not dealt with: %s", event)

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
        self._remember(sa, outside.moved(inbound, address, port))
        for number in list(self._outbound.get(inbound.reqid, ())):
            params = self._sas[number]
            if (params.remote, params.encap) != (inbound.remote, inbound.encap):
                continue
            moved = outside.moved(params, address, port)
            try:
                self.update_sa(number, local=moved.local, remote=address, encap=moved.encap, path_mtu=moved.path_mtu)
            except SaError as error:
                log.warning("SA 0x%08x cannot follow its peer: %s", params.spi, error)

    def _remember(self, sa: int, params: SaParams) -> None:
        """The SA is another one to us than it was; a peer inside a protected network has a throw route of its own."""
        old = self._sas[sa]
        self._sas[sa] = params
        self._routes.move_sa(old, params)

    # -- the device under us

    async def _watch(self) -> None:
        tun = self._tun
        if tun is not None and self._router is not None:
            try:
                self._monitor = await self._blocking(lambda: LinkMonitor(tun.index, up=True))
            except OSError as error:
                raise BackendError(f"device {tun.name} went away during start: {error.strerror}") from error
            readable.watch(self._monitor.fd, self._on_link)

    def _unwatch(self) -> None:
        if self._monitor is not None:
            readable.unwatch(self._monitor.fd)
            self._monitor.close()
            self._monitor = None

    def _on_link(self) -> None:
        if self._monitor is None or self._tun is None:
            return  # the loop had this call in its queue already when the device was closed
        changes = self._monitor.changes()
        if Change.GONE in changes:
            self._device_gone()
            return
        if Change.ADDRESSES in changes:
            self._routes.forget_own(self._monitor.gone())
        if Change.FORWARDING in changes:
            self._routes.forget_mtu()
        name = self._tun.name
        for change in changes:
            if change in (Change.UP, Change.DOWN):
                remedy = f", and nothing passes: ip link set {name} up" if change is Change.DOWN else ""
                log.warning("device %s went %s%s", name, change.value, remedy)
        if Change.UP in changes or Change.TAKEN in changes:
            self._routes.restore()

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
            await self._halt(final=False)
            for worker in self._workers:
                await self._datagrams.drain_all(worker.pump)
            self._drop_pumps()
            assert self._tun is not None
            self._tun.close()
            await self._blocking(partial(check_ours, self._settings, routed=self._router is not None))
            await self._blocking(self._open_tun)
            mtu = self._routes.mtu
            await self._configure_device(mtu, path_mtu=self._routes.path_mtu)
            await self._attach_routes(mtu)
            self._make_pumps()
            await self.sync_routes()
            self._go()
        except (BackendError, OSError) as error:
            self._give_up(str(error))
            return
        except Exception:
            log.exception("the device is not made again")
            self._give_up("an error of ours, see the log")
            return
        finally:
            self._recovering = False
        log.info("device %s is back", self._tun.name)

    def _give_up(self, why: str) -> None:
        """No packets move any more, and somebody has to know: nothing else would tell."""
        self._lost = True
        log.error("cannot make the device again: %s", why)
        self._handler(DeviceLost(why))

    # -- SAs and policies

    def get_spi(self) -> int:
        """A random SPI that no inbound SA has; ``SPI % workers`` decides which worker it keeps busy."""
        while True:
            spi = secrets.randbits(32)
            if spi >= 256 and spi not in self._spis:
                self._spis.add(spi)
                if self._engine is not None:
                    self._engine.expect_spi(spi)
                return spi

    def free_spi(self, spi: int) -> None:
        """An SPI of ``get_spi`` that no SA was added with is not needed any more."""
        self._spis.discard(spi)
        if self._engine is not None:
            self._engine.forget_spi(spi)
            self._wake(self._engine.early())

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if it cannot be, also because this daemon has no socket that fits it."""
        outside.check_sockets(params, self._settings, self._ports)
        engine = self._need_engine()
        sa = engine.add_sa(params)
        self._sas[sa] = params
        self._routes.add_sa(params)
        if params.direction is Direction.IN:
            self._spis.add(params.spi)
            self._wake(engine.early())
        else:
            self._outbound.setdefault(params.reqid, set()).add(sa)
            self._wake(engine.held())
        return sa

    def _wake(self, waiting: int) -> None:
        """Packets that wait for an SA, if there are any, are tried once more."""
        if waiting:
            for worker in self._workers:
                worker.wake()

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses in place."""
        engine = self._need_engine()
        if sa not in self._sas:
            raise SaError(f"there is no SA with id {sa}")
        moved = replace(self._sas[sa], local=local, remote=remote, encap=encap, path_mtu=path_mtu)
        outside.check_sockets(moved, self._settings, self._ports)
        engine.update_sa(sa, local=local, remote=remote, encap=encap, path_mtu=path_mtu)
        self._remember(sa, moved)

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
        self._routes.del_sa(params)
        if params.direction is Direction.IN:
            self._spis.discard(params.spi)
            return
        same = self._outbound[params.reqid]
        same.discard(sa)
        if not same:
            del self._outbound[params.reqid]

    def add_policy(self, policy: Policy) -> int:
        """Add a policy; its id."""
        engine = self._need_engine()
        number = engine.add_policy(policy)
        self._policies[number] = policy
        self._routes.add_policy(policy)
        self._wake(engine.held())
        return number

    def set_policies(self, policies: Sequence[Policy]) -> list[int]:
        """Replace all policies at once."""
        engine = self._need_engine()
        numbers = engine.set_policies(policies)
        # those that stay are not gone in between
        for policy in policies:
            self._routes.add_policy(policy)
        for policy in self._policies.values():
            self._routes.del_policy(policy)
        self._policies = dict(zip(numbers, policies, strict=True))
        self._wake(engine.held())
        return numbers

    def del_policy(self, policy: int) -> None:
        """Remove a policy."""
        engine = self._need_engine()
        engine.del_policy(policy)
        self._routes.del_policy(self._policies.pop(policy))
        self._wake(engine.held())

    def rearm(self, policy: int) -> None:
        """Let the next packet of a policy without an SA raise ACQUIRE at once."""
        self._need_engine().rearm(policy)

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason."""
        return self._need_engine().drops()

    def on_event(self, handler: Callable[[BackendEvent], None]) -> None:
        """Who hears of events, called in the event loop."""
        self._handler = handler

    def on_datagram(self, handler: Callable[[Datagram], None]) -> None:
        """Who gets datagrams that are not ESP."""
        self._datagrams.handler = handler

    def send_datagram(
        self,
        data: bytes,
        local: IpAddress | None,
        local_port: int,
        remote: IpAddress,
        remote_port: int,
        *,
        dscp: int = 0,
    ) -> None:
        """Send IKE, with the non-ESP marker if ``local_port`` is that of ESP."""
        self._datagrams.send(data, local, local_port, remote, remote_port, dscp=dscp)

    def send_keepalive(self, local: IpAddress | None, local_port: int, remote: IpAddress, remote_port: int) -> None:
        """Send a NAT keepalive (RFC 3948 section 2.3)."""
        self._datagrams.keepalive(local, local_port, remote, remote_port)

    async def sync_routes(self) -> None:
        """Return when the device's MTU and the routes are in line with what is installed. BackendError if not."""
        self._on_link()
        await self._routes.sync()

    def begun(self, awaited: Collection[TrafficSelector | None] = ()) -> int:
        """See ``Backend.begun``."""
        return self._routes.begun(awaited)

    def try_sync_routes(self) -> bool:
        """Carry out at once what routes need, if that is little; False: only ``sync_routes`` can."""
        self._on_link()
        return self._routes.try_sync()

    async def add_address(self, address: IpInterface) -> None:
        """Give the device an address; counted."""
        check_address(self._settings, address)
        await self._routes.add_address(address)

    def try_add_address(self, address: IpInterface) -> bool:
        """Give the device an address within this call; False: only ``add_address`` can."""
        if self._settings.prepared or self._monitor is None:
            return False
        return self._routes.try_add_address(address, self._monitor.expect)

    async def del_address(self, address: IpInterface) -> None:
        """Take away an address that was added as often as this is called."""
        await self._routes.del_address(address)

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
    def running(self) -> bool:
        """Whether packets move: from ``start`` to ``stop``, but for the moments in which the device is made again."""
        return self._running

    @property
    def mtu(self) -> int:
        """The device's MTU now."""
        return self._routes.device_mtu

    @property
    def workers(self) -> int:
        """Threads that move packets; 0: the event loop does."""
        return self._settings.workers

    @property
    def raw_esp(self) -> bool:
        """Whether SAs may use IP protocol 50; without it all are encapsulated in UDP."""
        return self._settings.raw_esp

    @property
    def ports(self) -> dict[int, int]:
        """UDP port of ESP in use, by IP version."""
        return dict(self._ports)

    @property
    def ike_ports(self) -> dict[int, int]:
        """UDP port of IKE without a marker, by IP version."""
        return self._datagrams.ports

    def providers(self) -> dict[str, str]:
        """Suite name -> crypto provider."""
        return self._need_engine().providers()

    def offloads(self) -> dict[str, bool]:
        """Offloads in use now, by all workers; of those that do not fall back, as they were found at the start."""
        found = {name: verdict.on for name, verdict in self._verdicts.items()}
        for worker in self._workers:
            for name, on in worker.pump.offloads().items():
                found[name] = found.get(name, True) and on
        return found

    def counters(self) -> dict[str, int]:
        """Counters of all pumps since the start, pumps of an earlier device included, and of IKE datagrams."""
        return self._totals.counters(self._workers) | self._datagrams.counts

    def batches(self) -> dict[str, list[int]]:
        """System calls by how many datagrams they moved (see CorePump), of all pumps since the start."""
        return self._totals.batches(self._workers)

    def _log_start(self) -> None:
        assert self._tun is not None
        for verdict in self._verdicts.values():
            log.info("offload %s", verdict)
        for name in ("coalesce_tcp", "coalesce_udp"):
            if not self._settings.offload.get(name, True):
                log.info("offload %s off: switched off", name)
        workers = self._settings.workers
        where = f"{workers} thread{'s' if workers > 1 else ''}" if workers else "the event loop"
        ports = ", ".join(f"IPv{version} UDP port {port}" for version, port in self._ports.items())
        raw = " and IP protocol 50" if self._settings.raw_esp else ""
        log.info("device %s, %s%s, packets move in %s", self._tun.name, ports, raw, where)
