"""The network, the virtual clock, and what is looked at after every step."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any

from ipsec.ike.config import (
    IkeSettings,
)
from ipsec.ike.events import (
    Event,
    Path,
)
from ipsec.ike.registry import AT_ONCE
from ipsec.ike.state import ChildState, IkeState
from ipsec.wire.iana import ExchangeType
from ipsec.wire.ike import parse_header
from tests.sim.host import SimHost
from tests.sim.invariants import consistent, leaks, snapshot
from tests.sim.link import Esp, IpAddress, Link, Nat, Socket, Violation, flip

#: the outside of a NAT
NAT = ip_address("198.51.100.1")
#: a run that takes more steps than that goes round in circles
STEPS_MAX = 200_000
#: how long a packet may be on its way at most, with reordering
IN_FLIGHT_S = 2.5


class World:
    """The network, the clock and what must always hold."""

    def __init__(self, seed: int | str = 0, link: Link | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed}/network")
        self.link = link or Link()
        self.now = 1000.0
        self.hosts: dict[str, SimHost] = {}
        self.nats: dict[IpAddress, Nat] = {}
        self.broken: set[frozenset[IpAddress]] = set()
        "pairs of addresses between which nothing gets through"
        self.queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.steps = 0
        self.in_flight = 0
        "IKE datagrams on their way"
        self.delivered = 0
        self.ended: set[int] = set()
        "SPIs of CHILD_SAs that somebody has closed"
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
        for _ in range(len(who.engine.timers) // AT_ONCE + 1):
            who.engine.handle_timer(self.now)
        while who.engine._asked:
            self.after(who)
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
        host.engine.catch_up()
        host.engine.prepare()
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
        if frozenset((source[0], target[0])) in self.broken:
            return
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
