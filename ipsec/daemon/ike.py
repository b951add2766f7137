"""IKEv2 at work: the engine between the backend, the clock, and what the configuration wants to be up."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_interface
from typing import TypeVar

from ipsec.backend.base import Acquire, Backend, BackendEvent, Datagram, Expire, Mapping
from ipsec.config import Config
from ipsec.config.diff import is_renewed
from ipsec.config.settings import BackendKind
from ipsec.daemon.alarm import Alarm
from ipsec.daemon.children import Children
from ipsec.daemon.closing import close_all
from ipsec.daemon.collector import Collector
from ipsec.daemon.doorstep import Doorstep
from ipsec.daemon.follow import Follower
from ipsec.daemon.guards import Guard, Guards
from ipsec.daemon.keylog import KeyLog, RecordedEngine
from ipsec.daemon.loaded import Loaded, Refuse
from ipsec.daemon.outside import Outside
from ipsec.daemon.paths import Ends, Paths
from ipsec.daemon.reach import OwnAddresses, Resolver, names_of
from ipsec.daemon.rehearsal import rehearse
from ipsec.daemon.retries import Retries
from ipsec.daemon.settings import ike_settings
from ipsec.daemon.traffic import ChildName
from ipsec.daemon.watch import HostWatch
from ipsec.errors import BackendError, IpsecError
from ipsec.esp.sa import IpAddress
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, Connection, IkeSettings
from ipsec.ike.delete import is_to_go, staying
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import (
    KEEPALIVE,
    AddressesAssigned,
    AddressesReleased,
    ChildNotMade,
    Event,
    IkeDown,
    Initiate,
    InstallChild,
    MoveChild,
    Outgoing,
    Path,
    RemoveChild,
    TrapWanted,
)
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.sa import IkeSa
from ipsec.net.route import PROTOCOL

log = logging.getLogger(__name__)

T = TypeVar("T")

#: a child that is to be up and cannot be is tried again after this, doubled each time up to the second
RETRY_S = 10.0
RETRY_MAX_S = 300.0
#: datagrams in one turn of the loop that have waited for routes
SEND_AT_ONCE = 32
#: what nobody waits for is done later: key pairs in advance, a look at why no answer has come
MOMENT_S = 0.05
#: names are looked up again
RESOLVE_S = 60.0
#: a start, or a reload, waits so long for names that a guard needs; they are looked up further afterwards
PATIENCE_S = 2.0


class IkeControl:
    """The IKE engine of one daemon. Everything belongs to the event loop's thread."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        *,
        fwmark: int,
        device: str = "",
        qcd_secret: bytes = b"",
        refuse: Refuse = lambda _: None,
    ) -> None:
        """``device``, if it has another name than the configuration says: one that was handed down has its own.

        ``refuse``: see ``Loaded``.
        """
        self._config = config
        self._backend = backend
        self._resolver = Resolver()
        self._device = device or config.settings.device
        self._own = OwnAddresses(self._resolver, device=self._device, fwmark=fwmark)
        self._paths = Paths(backend, self._resolver, fwmark=fwmark, outside=self._backend_is_outside())
        self._collector = Collector()
        self._loop = asyncio.get_running_loop()
        self._timer = Alarm(self._tick)
        self._tasks: set[asyncio.Task[object]] = set()
        self.retries = Retries()
        self._not_begun: set[str] = set()
        "connections with a child whose start action failed, but not so that it ended the start"
        self._names: dict[str, None] = {}
        "names of what is loaded"
        self._kept: set[str] = set()
        "those that are looked up again and again"
        self._starting = False
        "whoever cannot begin now ends the start"
        self._handled = False
        self._stopping = False
        self._watch: HostWatch | None = None
        self.doorstep = Doorstep()
        self._held: list[Outgoing] = []
        self._holding = False
        ports = backend.ike_ports or backend.ports
        settings = ike_settings(
            config,
            port=next(iter(ports.values()), 0),
            port_nat_t=next(iter(backend.ports.values()), 0),
            qcd_secret=qcd_secret,
        )
        self.observers: list[Callable[[Event], None]] = []
        "who hears of the engine's events, after they have been acted upon"
        self._keylog = KeyLog(config.settings.keylog) if config.settings.keylog else None
        self.engine = self._make_engine(settings)
        self._spare = Alarm(self.engine.prepare)
        self.loaded = Loaded(config, refuse)
        engine, path_mtu = self.engine, config.settings.path_mtu
        self.children = Children(backend, path_mtu=path_mtu, fraction=engine.fraction, is_current=engine.is_current)
        self.guards = Guards(backend, self.engine, keep=config.settings.fail_closed)
        self._follower = Follower(self.engine, self._paths, self.turn)
        radius = config.settings.radius
        self.outside = Outside(self.engine, radius, self.children, self.resolved, self._spawn, self.turn)

    def _make_engine(self, settings: IkeSettings) -> IkeEngine:
        if self._keylog is None:
            return IkeEngine(settings, self, secrets.token_bytes)
        engine = RecordedEngine(settings, self, secrets.token_bytes)
        engine.keylog = self._keylog
        self.observers.append(self._keylog.on_event)
        return engine

    # -- start, reload, stop

    async def start(self) -> None:
        """Take the configuration, put traps and shunts in place, and bring up what is to be up."""
        if self._backend_is_outside():
            self._own.read()
            try:
                self._watch = HostWatch(self._host_changed, ignore_protocol=PROTOCOL, ignore_device=self._device)
            except OSError as error:
                log.warning("changes of our own addresses will not be noticed: %s", error.strerror)
        await self._load(self.loaded.config())
        self.guards.begun()
        self._collector.start()
        self._spawn(rehearse())

    async def reload(self, config: Config) -> None:
        """Another configuration file: what did not change goes on undisturbed, and so does what vici has loaded."""
        self.loaded.read_again(config)
        config = self.loaded.config()
        old = {connection.name: connection for connection in self._config.connections}
        new = {connection.name: connection for connection in config.connections}
        gone = []
        for name, connection in old.items():
            if name in new and is_renewed(connection, new[name]):
                log.info("connection %s has another certificate of ours, from its next authentication on", name)
                self.guards.exchange(connection, new[name])
                for sa in self.engine.named(name):
                    if sa.connection.is_alike(connection):
                        self.engine.rename(sa, new[name])
                old[name] = new[name]
            elif new.get(name) != connection:
                gone.append(connection)
        with self.guards.loading():
            for connection in gone:
                log.info("connection %s %s", connection.name, "changed" if connection.name in new else "was removed")
                self.guards.remove_all(connection, hold=connection.name in new)
                old_sas = [sa for sa in self.engine.named(connection.name) if sa.connection.is_alike(connection)]
                self.engine.terminate_all(old_sas, self._loop.time(), "its connection was reloaded")
            self._config = config
            self.turn()
            try:
                as_before = {name for name, one in new.items() if old.get(name) == one and name not in self._not_begun}
                await self._load(config, unless=as_before)
            finally:
                for connection in gone:
                    self._release(connection)

    async def _load(self, config: Config, unless: Collection[str] | None = None) -> None:
        """``unless``: connections that are there already; None is the start, which fails if anything does.

        Who waits for a name keeps nobody else from beginning, and after PATIENCE_S goes on by himself.
        """
        self._give(config)
        if unless is None:  # not before: a peer that hears that no connection is for it may give up
            self._backend.on_datagram(self.on_datagram)
        jobs = [
            self._task(self._begin_each(connection))
            for connection in config.connections
            if unless is None or connection.name not in unless
        ]
        self._keep_names(config)
        self._starting = unless is None
        try:
            if jobs:
                await asyncio.wait(jobs, timeout=PATIENCE_S, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._starting = False
        failed = [job for job in jobs if job.done() and not job.cancelled() and job.exception() is not None]
        for job in failed:
            job.result()
        self.turn()

    async def _begin_each(self, connection: Connection) -> None:
        """The start actions of all children, whatever becomes of the others.

        If one fails, what was held for its connection stays closed, and the next reload tries again.
        """
        self._not_begun.discard(connection.name)
        failed = await self.begin(connection, connection.children)
        if failed and self._starting:
            raise failed[0][1]
        for child, error in failed:
            self._failed_to_begin(connection, child, error)
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        if connection.name not in self._not_begun:
            self.guards.release(connection.name)

    def _failed_to_begin(self, connection: Connection, child: ChildConfig, error: Exception) -> None:
        self._not_begun.add(connection.name)
        unknown = None if isinstance(error, IpsecError) else error
        log.error("%s: child %s cannot begin: %s", connection.name, child.name, error, exc_info=unknown)

    def _keep_names(self, config: Config) -> None:
        """Look up all names again and again, as long as they are loaded."""
        self._names = dict.fromkeys(
            name for one in config.connections for name in names_of((*one.local_addrs, *one.remote_addrs))
        ) | dict.fromkeys(self.outside.radius.names)
        for name in self._names:
            if name not in self._kept:
                self._kept.add(name)
                self._spawn(self._keep_resolved(name))

    def take_loaded(self) -> None:
        """All that is loaded by now, whose start actions somebody else sees to."""
        try:
            self._config = self.loaded.config()
            self._give(self._config)
            self._keep_names(self._config)
        finally:
            self.doorstep.open(self._hear)

    def _give(self, config: Config) -> None:
        self.engine.load(config.connections, config.credentials, config.pools)
        # whoever loads ever other names must not make us remember them all
        self.children.accounts.keep(self.named())
        loaded = self.engine.table.by_name
        self._not_begun &= loaded.keys()
        self.retries.keep(loaded)

    def named(self) -> set[ChildName]:
        """Connection and child of all that is loaded, and of what is installed."""
        loaded = self.engine.table.by_name.values()
        return {(one.name, child.name) for one in loaded for child in one.children} | self.children.names()

    async def begin(
        self, connection: Connection, children: Iterable[ChildConfig]
    ) -> list[tuple[ChildConfig, Exception]]:
        """The start actions of children, those first that need not know where the peer is; which failed, and why."""
        failed = []
        expected = []
        for child in children:
            if self.guards.needs_peer(connection, child):
                expected.append(self.guards.expect(connection, child))
            elif why := self._begin(connection, child, None):
                failed.append((child, why))
        if not expected:
            return failed
        changes = self._paths.changes
        try:
            ends = await self._paths.ends(connection)
        except Exception as error:
            for guard in expected:
                self.guards.forget(guard)
            return [*failed, *((guard.child, error) for guard in expected)]
        later = []
        for guard in filter(self.guards.is_expected, expected):
            if ends is None and names_of(connection.remote_addrs):
                later.append(guard)
            else:
                self.guards.forget(guard)
            if why := self._begin(guard.connection, guard.child, ends):
                failed.append((guard.child, why))
        if later:
            self._spawn(self._guard_later(connection, later, changes))
        return failed

    def _begin(self, connection: Connection, child: ChildConfig, ends: Path | Ends | None) -> Exception | None:
        """The start action of one child; why it failed."""
        # what was to be tried again was another one
        self.retries.forget((connection.name, child.name))
        try:
            self.guards.add(connection, child, ends)
        except Exception as error:
            return error
        if child.starts:
            self._spawn(self.connect(connection, child))
        return None

    async def _guard_later(self, connection: Connection, expected: Iterable[Guard], changes: int) -> None:
        """Nobody knew, after so many changes, where the peer is: keep its traffic in as soon as somebody does."""
        ends = None
        while ends is None:
            await self._paths.changed(changes, RETRY_S)
            if not any(map(self.guards.is_expected, expected)):
                if all(self.guards.has(one.connection.name, one.child.name) for one in expected):
                    # somebody has installed them by vici
                    self._release(connection)
                return
            changes = self._paths.changes
            ends = await self._paths.ends(connection)
        for guard in filter(self.guards.is_expected, expected):
            self.guards.forget(guard)
            try:
                self.guards.add(guard.connection, guard.child, ends)
            except Exception as error:
                self._failed_to_begin(guard.connection, guard.child, error)
        self._release(connection)

    async def stop(self) -> None:
        """Close everything at the peers, as far as they answer."""
        self._stopping = True
        if self._handled:
            return
        self._handled = True
        for task in list(self._tasks):
            task.cancel()
        await self.outside.close_all(close_all(self.engine, self.turn))
        self._timer.stop()
        self._spare.stop()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._follower.stop()
        if self._keylog is not None:
            self._keylog.close()
        self.outside.close()
        self._resolver.close()
        self._collector.stop()

    # -- what comes in

    def on_datagram(self, datagram: Datagram) -> None:
        """IKE from outside."""
        if not self.doorstep.keeps(datagram):
            self._hear(datagram)

    def _hear(self, datagram: Datagram) -> None:
        path = Path(datagram.local, datagram.local_port, datagram.source, datagram.port)
        self.engine.receive_datagram(datagram.data, path, self._loop.time())
        self.turn()

    def on_event(self, event: BackendEvent) -> None:
        """What the data path has to say."""
        now = self._loop.time()
        if isinstance(event, Acquire):
            self._acquire(event)
        elif isinstance(event, Expire):
            child = self.children.of_sa(event.sa)
            if child is not None:
                self.engine.expire_child(child, now, hard=event.hard)
        elif isinstance(event, Mapping):
            child = self.children.of_sa(event.sa)
            if child is not None:
                log.info("%s: CHILD_SA %s: the peer is at %s[%d] now", child.ike, child, event.address, event.port)
                path = child.ike.path._replace(remote=event.address, remote_port=event.port)
                self.engine.peer_moved(child, path, now)
        self.turn()

    def _acquire(self, event: Acquire) -> None:
        found = self.guards.wanted(event.policy)
        if found is not None and not self._stopping:
            connection, child = found
            log.info("%s: traffic for %s", connection.name, child.name)
            self._spawn(self.connect(connection, child))

    def _backend_is_outside(self) -> bool:
        return self._config.settings.backend is not BackendKind.MEMORY

    def _host_changed(self) -> None:
        """Addresses or routes of this host are others: IKE_SAs move to where the way to their peer begins now."""
        if self._stopping:
            return
        self._paths.host_changed()
        self._own.read()
        self._follower.host_changed()

    def turn(self) -> None:
        """Act on events, send, arm the timer, catch up: in this order (see ``ipsec.ike.engine``)."""
        engine = self.engine
        while (event := engine.next_event()) is not None:
            self._handle(event)
            self.outside.handle(event)
            for observer in tuple(self.observers):
                observer(event)
        datagrams = engine.datagrams_to_send()
        if self.children.new_policies and not self._stopping:
            # the peer may use a CHILD_SA as soon as it has our answer, and our own answers need routes
            self.children.new_policies = False
            if self._holding or not self._backend.try_sync_routes():
                self._held += datagrams
                datagrams = []
                if not self._holding:
                    self._holding = True
                    self._spawn(self._send_held())
        self._send(datagrams)
        self._timer.set(engine.next_timer())
        engine.catch_up()
        if engine.unprepared:
            self._spare.set(self._loop.time() + MOMENT_S)

    def _send(self, datagrams: Iterable[Outgoing]) -> None:
        for data, path, dscp in datagrams:
            if data == KEEPALIVE:
                self._backend.send_keepalive(*path)
            else:
                self._backend.send_datagram(data, *path, dscp=dscp)

    async def _send_held(self) -> None:
        """Send what waits for routes; those that come to wait meanwhile have the next round."""
        try:
            while self._held:
                held, self._held = self._held, []
                try:
                    await self._backend.sync_routes()
                except BackendError as error:
                    log.error("routes: %s", error)
                for at in range(0, len(held), SEND_AT_ONCE):
                    self._send(held[at : at + SEND_AT_ONCE])
                    await asyncio.sleep(0)
        finally:
            self._holding = False

    def _tick(self) -> None:
        self.engine.handle_timer(self._loop.time())
        self.turn()

    # -- what the engine wants

    def _handle(self, event: Event) -> None:
        match event:
            case InstallChild():
                refused = self.children.install(event)
                if refused is not None:
                    self.engine.child_failed(event.child, refused, self._loop.time())
                elif not self.children.is_replaced(event.child):  # else what waits for traffic wants another peer
                    self.retries.forget((event.child.ike.name, event.child.name))
                    self.guards.narrow(event.child.ike.name, event.child.name, event.path)
                    self.guards.put_last(event.child.ike.name, event.child.name)
            case RemoveChild():
                self.children.remove(event)
            case MoveChild():
                self.children.move(event)
            case AddressesAssigned():
                for address in event.addresses:
                    if not self._backend.try_add_address(ip_interface(address)):
                        self._spawn(self._add_address(address))
            case AddressesReleased():
                for address in event.addresses:
                    self._spawn(self._backend.del_address(ip_interface(address)))
            case Initiate():
                self._initiate(event)
            case TrapWanted():
                self._trap(event.connection, event.child)
            case IkeDown():
                self._lost(event)
            case ChildNotMade():
                self.guards.rearm(event.sa.name, event.config.name)
                self._retry(event.sa.connection, event.config)

    async def _add_address(self, address: IpAddress) -> None:
        try:
            await self._backend.add_address(ip_interface(address))
        except BackendError as error:
            log.error("cannot take the virtual address %s: %s", address, error)

    def _initiate(self, event: Initiate) -> None:
        connection = self.engine.table.by_name.get(event.connection)
        if connection is None or self._stopping:
            return
        child = connection.child(event.child) if event.child is not None else None
        self._spawn(self.connect(connection, child, event))

    def _trap(self, name: str, child: str) -> None:
        connection = self.engine.table.by_name.get(name)
        config = connection.child(child) if connection is not None else None
        if connection is not None and config is not None:
            self._spawn(self.add_guard(connection, config, trap=True))

    async def add_guard(self, connection: Connection, child: ChildConfig, *, trap: bool) -> None:
        """Put in place what a child's start action asks for; ``trap``: in any case a trap."""
        ends: Path | Ends | None = None
        if self.guards.needs_peer(connection, child, trap=trap):
            found = await self._way(connection, child)
            if found is None:
                return
            connection = found[0]
            ends = found[1] or self._paths.without_route(connection)
        self.guards.add(connection, child, ends, trap=trap)

    def _lost(self, event: IkeDown) -> None:
        """An IKE_SA that is gone: what it should have brought up is tried again."""
        connection = event.sa.connection
        if not event.established and not event.sa.initiator:
            # whoever began it has not shown who it is, and no packet of ours has waited for it
            return
        for child in connection.children:
            self.guards.rearm(connection.name, child.name)
        if event.established:
            return
        who = str(event.sa.path.remote)
        log.warning("%s: not established%s: %s", event.sa, "" if who in event.reason else f" with {who}", event.reason)
        for child in connection.children:
            self._retry(connection, child)

    def _retry(self, connection: Connection, child: ChildConfig, changes: int | None = None) -> None:
        """``changes`` there had been when there was no way to the peer: as soon as there is one."""
        if self._stopping or not child.starts or self._is_up(connection.name, child):
            return
        name = connection.name, child.name
        wait = self.retries.put_off(name, self._loop.time(), first=RETRY_S, most=RETRY_MAX_S)
        if wait is None:
            return
        sooner = " or as soon as there is a way" if changes is not None else ""
        log.info("%s: trying %s again in %d s%s", connection.name, child.name, wait, sooner)
        self._spawn(self._connect_later(connection, name, wait, changes))

    async def _connect_later(self, connection: Connection, name: ChildName, wait: float, changes: int | None) -> None:
        at = self.retries.due.get(name)
        await (asyncio.sleep(wait) if changes is None else self._paths.appears(connection, changes, wait))
        if not self.retries.take(name, at):
            return
        # a reload may have changed it: then what failed was on its way still. Or the peer may have come by itself
        current = self.engine.table.by_name.get(connection.name)
        child = current.child(name[1]) if current is not None else None
        if current is not None and child is not None and child.starts and not self._is_up(current.name, child):
            await self.connect(current, child)

    def _is_up(self, connection: str, child: ChildConfig) -> bool:
        own = (sa for sa in self.engine.named(connection) if self.engine.is_current(sa.connection))
        return any(other.name == child.name for sa in own for other in staying(sa))

    async def connect(
        self, connection: Connection, child: ChildConfig | None, event: Initiate | None = None
    ) -> IkeSa | None:
        """Bring up a child, or the IKE_SA alone; None if there is no way to the peer, or it is to be up no longer."""
        remote = event.remote if event is not None else None
        changes = self._paths.changes
        found = await self._way(connection, child, remote)
        if found is None:
            return None
        connection = found[0]
        replaces = event.replaces if event is not None else 0
        old = self.engine.sas.get(replaces)
        if replaces and (old is None or not old.established or is_to_go(old)):
            return None
        path = (event.path if event is not None else None) or found[1]
        if path is None:
            why = self._paths.obstacle((str(remote),) if remote is not None else connection.remote_addrs)
            log.warning("%s: %s", connection.name, why)
            failure = Failure(Cause.NO_PATH, why, child.name if child is not None else "")
            self.engine.note_without(failure, connection.name, None, initiator=True)
            if child is not None:
                self.guards.rearm(connection.name, child.name)
                # where a redirection leads is not where the next try goes
                self._retry(connection, child, changes if remote is None else None)
            self.turn()
            return None
        wanted = []
        if child is not None:
            self.guards.narrow(connection.name, child.name, path)
            wanted.append((child, self.guards.reqid(connection.name, child.name)))
        sa = self.engine.initiate(
            connection,
            wanted,
            path,
            self._loop.time(),
            replaces=replaces,
            redirected_from=event.redirected_from if event is not None else None,
            addresses=event.addresses if event is not None else (),
        )
        self.turn()
        if not sa.established:
            self._loop.call_later(MOMENT_S, self._look_for_way, sa, child.name if child is not None else "")
        return sa

    def _look_for_way(self, sa: IkeSa, child: str) -> None:
        if sa.uid in self.engine.sas and sa.spi_r == bytes(8) and not self._paths.can_send(sa.path):
            # it goes on all the same: the address may be on its way here, as one that two gateways share
            local, remote = sa.path.local, sa.path.remote
            why = f"{local} in local_addrs is no address of this host, or no route leads from it to {remote}"
            log.warning("%s: %s", sa, why)
            self.engine.note(Failure(Cause.NO_PATH, why, child), sa)
            self.turn()

    async def _way(
        self, connection: Connection, child: ChildConfig | None, remote: IpAddress | str | None = None
    ) -> tuple[Connection, Path | None] | None:
        """The way to the peer, or to ``remote`` where that sends us, and the connection as it is loaded by then.

        A name server may take its time, and what is unloaded meanwhile must not come up: None, also if the child is
        another one, for whoever changed it has seen to its start action. With another peer it goes on there.
        """
        while True:
            # the connection stays what it is, for reloads and retries
            target = connection if remote is None else replace(connection, remote_addrs=(str(remote),))
            path = await self._paths.to(target)
            # the engine's table follows what is loaded a moment later
            now = self.loaded.connection(connection.name)
            gone = now is None or self._stopping or (child is not None and now.child(child.name) != child)
            if now is not None and not gone and now.is_alike(connection):
                return now, path
            if now is None or gone or remote is not None:
                what = f"{connection.name}/{child.name}" if child is not None else connection.name
                log.info("%s is not what it was before its peer was looked up: let be", what)
                return None
            connection = now

    async def _keep_resolved(self, name: str) -> None:
        try:
            while name in self._names:
                await self._resolver.resolve(name)
                await asyncio.sleep(RESOLVE_S)
        finally:
            self._kept.discard(name)

    async def to_the_end(self, work: Coroutine[object, object, T]) -> T:
        """Do what must not stop half-way when whoever has asked for it goes: traps and shunts would be missing."""
        return await asyncio.shield(self._task(work))

    def _task(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """One that ``stop`` cancels, and whoever began it looks after."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        self._task(work).add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("this is a bug", exc_info=task.exception())

    # -- ipsec.ike.host.Host

    def allocate_spi(self) -> int:
        """See Host."""
        return self._backend.get_spi()

    def free_spi(self, spi: int) -> None:
        """See Host."""
        self._backend.free_spi(spi)

    def last_use(self, child: ChildSa) -> float | None:
        """See Host."""
        return self.children.last_use(child)

    def last_traffic(self, child: ChildSa) -> float | None:
        """See Host."""
        return self.children.last_use(child, outbound=True)

    def wall(self) -> datetime:
        """See Host."""
        return datetime.now(UTC)

    def resolved(self, name: str) -> tuple[IpAddress, ...]:
        """See Host."""
        return self._resolver.known(name)

    def local_addresses(self, connection: Connection) -> tuple[IpAddress, ...]:
        """See Host."""
        return tuple(a for a in self._own.of(connection.local_addrs) if a.version in self._backend.ports)

    def sources(self, connection: Connection, remote: IpAddress) -> Iterable[IpAddress]:
        """See Host."""
        if remote.version not in self._backend.ports or not self._backend_is_outside():
            return ()
        return self._own.towards(remote, connection.local_addrs)

    def established(self) -> list[IkeSa]:
        """IKE_SAs that are up."""
        return [sa for sa in self.engine.sas.values() if sa.established]
