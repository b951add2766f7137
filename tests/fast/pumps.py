"""Gateways for the tests of the pump: real engines and pumps, links in memory or over loopback, and an oracle."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from ipsec.crypto.suites import EspSuite, esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.fast import AeadKey, Engine, Pump
from ipsec.esp.sa import Action, Direction, Policy, SaParams
from ipsec.net.memory import MemoryLink, MemoryTun
from ipsec.wire.selector import SelectorPair, TrafficSelector
from tests.esp.support import keys
from tests.fast.frames import (
    GSO_NONE,
    NEEDS_CSUM,
    TCP_PROTOCOL,
    Vnet,
    fold,
    header_length,
    internet_checksum,
    ip_header_length,
    parse_vnet,
    protocol_of,
    pseudo_header,
)

GCM = esp_suite("aes128gcm16")
OUTER = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8:ffff::7")}
NO_VNET = bytes(10)

MORE, BLOCKED, DEVICE_LOST = 1, 2, 4


def selector(text: str) -> TrafficSelector:
    network = ip_network(text)
    return TrafficSelector(network[0], network[-1])


def pair(local: str, remote: str) -> SelectorPair:
    return SelectorPair(selector(local), selector(remote))


EVERYTHING = (pair("0.0.0.0/0", "0.0.0.0/0"), pair("::/0", "::/0"))


class Gateway:
    """One engine with its pumps, and the TUN devices (in memory, unless ``tun_fds``) behind them."""

    def __init__(
        self, sockets: list[dict[str, int]], *, vnet_hdr: bool = True, engine: dict[str, Any] | None = None, **pump: Any
    ) -> None:
        self.engine = Engine(workers=len(sockets), **(engine or {}))
        self.tuns = [MemoryTun(vnet_hdr=vnet_hdr) for _ in sockets]
        self.vnet_hdr = vnet_hdr
        options = {"vnet_hdr": vnet_hdr, "tun_tso": vnet_hdr, "tun_uso": vnet_hdr, "connected": True, **pump}
        self.pumps = [Pump(self.engine, i, tun_fd=self.tuns[i].fd, **fds, **options) for i, fds in enumerate(sockets)]

    @property
    def pump(self) -> Pump:
        return self.pumps[0]

    @property
    def tun(self) -> MemoryTun:
        return self.tuns[0]

    def counters(self) -> dict[str, int]:
        """Of all pumps together."""
        total: dict[str, int] = defaultdict(int)
        for pump in self.pumps:
            for name, value in pump.counters().items():
                total[name] += value
        return total

    def dropped(self, prefix: str) -> int:
        return sum(count for reason, count in self.engine.drops().items() if reason.name.startswith(prefix))

    def packets(self) -> list[bytes]:
        """What reached the inside, superframes cut into packets by the oracle."""
        return [packet for tun in self.tuns for header, frame in tun.frames() for packet in cut(header, frame)]

    def check(self, *, waiting: int = 0, elsewhere_out: int = 0, elsewhere_in: int = 0) -> None:
        """Packets in are packets out, drops, and what came before its SA and waits for it. ``waiting`` are in the pump
        still; ``elsewhere_*`` are drops that calls of the library counted, not the pump."""
        c = self.counters()
        taken = c["tun_rx_packets"] + self.engine.fragments_made() - self.engine.fragments_joined()
        sent = c["net_tx_datagrams"] + c["bypass_tx_packets"]
        assert taken == sent + waiting + self.dropped("OUT_") - elsewhere_out, (dict(c), self.engine.drops())
        given = c["keepalives"] + c["control_datagrams"] + c["control_lost"] + c["tun_tx_packets"] + self.engine.early()
        assert c["net_rx_datagrams"] == given + self.dropped("IN_") - elsewhere_in, (dict(c), self.engine.drops())

    def close(self) -> None:
        self.pumps.clear()
        for tun in self.tuns:
            tun.close()


class Net:
    """Two gateways, ``left`` and ``right``, and what is between them."""

    def __init__(self, left: Gateway, right: Gateway, close: Callable[[], None], links: list[MemoryLink]) -> None:
        self.left, self.right = left, right
        self.links = links
        self.fds: list[int] = [link.fd(side) for link in links[:1] for side in (0, 1)]
        "the sockets of left and right"
        self._close = close

    @property
    def sides(self) -> tuple[Gateway, Gateway]:
        return self.left, self.right

    def tunnel(
        self,
        spi: int = 0x1000,
        *,
        outer: int = 4,
        suite: EspSuite | str = GCM,
        selectors: tuple[SelectorPair, ...] = (),
        policy: tuple[SelectorPair, ...] = EVERYTHING,
        addresses: tuple[str, str] | None = None,
        priority: int = 0,
        encap: tuple[int, int] | None = (4500, 4500),
        initial: dict[str, int] | None = None,
        **fields: Any,
    ) -> list[int]:
        """An SA each way (SPI and SPI + 1) with its policies; ids [left out, right in, right out, left in]."""
        suite = esp_suite(suite) if isinstance(suite, str) else suite
        here, there = map(ip_address, addresses or OUTER[outer])
        ids = []
        flipped = encap[::-1] if encap else None
        for side, other, spi_, ends, ports in (
            (self.left, self.right, spi, (here, there), encap),
            (self.right, self.left, spi + 1, (there, here), flipped),
        ):
            shared = {"spi": spi_, "suite": suite, "reqid": spi, **keys(suite, f"{spi_}"), **fields, **(initial or {})}
            out = SaParams(direction=Direction.OUT, local=ends[0], remote=ends[1], encap=ports, **shared)
            back = ports[::-1] if ports else None
            into = SaParams(
                direction=Direction.IN, local=ends[1], remote=ends[0], encap=back, selectors=selectors, **shared
            )
            ids += [side.engine.add_sa(out), other.engine.add_sa(into)]
        for side in self.sides:
            mine = policy if side is self.left else tuple(SelectorPair(p.remote, p.local) for p in policy)
            side.engine.add_policy(Policy(Action.PROTECT, mine, reqid=spi, priority=priority))
        return ids

    def run(self, rounds: int = 1000) -> None:
        """Move everything there is; fails if it does not come to rest."""
        for _ in range(rounds):
            before = self._moved()
            for side in self.sides:
                for pump in side.pumps:
                    while pump.run_tun() & MORE:
                        pass
                    while pump.run_sockets() & MORE:
                        pass
            if self._moved() == before:
                return
        raise AssertionError("the pumps do not come to rest")

    def _moved(self) -> list[int]:
        return [
            value
            for side in self.sides
            for name, value in side.counters().items()
            if name in ("tun_rx_frames", "net_rx_messages", "net_tx_datagrams", "tun_tx_frames")
        ] + [link.carry() for link in self.links]

    def close(self) -> None:
        for side in self.sides:
            side.close()
        self._close()


@contextlib.contextmanager
def memory_net(workers: int = 1, *, hook: Any = None, **options: Any) -> Iterator[Net]:
    """Gateways whose pumps are joined by Unix sockets, pump i with pump i."""
    links = [MemoryLink(hook) for _ in range(workers)]
    left, right = (
        Gateway([{"udp4_fd": link.fd(side), "udp6_fd": link.fd(side)} for link in links], **options) for side in (0, 1)
    )
    net = Net(left, right, lambda: [link.close() for link in links] and None, links)
    try:
        yield net
    finally:
        net.close()


@contextlib.contextmanager
def udp_net(version: int = 4, *, gso: bool = True, gro: bool = True, **options: Any) -> Iterator[tuple[Net, Any]]:
    """Gateways whose pumps have real UDP sockets on loopback. The net, and the arguments of ``Net.tunnel``."""
    from ipsec.net.udp import open_udp

    address = ip_address("127.0.0.1" if version == 4 else "::1")
    socks = [open_udp(address, 0, gro=gro)[0] for _ in range(2)]
    name = "udp4_fd" if version == 4 else "udp6_fd"
    sides = [Gateway([{name: sock.fileno()}], connected=False, udp_gso=gso, udp_gro=gro, **options) for sock in socks]
    net = Net(sides[0], sides[1], lambda: [sock.close() for sock in socks] and None, [])
    net.fds = [sock.fileno() for sock in socks]
    ports = (socks[0].getsockname()[1], socks[1].getsockname()[1])
    try:
        yield net, {"addresses": (str(address), str(address)), "encap": ports, "outer": version}
    finally:
        net.close()


class Tap:
    """A gateway whose outside is the test: datagrams are seen and put there by hand."""

    def __init__(self, workers: int = 1, **options: Any) -> None:
        self.links = [MemoryLink() for _ in range(workers)]
        self.gateway = Gateway([{"udp4_fd": link.fd(0)} for link in self.links], **options)
        self.engine = self.gateway.engine
        self.outside = [socket.socket(fileno=os.dup(link.fd(1))) for link in self.links]
        for sock in self.outside:
            sock.setblocking(False)

    def sent(self) -> list[bytes]:
        from ipsec.net.memory import receive_all

        return [datagram for sock in self.outside for datagram in receive_all(sock)]

    def put(self, datagrams: Iterable[bytes]) -> None:
        """Hand datagrams in; the pump runs whenever the wire is full."""
        for datagram in datagrams:
            try:
                self.outside[0].send(datagram)
            except BlockingIOError:
                self.receive()
                self.outside[0].send(datagram)
        self.receive()

    def receive(self) -> None:
        calls = 0
        while self.gateway.pump.run_sockets() & MORE:
            calls += 1
            assert calls < 10000, "run_sockets does not come to rest"

    def close(self) -> None:
        for sock in self.outside:
            sock.close()
        self.gateway.close()
        for link in self.links:
            link.close()


@contextlib.contextmanager
def tap(workers: int = 1, **options: Any) -> Iterator[Tap]:
    made = Tap(workers, **options)
    try:
        yield made
    finally:
        made.close()


class Threads:
    """The pumps of some gateways in threads, until the block is left."""

    def __init__(self, *gateways: Gateway, busy_poll_us: int = 0) -> None:
        self.stop = os.eventfd(0, os.EFD_NONBLOCK)
        self.threads = [
            threading.Thread(target=pump.run_forever, args=(self.stop, busy_poll_us))
            for gateway in gateways
            for pump in gateway.pumps
        ]

    def __enter__(self) -> Threads:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self.stop, 1)
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "run_forever does not stop"
        os.close(self.stop)


def readable(fd: int, timeout_s: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def out_params(spi: int = 0x1000, suite: EspSuite | str = GCM, **fields: Any) -> SaParams:
    """An outbound SA between the usual addresses."""
    suite = esp_suite(suite) if isinstance(suite, str) else suite
    local, remote = map(ip_address, OUTER[fields.pop("outer", 4)])
    base = {"spi": spi, "reqid": spi, "encap": (4500, 4500), "local": local, "remote": remote, **keys(suite, f"{spi}")}
    return SaParams(direction=Direction.OUT, suite=suite, **{**base, **fields})


def in_params(spi: int = 0x1000, suite: EspSuite | str = GCM, **fields: Any) -> SaParams:
    """The other end of :func:`out_params`."""
    suite = esp_suite(suite) if isinstance(suite, str) else suite
    remote, local = map(ip_address, OUTER[fields.pop("outer", 4)])
    base = {"spi": spi, "reqid": spi, "encap": (4500, 4500), "local": local, "remote": remote, **keys(suite, f"{spi}")}
    return SaParams(direction=Direction.IN, suite=suite, **{**base, **fields})


class Liar:
    """Seals any plaintext, trailer included, as the SA of :func:`in_params` would accept it (AES-GCM)."""

    def __init__(self, spi: int = 0x1000) -> None:
        key = keys(GCM, f"{spi}")["encr_key"]
        self._salt = key[16:]
        self._key = AeadKey(GCM, "libcrypto", key[:16])
        self.spi = spi
        self.seq = 0

    def seal(self, plain: bytes, seq: int | None = None) -> bytes:
        self.seq = self.seq + 1 if seq is None else seq
        aad = struct.pack("!II", self.spi, self.seq & 0xFFFFFFFF)
        iv = struct.pack("!Q", self.seq)
        return aad + iv + self._key.seal(self._salt + iv, aad, plain, 16)

    def lie(self, inner: bytes, next_header: int = 4, pad: int | None = None, padding: bytes | None = None) -> bytes:
        """A good ESP packet around ``inner``, or around a trailer that is not what it should be."""
        n = -(len(inner) + 2) % 4
        filler = bytes(range(1, n + 1)) if padding is None else padding
        plain = inner + filler + bytes((n if pad is None else pad, next_header))
        return self.seal(plain + bytes(-len(plain) % 4))


# --- the oracle: what a superframe stands for -------------------------------------------------------------------------


def cut(header: bytes, frame: bytes) -> list[bytes]:
    """The packets that a frame of a TUN device stands for, as the kernel would send them."""
    vnet = parse_vnet(header) if header else Vnet()
    if vnet.gso_type & 0x7F == GSO_NONE:
        return [_finished(vnet, frame)]
    head = header_length(frame)
    payload = frame[head:]
    pieces = [payload[at : at + vnet.gso_size] for at in range(0, len(payload), vnet.gso_size)]
    return [_segment(frame[:head], piece, k, len(pieces), vnet.gso_size) for k, piece in enumerate(pieces)]


def _finished(vnet: Vnet, frame: bytes) -> bytes:
    if not vnet.flags & NEEDS_CSUM:
        return frame
    at = vnet.csum_start + vnet.csum_offset
    value = internet_checksum(frame[vnet.csum_start :])
    return frame[:at] + struct.pack("!H", value or 0xFFFF if vnet.csum_offset == 6 else value) + frame[at + 2 :]


def _segment(head: bytes, piece: bytes, k: int, count: int, size: int) -> bytes:
    packet = bytearray(head + piece)
    l4 = ip_header_length(head)
    if head[0] >> 4 == 4:
        struct.pack_into("!HH", packet, 2, len(packet), (struct.unpack_from("!H", head, 4)[0] + k) & 0xFFFF)
        packet[10:12] = bytes(2)
        struct.pack_into("!H", packet, 10, internet_checksum(bytes(packet[:l4])))
    else:
        struct.pack_into("!H", packet, 4, len(packet) - 40)
    if protocol_of(head) == TCP_PROTOCOL:
        struct.pack_into("!I", packet, l4 + 4, (struct.unpack_from("!I", head, l4 + 4)[0] + k * size) & 0xFFFFFFFF)
        packet[l4 + 13] &= 0xFF if k == 0 else 0x7F
        packet[l4 + 13] &= 0xFF if k + 1 == count else 0xF6
        packet[l4 + 16 : l4 + 18] = bytes(2)
        at, zero = l4 + 16, 0
    else:
        struct.pack_into("!H", packet, l4 + 4, len(packet) - l4)
        packet[l4 + 6 : l4 + 8] = bytes(2)
        at, zero = l4 + 6, 0xFFFF
    done = bytes(packet)
    struct.pack_into("!H", packet, at, (~fold(pseudo_header(done) + done[l4:]) & 0xFFFF) or zero)
    return bytes(packet)


def without_id(packet: bytes) -> bytes:
    """A packet as far as it is to arrive: with DF the identification means nothing (RFC 6864 section 4.1)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


def by_flow(packets: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Packets of each flow (addresses, protocol and the first four octets after the header) in their order."""
    flows: dict[bytes, list[bytes]] = defaultdict(list)
    for packet in packets:
        at = ip_header_length(packet)
        addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
        flows[bytes((protocol_of(packet),)) + addresses + packet[at : at + 4]].append(without_id(packet))
    return dict(flows)


def drops(gateway: Gateway) -> dict[DropReason, int]:
    return gateway.engine.drops()
