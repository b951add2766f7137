"""A host: an engine, and a model of a data path.

SAs come and go as the engine's events say, and packets go through whichever SA a real data path would take.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ipsec.crypto.identity import parse_pattern
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import (
    Connection,
    IkeSettings,
    PoolConfig,
)
from ipsec.ike.credentials import Credentials, EapSecret, Ppk, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import (
    ChildDown,
    ChildUp,
    Event,
    IkeDown,
    IkeUp,
    Initiate,
    InstallChild,
    MoveChild,
    Path,
    RemoveChild,
)
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from tests.sim.link import Esp, IpAddress, Nat, Violation

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass
class Inbound:
    child: ChildSa
    key: bytes
    numbers: set[int] = field(default_factory=set)
    highest: int = -1


@dataclass
class Outbound:
    child: ChildSa
    key: bytes
    path: Path
    encap: bool
    number: int = 0


class SimHost:
    """An engine with its host: addresses, a data path, and a wish to stay connected."""

    def __init__(self, world: World, name: str, addresses: Sequence[IpAddress], settings: IkeSettings) -> None:
        self.world = world
        self.name = name
        self.addresses = list(addresses)
        self.settings = settings
        self.rng = random.Random(f"{world.seed}/{name}")
        self.unrouted: set[tuple[IpAddress, IpAddress]] = set()
        "(own, remote): this host knows that no way leads from one to the other"
        self.nat: Nat | None = None
        self.connections: dict[str, Connection] = {}
        self.pools: list[PoolConfig] = []
        self.keep: set[str] = set()
        "connections to bring up again when they are gone"
        self.seen: list[Event] = []
        "all events but those of the data path"
        self.reserved: set[int] = set()
        self.early: dict[int, list[tuple[Esp, Path]]] = {}
        "packets that came before their SA, by SPI: they are its first ones"
        self.inbound: dict[int, Inbound] = {}
        self.outbound: dict[tuple[int, int], Outbound] = {}
        "by (spi, uid of the child), in the order in which a host would use them: the last one first"
        self.gone: dict[int, str] = {}
        "inbound SPIs that are no more, and why"
        self.used: dict[int, float] = {}
        self.traffic: dict[int, float] = {}
        self.up: set[int] = set()
        self.generation = 0
        self.engine = self._engine()

    def _engine(self) -> IkeEngine:
        return IkeEngine(self.settings, self, self.rng.randbytes)

    # -- what the engine asks (ipsec.ike.host)

    def allocate_spi(self) -> int:
        while True:
            spi = self.rng.randrange(256, 1 << 32)
            if spi not in self.reserved and spi not in self.inbound and spi not in self.gone:
                self.reserved.add(spi)
                return spi

    def free_spi(self, spi: int) -> None:
        if spi not in self.reserved:
            raise Violation(f"{self.name}: SPI {spi:08x} is given back and was not reserved")
        self.reserved.discard(spi)
        self.early.pop(spi, None)
        self.gone[spi] = "not used"

    def last_use(self, child: ChildSa) -> float | None:
        return self.used.get(child.uid)

    def last_traffic(self, child: ChildSa) -> float | None:
        return self.traffic.get(child.uid)

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def resolved(self, name: str) -> tuple[IpAddress, ...]:
        return ()

    def local_addresses(self, connection: Connection) -> tuple[IpAddress, ...]:
        return tuple(self.addresses)

    def sources(self, connection: Connection, remote: IpAddress) -> tuple[IpAddress, ...]:
        found = [address for address in self.addresses if address.version == remote.version]
        return tuple(address for address in found if (address, remote) not in self.unrouted)

    # -- commands

    def load(
        self,
        *connections: Connection,
        secret: bytes = b"a secret that nobody guesses",
        ppks: Iterable[Ppk] = (),
        eap: Iterable[EapSecret] = (),
    ) -> None:
        self.connections = {connection.name: connection for connection in connections}
        owners = tuple(parse_pattern(text) for text in ("moon", "sun", "carol", "dave"))
        secrets = [SharedSecret(secret, owners)]
        self.engine.load(connections, Credentials(secrets=secrets, ppks=ppks, eap_secrets=eap), self.pools)

    def initiate(self, name: str = "c", children: Iterable[str] | None = None, **more: Any) -> IkeSa:
        """Bring a connection up, as a daemon would."""
        connection = self.connections[name]
        wanted = [c for c in connection.children if children is None or c.name in set(children)]
        local = next((ip_address(a) for a in connection.local_addrs if a[0] != "%"), self.addresses[0])
        path = more.pop("path", None)
        if path is None:
            remote = more.pop("remote", None) or ip_address(connection.remote_addrs[0])
            path = Path(local if local in self.addresses else self.addresses[0], 500, remote, 500)
        reqids = [(child, more.get("reqid", 0)) for child in wanted]
        more.pop("reqid", None)
        sa = self.engine.initiate(connection, reqids, path, self.world.now, **more)
        self.world.after(self)
        return sa

    def do(self, command: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """A command of the engine, and everything that comes of it."""
        result = command(*arguments, self.world.now, **more)
        self.world.after(self)
        return result

    def close_child(self, child: ChildSa) -> None:
        """Close a CHILD_SA: what is on its way through it is lost, also if its peer never heard that it is up."""
        self.world.ended |= {child.spi_in, child.spi_out}
        self.do(self.engine.terminate_child, child)

    def restart(self) -> None:
        """Lose everything but the configuration and ``qcd_secret``."""
        self.generation += 1
        for spi in self.inbound:
            self.gone[spi] = "restart"
        self.reserved.clear()
        self.early.clear()
        self.inbound.clear()
        self.outbound.clear()
        self.up.clear()
        self.engine = self._engine()
        self.load(*self.connections.values())

    # -- what there is

    @property
    def ikes(self) -> list[IkeSa]:
        """IKE_SAs that are established and were not replaced."""
        return [sa for sa in self.engine.sas.values() if sa.established and not sa.quiet]

    @property
    def ike(self) -> IkeSa:
        assert len(self.ikes) == 1, self.ikes
        return self.ikes[0]

    @property
    def children(self) -> list[ChildSa]:
        return [child for sa in self.ikes for child in sa.children_up()]

    @property
    def child(self) -> ChildSa:
        assert len(self.children) == 1, self.children
        return self.children[0]

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    # -- events

    def handle(self, event: Event, batch: Sequence[Event]) -> None:
        match event:
            case InstallChild():
                self._install(event)
            case RemoveChild():
                self._remove(event, batch)
            case MoveChild(child, path, encap):
                for out in self.outbound.values():
                    if out.child is child:
                        out.path, out.encap = path, encap
            case ChildUp(child, replaces):
                if child.uid in self.up or (replaces is not None and replaces.uid not in self.up):
                    raise Violation(f"{self.name}: {child} is up in place of {replaces}, and they are {self.up}")
                self.up.add(child.uid)
                if replaces is not None:
                    self.up.discard(replaces.uid)
            case ChildDown(child, _):
                if child.uid not in self.up:
                    raise Violation(f"{self.name}: {child} goes down and was not up")
                self.up.discard(child.uid)
            case IkeUp(sa):
                if sa.peer_id is None or not sa.connection.remote.id.matches(sa.peer_id):
                    raise Violation(f"{self.name}: {sa} is up with {sa.peer_id}")
            case IkeDown(sa, _, _):
                self._reconnect(sa)
            case Initiate():
                self._initiate(event)
            case _:
                pass
        if not isinstance(event, InstallChild | RemoveChild | MoveChild):
            self.seen.append(event)

    def _install(self, event: InstallChild) -> None:
        child = event.child
        if event.inbound is not None:
            if child.spi_in not in self.reserved:
                raise Violation(f"{self.name}: SPI {child.spi_in:08x} is installed and not reserved")
            self.reserved.discard(child.spi_in)
            self.inbound[child.spi_in] = Inbound(child, event.inbound.encr)
            self.world.key_used("in", self, event.inbound.encr)
            for packet, path in self.early.pop(child.spi_in, ()):
                self.receive_esp(packet, path)
        if event.outbound is not None:
            self.outbound[child.spi_out, child.uid] = Outbound(child, event.outbound.encr, event.path, event.encap)
            self.world.key_used("out", self, event.outbound.encr)
            # I5; the responder of a new one cannot know when its answer has come
            # the same for the peer of a rekeying, once we have closed what was to be replaced
            ends = (ChildState.DELETING, ChildState.DELETED)
            closing = any(one.state in ends for one in child.ike.children.values())
            early = (event.inbound is not None or closing) and self.world.has_reserved(child.spi_out)
            if not early and not self.world.has_inbound(child.spi_out, event.outbound.encr):
                raise Violation(f"{self.name}: {child} may be used before the peer has its inbound SA")

    def _remove(self, event: RemoveChild, batch: Sequence[Event]) -> None:
        child = event.child
        has = child.spi_in in self.inbound and self.inbound[child.spi_in].child is child
        if event.inbound and not has:
            raise Violation(f"{self.name}: {child} is removed, and the data path has no inbound SA of it")
        if event.inbound:
            down = any(isinstance(e, ChildDown) and e.child is child for e in batch)
            # RFC 7296 section 1.4.1: with an IKE_SA all its CHILD_SAs go, those that nobody told to be up as well
            dead = any(isinstance(e, IkeDown) for e in batch) or child.ike.state is IkeState.DESTROYING
            del self.inbound[child.spi_in]
            self.gone[child.spi_in] = "closed" if down or dead else "replaced"
        elif not has and child.spi_in in self.reserved:
            self.free_spi(child.spi_in)
        if event.outbound and self.outbound.pop((child.spi_out, child.uid), None) is None:
            raise Violation(f"{self.name}: {child} is removed, and the data path has no outbound SA of it")

    def _reconnect(self, sa: IkeSa) -> None:
        if sa.name in self.keep:
            self.world.at(1.0 + self.rng.random() * 4, self.wish, sa.name)

    def wish(self, name: str) -> None:
        """Connect, unless that is done or going on."""
        live = (IkeState.CONNECTING, IkeState.ESTABLISHED, IkeState.REKEYING)
        if name in self.keep:
            mine = [sa for sa in self.engine.sas.values() if sa.name == name and sa.state in live and not sa.quiet]
            if not mine:
                self.initiate(name)

    def _initiate(self, event: Initiate) -> None:
        old = self.engine.sas.get(event.replaces)
        if event.connection not in self.connections:
            return
        more: dict[str, Any] = {"addresses": event.addresses, "path": event.path}
        if event.remote is not None:
            more["remote"] = event.remote
            more["redirected_from"] = event.redirected_from
        if old is not None:
            more["replaces"] = old.uid
        children = [event.child] if event.child is not None else []
        self.world.later.append((self, event.connection, children, more))

    # -- packets

    def current(self) -> list[Outbound]:
        """The outbound SA that a host would use, per reqid: the one that came last."""
        found: dict[int, Outbound] = {}
        for out in self.outbound.values():
            found[out.child.reqid] = out
        return list(found.values())

    def send_traffic(self) -> None:
        """A packet through every SA in use."""
        for out in self.current():
            out.number += 1
            self.traffic[out.child.uid] = self.world.now
            self.world.transmit(self, Esp(out.child.spi_out, out.key, out.number), out.path)

    def receive_esp(self, packet: Esp, path: Path) -> None:
        sa = self.inbound.get(packet.spi)
        if sa is None:
            if packet.spi in self.reserved:
                self.early.setdefault(packet.spi, []).append((packet, path))
                return
            if packet.spi in self.world.ended:
                return
            if self.gone.get(packet.spi, "never there") in ("never there", "replaced"):
                why = self.gone.get(packet.spi, "never there")
                raise Violation(f"{self.name}: a packet is lost, its SA {packet.spi:08x} is {why}")
            return
        if sa.key != packet.key:
            raise Violation(f"{self.name}: {sa.child} and its peer have different keys")
        if packet.number in sa.numbers:
            return
        sa.numbers.add(packet.number)
        child = sa.child
        self.used[child.uid] = self.traffic[child.uid] = self.world.now
        self.world.delivered += 1
        if packet.number > sa.highest:
            sa.highest = packet.number
            self._follow(child, path)

    def _follow(self, child: ChildSa, path: Path) -> None:
        # RFC 7296 section 2.23: the data path follows a peer behind a NAT
        out = self.outbound.get((child.spi_out, child.uid))
        if out is not None and out.encap and out.path != path and child.ike.nat_remote and not child.ike.nat_local:
            out.path = path
            self.engine.peer_moved(child, path, self.world.now)
            self.world.after(self)
