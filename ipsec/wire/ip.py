"""IPv4 and IPv6 as ESP needs them: parsing, checksums, and the outer header of an ESP packet.

RFC 791, RFC 8200, RFC 1071 (checksum), RFC 1624 (incremental checksum), RFC 3948 (ESP in UDP).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import ParseError

IpAddress = IPv4Address | IPv6Address

IPIP, TCP, UDP, IPV6, ESP, AH, NO_NEXT_HEADER = 4, 6, 17, 41, 50, 51, 59
ICMP, ICMPV6, DCCP, SCTP, MH, UDPLITE = 1, 58, 33, 132, 135, 136
HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION = 0, 43, 44, 60

IPV4_HEADER = 20
IPV6_HEADER = 40
UDP_HEADER = 8
TTL = 64

_WITH_PORTS = frozenset((TCP, UDP, SCTP, UDPLITE, DCCP))
EXTENSION_HEADERS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION, AH))
"what the walk to the upper layer skips (RFC 8200 section 4, RFC 4302)"


class Fragment(IntEnum):
    """Which part of a datagram a packet is."""

    NONE = 0
    FIRST = 1
    "offset 0 and more to come: the ports are there"
    LATER = 2
    "no ports (RFC 4301 section 7)"


@dataclass(frozen=True)
class IpPacket:
    """One parsed IP packet. ``data`` is cut to the length its header gives; lengths and offsets are octets."""

    data: bytes
    version: int
    source: IpAddress
    destination: IpAddress
    tos: int
    "DSCP and ECN"
    protocol: int
    "upper layer; in a later IPv6 fragment the fragment header's next header, which may be an extension header"
    l4_offset: int
    "first octet after the IP header and IPv6 extension headers"
    fragment: Fragment
    fragment_id: int
    fragment_offset: int
    dont_fragment: bool
    "IPv4 DF; always True for IPv6"
    ports: tuple[int, int] | None
    "source and destination port; ``type << 8 | code`` twice for ICMP and ICMPv6, MH type << 8 twice; None: has none"


def parse_packet(data: bytes) -> IpPacket:
    """The IP packet at the start of ``data``; octets past its length (TFC padding) are cut off.

    ParseError if the header contradicts itself or ``data``, or if a packet that begins an upper layer is too short
    for its ports: such a fragment hides them (RFC 1858).
    """
    if len(data) < IPV4_HEADER:
        raise ParseError(f"IP packet of {len(data)} octets")
    version = data[0] >> 4
    if version == 4:
        return _parse_ipv4(data)
    if version == 6:
        return _parse_ipv6(data)
    raise ParseError(f"IP version {version}")


def _parse_ipv4(data: bytes) -> IpPacket:
    header = (data[0] & 15) * 4
    tos, length, fragment_id, flags = struct.unpack_from("!xBHHH", data)
    if header < IPV4_HEADER or not header <= length <= len(data):
        raise ParseError(f"IPv4 header of {header} octets, length {length}, {len(data)} octets received")
    offset = (flags & 0x1FFF) * 8
    fragment = Fragment.LATER if offset else Fragment.FIRST if flags & 0x2000 else Fragment.NONE
    # RFC 1858, RFC 3128: no fragment may end beyond the largest datagram
    if fragment is not Fragment.NONE and offset + length - header > 65535:
        raise ParseError(f"IPv4 fragment at {offset} with {length - header} octets")
    return IpPacket(
        data=data[:length],
        version=4,
        source=IPv4Address(data[12:16]),
        destination=IPv4Address(data[16:20]),
        tos=tos,
        protocol=data[9],
        l4_offset=header,
        fragment=fragment,
        fragment_id=fragment_id if fragment is not Fragment.NONE else 0,
        fragment_offset=offset,
        dont_fragment=bool(flags & 0x4000),
        ports=None if fragment is Fragment.LATER else _ports(data[header:length], data[9]),
    )


def _parse_ipv6(data: bytes) -> IpPacket:
    if len(data) < IPV6_HEADER:
        raise ParseError(f"IPv6 packet of {len(data)} octets")
    length = IPV6_HEADER + int.from_bytes(data[4:6], "big")
    if length > len(data):
        raise ParseError(f"IPv6 length {length}, {len(data)} octets received")
    fragment, fragment_id, fragment_offset = Fragment.NONE, 0, 0
    protocol, at = data[6], IPV6_HEADER
    while protocol in EXTENSION_HEADERS:
        if at + 8 > length:
            raise ParseError(f"IPv6 extension header {protocol} cut short")
        header, protocol = protocol, data[at]
        if header == FRAGMENT_HEADER:
            word, fragment_id = struct.unpack_from("!HI", data, at + 2)
            fragment_offset = word & 0xFFF8
            if word & 0xFFF9:
                fragment = Fragment.LATER if fragment_offset else Fragment.FIRST
            at += 8
            if fragment is Fragment.LATER:
                break
        elif header == AH:
            at += (data[at + 1] + 2) * 4
        else:
            at += (data[at + 1] + 1) * 8
        if at > length:
            raise ParseError(f"IPv6 extension header {header} ends beyond the packet")
    return IpPacket(
        data=data[:length],
        version=6,
        source=IPv6Address(data[8:24]),
        destination=IPv6Address(data[24:40]),
        tos=int.from_bytes(data[:2], "big") >> 4 & 0xFF,
        protocol=protocol,
        l4_offset=at,
        fragment=fragment,
        fragment_id=fragment_id,
        fragment_offset=fragment_offset,
        dont_fragment=True,
        ports=None if fragment is Fragment.LATER else _ports(data[at:length], protocol),
    )


def _ports(segment: bytes, protocol: int) -> tuple[int, int] | None:
    needed = 4 if protocol in _WITH_PORTS else 2 if protocol in (ICMP, ICMPV6) else 3 if protocol == MH else 0
    if len(segment) < needed:
        raise ParseError(f"protocol {protocol} with {len(segment)} octets")
    if not needed:
        return None
    if protocol == MH:
        return segment[2] << 8, segment[2] << 8
    first = int.from_bytes(segment[:2], "big")
    return (first, int.from_bytes(segment[2:4], "big")) if needed == 4 else (first, first)


def checksum(data: bytes, initial: int = 0) -> int:
    """The Internet checksum (RFC 1071) of ``data``, odd lengths padded; ``initial`` is a sum to begin with."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1))
    total = initial + sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def checksum_update(old_sum: int, old: int, new: int) -> int:
    """The checksum after a 16-bit word changed from ``old`` to ``new`` (RFC 1624 equation 3).

    Incremental on purpose: a sum that was wrong stays wrong and is found by the receiver.
    """
    total = (old_sum ^ 0xFFFF) + (old ^ 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16) ^ 0xFFFF


def pseudo_header_sum(source: IpAddress, destination: IpAddress, protocol: int, length: int) -> int:
    """Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1), to begin a checksum with."""
    return checksum(source.packed + destination.packed + struct.pack("!II", length, protocol)) ^ 0xFFFF


def ip_header(
    source: IpAddress,
    destination: IpAddress,
    protocol: int,
    length: int,
    *,
    tos: int,
    df: bool,
    identification: int = 0,
) -> bytes:
    """An IP header without options for ``length`` octets of payload; ``df`` and ``identification`` are IPv4's."""
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28 | tos << 20, length, protocol, TTL) + source.packed + destination.packed
    head = struct.pack("!BBHHHBB", 0x45, tos, IPV4_HEADER + length, identification, 0x4000 if df else 0, TTL, protocol)
    addresses = source.packed + destination.packed
    return head + checksum(head + addresses).to_bytes(2, "big") + addresses


def set_tos(packet: bytes, tos: int) -> bytes:
    """``packet`` with other DSCP and ECN; the IPv4 checksum follows."""
    if packet[0] >> 4 == 6:
        word = int.from_bytes(packet[:4], "big") & 0xF00FFFFF | tos << 20
        return word.to_bytes(4, "big") + packet[4:]
    old_sum, old = int.from_bytes(packet[10:12], "big"), int.from_bytes(packet[:2], "big")
    if packet[1] == tos:
        return packet
    updated = checksum_update(old_sum, old, packet[0] << 8 | tos)
    return packet[:1] + bytes([tos]) + packet[2:10] + updated.to_bytes(2, "big") + packet[12:]


@dataclass(frozen=True)
class OuterPacket:
    """What an outer IP packet carries. ``ports`` is (source, destination) for ESP in UDP, None for protocol 50."""

    source: IpAddress
    destination: IpAddress
    tos: int
    df: bool
    ports: tuple[int, int] | None
    payload: bytes
    "from SPI to ICV; in UDP also anything else that the port receives"


def emit_outer(packet: OuterPacket, identification: int = 0) -> bytes:
    """The whole outer IP packet. ValueError if it does not fit into 65535 octets."""
    payload, protocol = packet.payload, ESP
    if packet.ports is not None:
        protocol, length = UDP, UDP_HEADER + len(payload)
        if length > 65535:
            raise ValueError(f"{length} octets do not fit into a UDP datagram")
        value = 0
        if packet.source.version == 6:
            # RFC 3948 section 2.1 wants 0 over IPv4; over IPv6 the checksum is not optional (RFC 8200 section 8.1)
            initial = pseudo_header_sum(packet.source, packet.destination, UDP, length)
            value = checksum(struct.pack("!HHHH", *packet.ports, length, 0) + payload, initial) or 0xFFFF
        payload = struct.pack("!HHHH", *packet.ports, length, value) + payload
    if len(payload) + (IPV4_HEADER if packet.source.version == 4 else 0) > 65535:
        raise ValueError(f"{len(payload)} octets do not fit into an IP packet")
    header = ip_header(
        packet.source,
        packet.destination,
        protocol,
        len(payload),
        tos=packet.tos,
        df=packet.df,
        identification=identification,
    )
    return header + payload


def parse_outer(data: bytes) -> OuterPacket:
    """The payload of an outer IP packet: ESP, or UDP of any port. ParseError for anything else and for fragments."""
    packet = parse_packet(data)
    if packet.fragment is not Fragment.NONE:
        raise ParseError("an IP fragment; reassembly comes before ESP (RFC 4303 section 3.4.1)")
    if packet.version == 4 and checksum(packet.data[: packet.l4_offset]):
        raise ParseError("the IPv4 header checksum is wrong")
    payload, ports = packet.data[packet.l4_offset :], None
    if packet.protocol == UDP:
        if len(payload) < UDP_HEADER:
            raise ParseError(f"UDP datagram of {len(payload)} octets")
        source_port, destination_port, length, value = struct.unpack_from("!HHHH", payload)
        if not UDP_HEADER <= length <= len(payload):
            raise ParseError(f"UDP length {length}, {len(payload)} octets received")
        initial = pseudo_header_sum(packet.source, packet.destination, UDP, length)
        # zero is "not computed"; RFC 6935 allows it to tunnels over IPv6 too
        if value and checksum(payload[:length], initial):
            raise ParseError("the UDP checksum is wrong")
        ports, payload = (source_port, destination_port), payload[UDP_HEADER:length]
    elif packet.protocol != ESP:
        raise ParseError(f"IP protocol {packet.protocol} is neither ESP nor UDP")
    return OuterPacket(packet.source, packet.destination, packet.tos, packet.dont_fragment, ports, payload)
