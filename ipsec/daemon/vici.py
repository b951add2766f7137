"""vici at work: the commands of ``ipsec.vici`` on the daemon's IKEv2 and on what is loaded.

What comes by ``load-conn`` is undone and done as charon does it. If nothing but the children of a connection differ,
its IKE_SAs go on with the new ones: children that are gone or changed have their start action undone, those that are
new or changed have it done. Otherwise all start actions of the old connection are undone and those of the new one done;
IKE_SAs that no start action began live on as they were negotiated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ipsec.backend.userspace import UserspaceBackend
from ipsec.config import Config
from ipsec.config.diff import changes
from ipsec.config.settings import VICI_SOCKET, DaemonSettings
from ipsec.daemon.health import Health
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.settings import may_write
from ipsec.errors import ConfigError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Direction, SaParams
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Action, ChildConfig, Connection
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Event, Initiate
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import CHILD_GOING, IkeState
from ipsec.vici.commands import ViciService
from ipsec.vici.control import DataPath, ManualSa, Policy, Preview, RadiusState
from ipsec.vici.show import Traffic

if TYPE_CHECKING:
    # it brings the client library of Prometheus, which not everybody needs
    from ipsec.daemon.metrics import Manual

log = logging.getLogger(__name__)

#: what is loaded is in effect after this, or with the next command that needs it
SETTLE_S = 0.05


class ConfigFile(Protocol):
    """Where the configuration comes from."""

    async def reload(self) -> str:
        """Read it again and have it take effect; why not, or an empty text."""

    async def preview(self) -> tuple[Config, Config]:
        """What is in effect, and what is in the file with it. ConfigError."""


class ViciControl:
    """``ipsec.vici.control.Control`` for an IkeControl."""

    def __init__(
        self,
        ike: IkeControl,
        backend: UserspaceBackend,
        health: Health,
        file: ConfigFile,
        manual: Manual,
        keylog: str = "",
    ) -> None:
        self._ike = ike
        self._backend = backend
        self._health = health
        self._file = file
        self._manual = manual
        self._keylog = keylog
        self._loop = asyncio.get_running_loop()
        self._pending: asyncio.TimerHandle | None = None
        "what was loaded is not in the engine yet"

    @property
    def engine(self) -> IkeEngine:
        """See Control. It has all that was loaded."""
        self._settle()
        return self._ike.engine

    @property
    def version(self) -> str:
        """See Control."""
        try:
            return metadata.version("ipsec")
        except metadata.PackageNotFoundError:
            return "unknown"

    def now(self) -> float:
        """See Control."""
        return self._loop.time()

    def turn(self) -> None:
        """See Control."""
        self._ike.turn()

    def traffic(self, child: ChildSa) -> Traffic:
        """See Control."""
        return traffic(self._ike, child)

    def manual_sas(self) -> list[ManualSa]:
        """See Control."""
        found: dict[str, dict[Direction, tuple[SaParams, SaStats]]] = {}
        for name, params, stats in self._manual():
            found.setdefault(name, {})[params.direction] = (params, stats)
        return [ManualSa(name, pair[Direction.IN], pair[Direction.OUT]) for name, pair in found.items()]

    def radius(self) -> Sequence[RadiusState]:
        """See Control."""
        return self._ike.outside.radius_states

    def data_path(self) -> DataPath:
        """See Control."""
        backend = self._backend
        return DataPath(
            device=backend.device,
            mtu=backend.mtu,
            workers=backend.workers,
            ports=backend.ports,
            ike_ports=backend.ike_ports,
            raw_esp=backend.raw_esp,
            offloads=backend.offloads(),
            providers=backend.providers(),
            counters=backend.counters(),
            drops={reason.name: count for reason, count in backend.drops().items()},
            keylog=self._keylog,
        )

    def retry_in(self, connection: str, child: str) -> float | None:
        """See Control."""
        at = self._ike.retries.due.get((connection, child))
        return max(at - self._loop.time(), 0.0) if at is not None else None

    def give_up(self, connection: str, child: str) -> int:
        """See Control."""
        waiting = self._ike.retries.due
        found = [key for key in waiting if connection in ("", key[0]) and child in ("", key[1])]
        for key in found:
            log.info("%s: %s is not tried again: terminated", *key)
            del waiting[key]
        return len(found)

    def observe(self, observer: Callable[[Event], None]) -> Callable[[], None]:
        """See Control."""
        self._ike.observers.append(observer)
        return lambda: self._ike.observers.remove(observer)

    def health(self) -> Mapping[str, Sequence[str]]:
        """See Control."""
        self._settle()
        return {question: verdict.problems for question, verdict in self._health.all().items()}

    # -- what is up

    async def connect(self, connection: Connection, child: ChildConfig | None) -> IkeSa | None:
        """See Control."""
        self._settle()
        path = self.engine.standing(connection)
        event = Initiate(connection.name, child.name if child is not None else None, path=path)
        return await self._ike.connect(connection, child, event)

    async def install(self, connection: Connection, child: ChildConfig) -> bool:
        """See Control."""
        if child.shunt and child.start_action is Action.NONE:
            child = replace(child, start_action=Action.TRAP)
        await self._ike.add_guard(connection, child, trap=not child.shunt)
        return self._ike.guards.has(connection.name, child.name)

    async def routed(self) -> None:
        """See Control."""
        await self._ike.children.routed()

    async def uninstall(self, connection: str, child: str) -> bool:
        """See Control."""
        return self._ike.guards.uninstall(connection, child)

    def policies(self) -> list[Policy]:
        """See Control."""
        return [Policy(*found) for found in self._ike.guards.visible()]

    # -- what is loaded

    async def load_connection(self, name: str, message: Mapping[str, Any]) -> None:
        """See Control."""
        loaded = self._ike.loaded
        old = loaded.connection(name)
        loaded.load_connection(name, message)
        self._changed()
        await self._ike.to_the_end(self._exchange(old, loaded.connection(name)))
        log.info("%s connection: %s", "added" if old is None else "replaced", name)
        for warning in loaded.warnings(name):
            log.warning("%s", warning)

    async def unload_connection(self, name: str) -> bool:
        """See Control."""
        old = self._ike.loaded.connection(name)
        if old is None or not self._ike.loaded.unload_connection(name):
            return False
        self._changed()
        await self._exchange(old, None)
        log.info("removed connection: %s", name)
        return True

    def load_certificate(self, data: bytes, flag: str) -> None:
        """See Control."""
        self._ike.loaded.load_certificate(data, flag)
        self._changed()

    def load_crl(self, data: bytes) -> None:
        """See Control."""
        self._ike.loaded.load_crl(data)
        self._changed()

    def load_public_key(self, data: bytes) -> None:
        """See Control."""
        self._ike.loaded.load_public_key(data)

    def public_keys(self) -> Sequence[bytes]:
        """See Control."""
        return self._ike.loaded.public_keys()

    def load_key(self, kind: str, data: bytes) -> str:
        """See Control."""
        found = self._ike.loaded.load_key(kind, data)
        self._changed()
        return found

    def unload_key(self, key_id: str) -> bool:
        """See Control."""
        found = self._ike.loaded.unload_key(key_id)
        self._changed()
        return found

    def key_ids(self) -> Sequence[str]:
        """See Control."""
        return self._ike.loaded.key_ids()

    def load_shared(self, name: str, secret: bytes, owners: Sequence[str], kind: str) -> None:
        """See Control."""
        self._ike.loaded.load_shared(name, secret, list(owners), kind)
        self._changed()

    def unload_shared(self, name: str) -> bool:
        """See Control."""
        found = self._ike.loaded.unload_shared(name)
        self._changed()
        return found

    def shared_names(self) -> Sequence[str]:
        """See Control."""
        return self._ike.loaded.shared_names()

    def load_authority(self, name: str, message: Mapping[str, Any]) -> None:
        """See Control."""
        self._ike.loaded.load_authority(name, message)
        self._changed()

    def unload_authority(self, name: str) -> bool:
        """See Control."""
        found = self._ike.loaded.unload_authority(name)
        self._changed()
        return found

    def load_pool(self, name: str, message: Mapping[str, Any]) -> None:
        """See Control."""
        pool = self._ike.engine.pools.get(name)
        before = self._ike.loaded.load_pool(name, message, online=pool.online if pool is not None else 0)
        self._changed()
        log.info("%s pool %s", before, name)
        for other in self._ike.loaded.overlapping(name):
            log.warning("the pools %s and %s overlap: what one has given, the other does not give", name, other)

    def unload_pool(self, name: str) -> bool:
        """See Control."""
        pool = self.engine.pools.get(name)
        if pool is not None and pool.online:
            raise ConfigError(f"vici pool {name} has {pool.online} online leases, unable to unload")
        found = self._ike.loaded.unload_pool(name)
        self._changed()
        return found

    def clear_credentials(self) -> None:
        """See Control."""
        self._ike.loaded.clear_credentials()
        self._changed()

    async def reload_settings(self) -> None:
        """See Control."""
        why = await self._ike.to_the_end(self._file.reload())
        if why:
            raise ConfigError(why)

    async def preview(self) -> Preview:
        """See Control."""
        try:
            old, new = await self._file.preview()
        except ConfigError as error:
            raise ConfigError(error.in_short()) from None
        return Preview(new.file, new.warnings, changes(old, new))

    def _changed(self) -> None:
        """The engine takes it soon: making its tables anew for each of a thousand commands would take minutes."""
        if self._pending is None:
            self._ike.doorstep.close()
            self._pending = self._loop.call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
            self._ike.take_loaded()

    # -- start actions

    async def _exchange(self, old: Connection | None, new: Connection | None) -> None:
        """See the module's text."""
        same = old is not None and new is not None and replace(old, children=()) == replace(new, children=())
        before = old.children if old is not None else ()
        after = new.children if new is not None else ()
        if old is not None:
            self._undo(old, [one for one in before if not same or one not in after], replaced=new is not None)
            if same and new is not None:
                engine = self._ike.engine
                self._ike.guards.exchange(old, new)
                for sa in engine.named(old.name):
                    if sa.connection.is_alike(old):
                        engine.rename(sa, new)
        self.turn()
        if new is None:
            if old is not None:
                # nothing comes after what is held for it
                self._ike.guards.release(old.name)
            return
        try:
            begin = [child for child in after if not same or child not in before]
            if any(Action.START in child.start_action for child in begin):
                self._settle()
            for _, error in await self._ike.begin(new, begin):
                raise error
        finally:
            self._ike.guards.release(new.name)
        self.turn()

    def _undo(self, connection: Connection, children: Sequence[ChildConfig], *, replaced: bool) -> None:
        """Take traps and shunts of children away, and close what their start actions began."""
        for child in children:
            self._ike.guards.remove(connection.name, child.name, hold=replaced)
        names = {child.name for child in children if Action.START in child.start_action}
        if not names:
            return
        engine, now, why = self.engine, self.now(), "its connection was unloaded"
        doomed: list[IkeSa] = []
        parts: list[ChildSa] = []
        for sa in engine.named(connection.name):
            # one that was rekeyed lingers for some seconds
            staying = [one for one in sa.children.values() if one.state not in CHILD_GOING]
            if sa.state is IkeState.CONNECTING:
                doomed += [sa] if sa.initiator else []
            elif all(one.name in names for one in staying):
                doomed.append(sa)
            else:
                parts += [one for one in sa.children_up() if one.name in names]
        engine.terminate_all(doomed, now, why)
        engine.terminate_children(parts, now, why)


def traffic(ike: IkeControl, child: ChildSa) -> Traffic:
    """Counters of a CHILD_SA."""
    inbound, outbound = ike.children.stats(child)
    # the data path's clock, which may be another one than the event loop's
    now = time.monotonic()

    def ago(last: float | None) -> float | None:
        return max(now - last, 0.0) if last is not None else None

    return Traffic(
        bytes_in=inbound.bytes if inbound else 0,
        packets_in=inbound.packets if inbound else 0,
        use_in=ago(inbound.last_use) if inbound else None,
        bytes_out=outbound.bytes if outbound else 0,
        packets_out=outbound.packets if outbound else 0,
        use_out=ago(outbound.last_use) if outbound else None,
        drops={reason.name: count for stats in (inbound, outbound) if stats for reason, count in stats.drops.items()},
    )


async def start(
    ike: IkeControl,
    backend: UserspaceBackend,
    settings: DaemonSettings,
    health: Health,
    file: ConfigFile,
    manual: Manual,
) -> ViciService | None:
    """Serve vici. BackendError if a socket cannot be had; only a warning for the default path without privileges."""
    path, tcp = settings.vici_socket, settings.vici_tcp
    service = ViciService(ViciControl(ike, backend, health, file, manual, settings.keylog))
    if path == VICI_SOCKET and not may_write(Path(path).parent):
        log.warning("no vici: %s cannot be made; ipsecd.vici_socket names another place", path)
        path = ""
    if not path and tcp is None:
        return None
    try:
        if path:
            await service.listen(path, group=settings.vici_group, mode=settings.vici_mode)
            log.info("vici on %s", path)
        if tcp is not None:
            await service.listen_tcp(str(tcp.address), tcp.port)
            log.warning("vici on TCP %s: every user of this host controls the daemon (ipsecd.vici_tcp)", tcp)
    except BaseException:
        await service.stop()
        raise
    service.start()
    return service
