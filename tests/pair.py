"""Several IKEv2 engines on one virtual network, with one virtual clock: what a seed does, it does again.

A ``World`` has ``SimHost``s, an engine each, and a network that loses, repeats, reorders and corrupts datagrams, with
NATs on the way. A host has a model of a data path: SAs come and go as the engine's events say, and packets go through
whichever SA a real one would take. After every step everything that must always hold is looked at; what does not hold
is a ``Violation``.

Packets of the data path are values, not ciphertext: SPI, key and number. The keys are the real ones.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.crypto.sk import SkCipher
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import (
    AuthClass,
    ChildConfig,
    Connection,
    IkeSettings,
    LocalAuth,
    PoolConfig,
    RemoteAuth,
    SelectorTemplate,
)
from ipsec.ike.credentials import Credentials, SharedSecret
from ipsec.ike.engine import TIMERS_AT_ONCE, IkeEngine
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
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.wire.iana import ExchangeType, Protocol
from ipsec.wire.ike import parse_header

IpAddress = IPv4Address | IPv6Address
Socket = tuple[IpAddress, int]

A = ip_address("192.0.2.1")
B = ip_address("192.0.2.2")
#: the outside of a NAT in front of A
NAT = ip_address("198.51.100.1")

IKE = parse_proposals(["aes128gcm16-prfsha256-x25519"], Protocol.IKE)
ESP = parse_proposals(["aes128gcm16"], Protocol.ESP)
ESP_PFS = parse_proposals(["aes128gcm16-x25519"], Protocol.ESP)

#: networks behind moon and behind sun
LEFT = SelectorTemplate((ip_address("10.1.0.0"), ip_address("10.1.255.255")))
RIGHT = SelectorTemplate((ip_address("10.2.0.0"), ip_address("10.2.255.255")))

#: how long a packet may be on its way at most, with reordering
IN_FLIGHT_S = 2.5
#: a run that takes more steps than that goes round in circles
STEPS_MAX = 200_000


class Violation(AssertionError):
    """Something that must always hold does not."""


@dataclass
class Link:
    """How the network treats datagrams; fractions of them, and seconds."""

    latency: float = 0.02
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    "how many come late, by up to ``late``"
    late: float = 2.0
    corrupt: float = 0.0
    mtu: int = 65535
    "octets of a datagram with its headers; larger ones are lost"


class Esp(NamedTuple):
    """A packet of the data path."""

    spi: int
    key: bytes
    number: int


class Nat:
    """A NAT with one outside address; every inside socket has one outside port."""

    def __init__(self, outside: IpAddress) -> None:
        self.outside = outside
        self._ports: dict[Socket, int] = {}
        self._inside: dict[int, Socket] = {}
        self._next = 20000

    def outward(self, source: Socket) -> Socket:
        if source not in self._ports:
            self._next += 1
            self._ports[source] = self._next
            self._inside[self._next] = source
        return self.outside, self._ports[source]

    def inward(self, port: int) -> Socket | None:
        return self._inside.get(port)

    def rebind(self) -> None:
        """Forget all mappings; new ones get other ports."""
        self._ports.clear()
        self._inside.clear()


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
        self.nat: Nat | None = None
        self.connections: dict[str, Connection] = {}
        self.pools: list[PoolConfig] = []
        self.keep: set[str] = set()
        "connections to bring up again when they are gone"
        self.seen: list[Event] = []
        "all events but those of the data path"
        self.reserved: set[int] = set()
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
        self.gone[spi] = "not used"

    def last_use(self, child: ChildSa) -> float | None:
        return self.used.get(child.uid)

    def last_traffic(self, child: ChildSa) -> float | None:
        return self.traffic.get(child.uid)

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def resolved(self, name: str) -> tuple[IpAddress, ...]:
        return ()

    def local_addresses(self) -> tuple[IpAddress, ...]:
        return tuple(self.addresses)

    # -- commands

    def load(self, *connections: Connection, secret: bytes = b"a secret that nobody guesses") -> None:
        self.connections = {connection.name: connection for connection in connections}
        owners = tuple(parse_pattern(text) for text in ("moon", "sun", "carol", "dave"))
        self.engine.load(connections, Credentials(secrets=[SharedSecret(secret, owners)]), self.pools)

    def initiate(self, name: str = "c", children: Iterable[str] | None = None, **more: Any) -> IkeSa:
        """Bring a connection up, as a daemon would."""
        connection = self.connections[name]
        wanted = [c for c in connection.children if children is None or c.name in set(children)]
        local = next((ip_address(a) for a in connection.local_addrs if a[0] != "%"), self.addresses[0])
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

    def restart(self) -> None:
        """Lose everything but the configuration and ``qcd_secret``."""
        self.generation += 1
        for spi in self.inbound:
            self.gone[spi] = "restart"
        self.reserved.clear()
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
        if event.outbound is not None:
            self.outbound[child.spi_out, child.uid] = Outbound(child, event.outbound.encr, event.path, event.encap)
            self.world.key_used("out", self, event.outbound.encr)
            # I5; the responder of a new one cannot know when its answer has come
            # the same for the peer of a rekeying, once we have closed what was to be replaced
            ends = (ChildState.DELETING, ChildState.DELETED)
            closing = any(out.child.state in ends for out in self.outbound.values())
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
        more: dict[str, Any] = {}
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


class World:
    """The network, the clock and what must always hold."""

    def __init__(self, seed: int | str = 0, link: Link | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed}/network")
        self.link = link or Link()
        self.now = 1000.0
        self.hosts: dict[str, SimHost] = {}
        self.nats: dict[IpAddress, Nat] = {}
        self.queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.steps = 0
        self.in_flight = 0
        "IKE datagrams on their way"
        self.delivered = 0
        self.later: list[tuple[SimHost, str, list[str], dict[str, Any]]] = []
        self.held: list[tuple[str, bytes | Esp, Socket, Socket]] | None = None
        "datagrams that wait for ``deliver``, if the script decides what arrives when"
        self.filter: Callable[[SimHost, bytes], bytes | None] | None = None
        "may change or drop an IKE datagram as it is sent"
        self.trace = blake2b(digest_size=16)
        self.sent: dict[tuple[object, ...], set[bytes]] = {}
        self.message_ids: dict[tuple[object, ...], int] = {}
        self.keys: dict[tuple[str, bytes], tuple[str, int]] = {}

    def host(self, name: str, *addresses: IpAddress, settings: IkeSettings | None = None) -> SimHost:
        chosen = settings or IkeSettings(qcd_secret=name.encode() * 8)
        host = self.hosts[name] = SimHost(self, name, addresses, chosen)
        return host

    def put_nat(self, host: SimHost, outside: IpAddress = NAT) -> Nat:
        """A NAT in front of a host."""
        host.nat = self.nats[outside] = Nat(outside)
        return host.nat

    # -- time

    def at(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        """Have something happen after ``delay`` seconds."""
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, what, arguments))

    def step(self, until: float) -> bool:
        """The next thing that happens, if it does not happen after ``until``."""
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Violation("this goes round in circles")
        when = self.queue[0][0] if self.queue else until + 1
        who: SimHost | None = None
        for host in self.hosts.values():
            timer = host.engine.next_timer()
            if timer is not None and timer < when:
                when, who = timer, host
        if when > until:
            return False
        self.now = max(self.now, when)
        if who is None:
            _, _, what, arguments = heapq.heappop(self.queue)
            what(*arguments)
            return True
        for _ in range(len(who.engine.timers) // TIMERS_AT_ONCE + 1):
            who.engine.handle_timer(self.now)
        again = who.engine.next_timer()
        if again is not None and again <= self.now:
            raise Violation(f"{who.name}: a timer that has been handled is due")
        self.after(who)
        return True

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = end

    def until(self, condition: Callable[[], bool], patience: float = 600.0) -> bool:
        """Run until ``condition`` holds; whether it came to that."""
        end = self.now + patience
        while not condition():
            if not self.step(end):
                return condition()
        return True

    @property
    def quiet(self) -> bool:
        """Nobody waits for an answer, and none is on its way."""
        return (
            not self.in_flight
            and not self.held
            and not any(host.engine._retries for host in self.hosts.values())
            and all(
                sa.pending is None
                # one that re-authentication has replaced is about to be closed
                and not sa.quiet
                and not sa.queue
                and sa.state is IkeState.ESTABLISHED
                and all(child.state is ChildState.INSTALLED for child in sa.children.values())
                for host in self.hosts.values()
                for sa in host.engine.sas.values()
            )
        )

    def settle(self, patience: float = 900.0) -> None:
        """With a good network, until all that is going on has come to an end; then both ends must agree."""
        self.link = replace(self.link, loss=0.0, duplicate=0.0, reorder=0.0, corrupt=0.0)
        self.release()
        if not self.until(lambda: self.quiet, patience):
            busy = [(h.name, sa, sa.pending, sa.children) for h in self.hosts.values() for sa in h.engine.sas.values()]
            raise Violation(f"does not come to rest: {busy}")

    def close(self, patience: float = 900.0) -> None:
        """Close everything; nothing may be left of it."""
        self.settle(patience)
        self.filter = None
        for host in self.hosts.values():
            host.keep.clear()
            host.do(host.engine.stop)
        self.until(lambda: not any(host.engine.sas for host in self.hosts.values()), patience)
        self.run(IN_FLIGHT_S + 1)
        for host in self.hosts.values():
            leaks(host)

    # -- the engines

    def after(self, host: SimHost) -> None:
        """What a caller does after each call: events first, then datagrams."""
        batch: list[Event] = []
        while (event := host.engine.next_event()) is not None:
            batch.append(event)
        for event in batch:
            self.note(host.name, type(event).__name__)
            host.handle(event, batch)
        for data, path, _ in host.engine.datagrams_to_send():
            self.transmit(host, data, path)
        consistent(host)
        while self.later:
            who, name, children, more = self.later.pop(0)
            who.initiate(name, children, **more)

    def note(self, *what: object) -> None:
        """Into the trace: equal seeds have equal traces."""
        self.trace.update(repr((round(self.now, 9), *what)).encode())

    def key_used(self, way: str, host: SimHost, key: bytes) -> None:
        # I6: a key for one direction of one SA, once
        if (way, key) in self.keys:
            raise Violation(f"{host.name}: an ESP key is used twice ({way})")
        self.keys[way, key] = host.name, 0

    def has_reserved(self, spi: int) -> bool:
        """Whether somebody waits for the answer that brings this SPI into use."""
        return any(spi in host.reserved for host in self.hosts.values())

    def has_inbound(self, spi: int, key: bytes) -> bool:
        """Whether somebody has, or had, the inbound SA for that."""
        return any(
            (spi in host.inbound and host.inbound[spi].key == key) or spi in host.gone for host in self.hosts.values()
        )

    # -- the network

    def transmit(self, host: SimHost, data: bytes | Esp, path: Path) -> None:
        """A datagram leaves a host."""
        if path.local not in host.addresses:
            return
        if isinstance(data, bytes):
            self.note(host.name, "sends", data, path)
            if len(data) > 1:
                self.watch(host, data)
                if self.filter is not None:
                    changed = self.filter(host, data)
                    if changed is None:
                        return
                    data = changed
        source: Socket = path.local, path.local_port
        if host.nat is not None:
            source = host.nat.outward(source)
        target: Socket = path.remote, path.remote_port
        if self.held is not None and isinstance(data, bytes):
            self.held.append((host.name, data, source, target))
            return
        self.carry(data, source, target)

    def carry(self, data: bytes | Esp, source: Socket, target: Socket) -> None:
        link, rng = self.link, self.rng
        copies = 2 if link.duplicate and rng.random() < link.duplicate else 1
        for _ in range(copies):
            if link.loss and rng.random() < link.loss:
                continue
            if isinstance(data, bytes) and len(data) + 28 + 4 * (target[1] != 500) > link.mtu:
                continue
            delay = link.latency
            if link.reorder and rng.random() < link.reorder:
                delay += rng.random() * link.late
            broken = bool(link.corrupt) and rng.random() < link.corrupt
            if isinstance(data, bytes):
                self.in_flight += 1
                self.at(delay, self.arrive, flip(data, rng) if broken else data, broken, source, target)
            elif not broken:
                self.at(delay, self.arrive_esp, data, source, target)

    def find(self, target: Socket) -> tuple[SimHost, Socket] | None:
        nat = self.nats.get(target[0])
        if nat is not None:
            inside = nat.inward(target[1])
            if inside is None:
                return None
            target = inside
        for host in self.hosts.values():
            if target[0] in host.addresses and (host.nat is None or nat is host.nat):
                return host, target
        return None

    def arrive(self, data: bytes, broken: bool, source: Socket, target: Socket) -> None:
        """A datagram of IKE, or a keepalive, gets where it is sent to."""
        self.in_flight -= 1
        found = self.find(target)
        if found is None or len(data) == 1:
            return
        host, local = found
        self.note(host.name, "receives", data)
        before = snapshot(host) if broken and len(data) > 18 and data[18] != ExchangeType.IKE_SA_INIT else None
        host.engine.receive_datagram(data, Path(*local, *source), self.now)
        if before is not None and snapshot(host) != before:
            raise Violation(f"{host.name}: a corrupted datagram changed something")
        self.after(host)

    def arrive_esp(self, packet: Esp, source: Socket, target: Socket) -> None:
        found = self.find(target)
        if found is not None:
            found[0].receive_esp(packet, Path(*found[1], *source))

    def watch(self, host: SimHost, data: bytes) -> None:
        """I9: message IDs have no gaps, and what is sent again is the same."""
        header = parse_header(data)
        if header.exchange == ExchangeType.IKE_SA_INIT or header.next_payload not in (46, 53):
            return
        fragment = data[32:36] if header.next_payload == 53 else b""
        key = (host.name, host.generation, header.spi_i, header.spi_r, header.flags)
        known = self.sent.setdefault((*key, header.message_id, fragment), set())
        known.add(data)
        if len(known) > 1:
            raise Violation(f"{host.name}: message {header.message_id} is sent again, and differs")
        last = self.message_ids.get(key)
        if last is not None and header.message_id > last + 1:
            raise Violation(f"{host.name}: message ID {header.message_id} after {last}")
        self.message_ids[key] = max(header.message_id, last if last is not None else 0)

    # -- scripts

    def hold(self) -> None:
        """From now on datagrams wait until the script lets them go."""
        self.held = []

    def release(self) -> None:
        """Let go what waits, in order, and hold nothing more."""
        held, self.held = self.held or [], None
        for _, data, source, target in held:
            self.carry(data, source, target)

    def waiting(self, name: str) -> list[int]:
        """Positions of what a host has sent, the oldest first."""
        return [i for i, item in enumerate(self.held or []) if item[0] == name]

    def deliver(self, name: str, which: int = 0, *, keep: bool = False, drop: bool = False) -> None:
        """Let one datagram of a host arrive, now; ``keep``: it stays there to arrive again; ``drop``: it is lost."""
        assert self.held is not None
        positions = self.waiting(name)
        if which >= len(positions):
            raise AssertionError(f"{name} has sent {len(positions)} datagrams, number {which} is wanted")
        item = self.held[positions[which]]
        if not keep:
            del self.held[positions[which]]
        if not drop:
            self.in_flight += 1
            self.now += self.link.latency
            self.arrive(item[1], False, item[2], item[3])  # type: ignore[arg-type]


def flip(data: bytes, rng: random.Random) -> bytes:
    """The same with one bit wrong."""
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]


# -- what must hold


def consistent(host: SimHost) -> None:
    """After every step: the engine's idea of the data path is the data path's."""
    for sa in host.engine.sas.values():
        for child in sa.children.values():
            has = child.spi_in in host.inbound and host.inbound[child.spi_in].child is child
            if has != child.has_in or ((child.spi_out, child.uid) in host.outbound) != child.has_out:
                raise Violation(f"{host.name}: {child!r} and the data path differ")
            if child.ike is not sa:
                raise Violation(f"{host.name}: {child} belongs to {child.ike}, and {sa} has it")
            if child.uid in host.up and child.state in CHILD_UP and not child.has_out:
                raise Violation(f"{host.name}: {child} is up and nothing can be sent through it")
    if len(host.inbound) != sum(c.has_in for sa in host.engine.sas.values() for c in sa.children.values()):
        raise Violation(f"{host.name}: the data path has SAs that the engine does not know")


def agree(one: SimHost, other: SimHost, children: int = 1) -> None:
    """I3 and I4: after everything has come to rest, both ends have the same SAs, and one way to send."""
    ikes = [sorted((sa.spi_i, sa.spi_r) for sa in host.ikes) for host in (one, other)]
    if ikes[0] != ikes[1]:
        raise Violation(f"{one.name} has {one.ikes}, {other.name} has {other.ikes}")
    pairs = sorted((c.spi_in, c.spi_out) for c in one.children)
    mirrored = sorted((c.spi_out, c.spi_in) for c in other.children)
    if pairs != mirrored or len(pairs) != children:
        raise Violation(f"{one.name} has {one.children}, {other.name} has {other.children}")
    for host in (one, other):
        busy = [c for c in host.children if c.peer_rekey is not None or c.rekey_of is not None]
        if busy:
            raise Violation(f"{host.name}: {busy} still wait for something")
        if len(host.outbound) - len(host.children):
            raise Violation(f"{host.name}: {len(host.outbound)} outbound SAs for {host.children}")


def leaks(host: SimHost) -> None:
    """I8: after everything is closed, nothing is left."""
    engine = host.engine
    left = {
        "IKE_SAs": engine.sas,
        "CHILD_SAs": engine.children,
        "timers": list(engine.timers._live),
        "SPIs": engine.by_spi,
        "peers": engine.by_peer,
        "first messages": engine.init_requests,
        "half-open": engine._half_open,
        "retries": engine._retries,
        "waiting": engine._waiting,
        "ESP SPIs": host.reserved,
        "inbound SAs": host.inbound,
        "outbound SAs": host.outbound,
        "up": host.up,
    }
    found = {name: what for name, what in left.items() if what}
    if found or len(engine.half_open):
        raise Violation(f"{host.name} leaves {found}")


def snapshot(host: SimHost) -> object:
    """What no unauthenticated datagram may change (I12)."""
    return [
        (sa.uid, sa.state, sa.message_id_in, sa.message_id_out, sa.pending, len(sa.queue), sa.path,
         [(child.uid, child.state) for child in sa.children.values()])
        for sa in host.engine.sas.values()
    ]  # fmt: skip


@contextmanager
def unique_ivs():  # type: ignore[no-untyped-def]
    """I6: no key seals twice with one IV, in all that happens inside."""
    seal = SkCipher.seal
    seen: set[tuple[bytes, bytes]] = set()
    names: dict[int, tuple[SkCipher, bytes]] = {}
    init = SkCipher.__init__

    def remember(self: SkCipher, suite: Any, encr_key: bytes, integ_key: bytes = b"") -> None:
        init(self, suite, encr_key, integ_key)
        names[id(self)] = self, encr_key

    def watched(self: SkCipher, aad: bytes, plaintext: bytes, counter: int, rng: Callable[[int], bytes]) -> bytes:
        body = seal(self, aad, plaintext, counter, rng)
        use = names[id(self)][1], body[: self.suite.iv_len]
        if use in seen:
            raise Violation("a key has sealed twice with one IV")
        seen.add(use)
        return body

    SkCipher.__init__, SkCipher.seal = remember, watched  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        SkCipher.__init__, SkCipher.seal = init, seal  # type: ignore[method-assign]


# -- two hosts


def connection(local: IpAddress, remote: IpAddress | str, who: str, whom: str, **more: Any) -> Connection:
    """One with a pre-shared key and no lifetimes, so that tests decide when something is replaced."""
    near, far = (LEFT, RIGHT) if who == "moon" else (RIGHT, LEFT)
    lifetimes = {"rekey_time": 0.0, "life_time": 0.0, "rand_time": 0.0}
    child = {"local_ts": (near,), "remote_ts": (far,), **lifetimes, **more.pop("child", {})}
    names = more.pop("children", ("net",))
    defaults: dict[str, Any] = {
        "name": "c",
        "local_addrs": (str(local),),
        "remote_addrs": (str(remote),),
        "proposals": IKE,
        "local": LocalAuth(AuthClass.PSK, parse_identity(who)),
        "remote": RemoteAuth(AuthClass.PSK, parse_pattern(whom)),
        "children": tuple(ChildConfig(**{"name": n, "esp_proposals": ESP, **child}) for n in names),
        "rekey_time": 0.0,
        "over_time": 0.0,
        "rand_time": 0.0,
        "mobike": False,
    }
    return Connection(**{**defaults, **more})


class Pair:
    """Two hosts, moon and sun. moon may be behind a NAT."""

    def __init__(
        self,
        seed: int | str = 0,
        *,
        link: Link | None = None,
        settings: IkeSettings | None = None,
        nat: bool = False,
        **more: Any,
    ) -> None:
        self.world = World(seed, link)
        base = settings or IkeSettings()
        self.a = self.world.host("moon", A, settings=replace(base, qcd_secret=b"moon" * 8))
        self.b = self.world.host("sun", B, settings=replace(base, qcd_secret=b"sun " * 8))
        own_a, own_b = more.pop("a", {}), more.pop("b", {})
        self.a.load(connection(A, B, "moon", "sun", **{**more, **own_a}))
        far = "%any" if nat else A
        self.b.load(connection(B, far, "sun", "moon", **{**more, **own_b}))
        self.nat = self.world.put_nat(self.a) if nat else None

    def up(self, who: SimHost | None = None) -> Pair:
        """Connect."""
        (who or self.a).initiate()
        self.world.settle()
        self.agree()
        return self

    def agree(self, children: int = 1) -> None:
        agree(self.a, self.b, children)

    def finish(self, children: int = 1, ikes: int = 1) -> None:
        """Come to rest, agree, carry a packet each way, close, and leave nothing."""
        self.world.settle()
        self.agree(children)
        assert len(self.a.ikes) == ikes, self.a.ikes
        before = self.world.delivered
        for host in (self.a, self.b):
            host.send_traffic()
        self.world.run(IN_FLIGHT_S)
        reqids = {c.reqid for c in self.a.children}, {c.reqid for c in self.b.children}
        assert self.world.delivered - before == sum(map(len, reqids))
        self.world.close()
