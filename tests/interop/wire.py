"""What a recording shows to somebody without keys: IKE headers, notifications of IKE_SA_INIT, SPIs, and cleartext."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.interop.lab import MARKER, NETS

IKE_SA_INIT, IKE_AUTH, CREATE_CHILD_SA, INFORMATIONAL = 34, 35, 36, 37
SK, SKF, NOTIFY = 46, 53, 41
INVALID_KE_PAYLOAD, COOKIE = 17, 16390
UDP, ESP, ICMP, ICMP6, HOP_BY_HOP, FRAGMENT = 17, 50, 1, 58, 0, 44
PORTS = (500, 4500)
ICMP_ERRORS = {ICMP: (3, 11), ICMP6: (1, 2, 3, 4)}
NEIGHBOURS = range(130, 144)
VIRTUAL = ("10.9.0.0/16", "fd09::/16")
PROTECTED = tuple(ip_network(net) for nets in (*NETS.values(), VIRTUAL) for net in nets)


@dataclass(frozen=True)
class IkeMessage:
    """The header of an IKE message, and the notifications that anybody can read."""

    source: str
    source_port: int
    target: str
    spi_i: bytes
    spi_r: bytes
    exchange: int
    response: bool
    message_id: int
    first: int
    notifies: tuple[int, ...] = ()


@dataclass
class Wire:
    """A recording, sorted."""

    ike: list[IkeMessage] = field(default_factory=list)
    esp: list[tuple[str, int]] = field(default_factory=list)
    "(source, SPI) of each packet"
    keepalives: list[str] = field(default_factory=list)
    "the source of each"
    cleartext: list[str] = field(default_factory=list)
    "what should not be there"

    def spis(self, source: str | None = None) -> list[int]:
        """ESP SPIs in order of appearance."""
        return list(dict.fromkeys(spi for sender, spi in self.esp if source in (None, sender)))

    def ike_sas(self) -> list[tuple[bytes, bytes]]:
        """IKE SPIs of IKE_SAs that got past the first message, in order of appearance."""
        return list(dict.fromkeys((message.spi_i, message.spi_r) for message in self.ike if any(message.spi_r)))

    def of(self, exchange: int, *, response: bool | None = None) -> list[IkeMessage]:
        """The messages of an exchange type."""
        return [m for m in self.ike if m.exchange == exchange and response in (None, m.response)]


def read(frames: Iterable[bytes]) -> Wire:
    """Sort the frames of a recording."""
    wire = Wire()
    for frame in frames:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == 0x0800:
            _read_ipv4(wire, frame[14:])
        elif kind == 0x86DD:
            _read_ipv6(wire, frame[14:])
        elif kind != 0x0806:
            wire.cleartext.append(f"ethertype {kind:#06x}")
        if MARKER in frame:
            wire.cleartext.append(f"our data: {frame[:80].hex()}")
    return wire


def _read_ipv4(wire: Wire, packet: bytes) -> None:
    header = (packet[0] & 0x0F) * 4
    length, _, fragment = struct.unpack_from("!HHH", packet, 2)
    source, target = (str(ip_address(packet[at : at + 4])) for at in (12, 16))
    _read_packet(wire, source, target, packet[9], packet[header:length], bool(fragment & 0x1FFF))


def _read_ipv6(wire: Wire, packet: bytes) -> None:
    source, target = (str(ip_address(packet[at : at + 16])) for at in (8, 24))
    protocol, data = packet[6], packet[40 : 40 + struct.unpack_from("!H", packet, 4)[0]]
    later = False
    if protocol == FRAGMENT:
        protocol, later = data[0], bool(struct.unpack_from("!H", data, 2)[0] & 0xFFF8)
        data = data[8:]
    if protocol == HOP_BY_HOP and target.startswith("ff02::"):
        return  # multicast listener discovery
    _read_packet(wire, source, target, protocol, data, later)


def _read_packet(wire: Wire, source: str, target: str, protocol: int, data: bytes, later: bool) -> None:
    what = f"{source} -> {target} protocol {protocol}: {data[:40].hex()}"
    addresses = [ip_address(source), ip_address(target)]
    inside = any(address in net for address in addresses for net in PROTECTED if net.version == address.version)
    if inside:
        wire.cleartext.append(what)
    elif protocol == UDP and later:
        return  # of a large IKE message
    elif protocol == UDP and set(PORTS) & set(struct.unpack_from("!HH", data)):
        _read_udp(wire, source, target, data)
    elif protocol == ESP:
        wire.esp.append((source, struct.unpack_from("!I", data)[0]))
    elif data[0] not in ICMP_ERRORS.get(protocol, ()) and not (protocol == ICMP6 and data[0] in NEIGHBOURS):
        wire.cleartext.append(what)


def _read_udp(wire: Wire, source: str, target: str, data: bytes) -> None:
    source_port, target_port = struct.unpack_from("!HH", data)
    payload = data[8:]
    if payload == b"\xff":
        wire.keepalives.append(source)
        return
    if 4500 in (source_port, target_port):
        if payload[:4] != bytes(4):
            wire.esp.append((source, struct.unpack_from("!I", payload)[0]))
            return
        payload = payload[4:]
    spi_i, spi_r, first, _, exchange, flags, message_id, _ = struct.unpack_from("!8s8sBBBBII", payload)
    notifies = tuple(_notifies(first, payload)) if exchange == IKE_SA_INIT else ()
    message = (source, source_port, target, spi_i, spi_r, exchange, bool(flags & 0x20), message_id, first, notifies)
    wire.ike.append(IkeMessage(*message))


def _notifies(kind: int, message: bytes) -> Iterator[int]:
    at = 28
    while kind and at + 4 <= len(message):
        following, _, length = struct.unpack_from("!BBH", message, at)
        if kind == NOTIFY and length >= 8:
            yield struct.unpack_from("!H", message, at + 6)[0]
        kind, at = following, at + max(length, 4)
