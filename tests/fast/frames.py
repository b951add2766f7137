"""Frames for the tests of ipsec/fast: scapy builds the packets, the checksum is computed here and by nobody else."""

from __future__ import annotations

import struct
from typing import NamedTuple

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
ECN_BIT = 0x80
TCP_PROTOCOL, UDP_PROTOCOL = 6, 17

V4 = ("192.0.2.1", "198.51.100.2")
V6 = ("2001:db8::1", "2001:db8:ffff::2")


class Vnet(NamedTuple):
    """struct virtio_net_hdr."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def emit(self) -> bytes:
        return struct.pack("=BBHHHH", *self)


def parse_vnet(octets: bytes) -> Vnet:
    return Vnet(*struct.unpack("=BBHHHH", octets))


def fold(octets: bytes) -> int:
    """The ones' complement sum of 16-bit words in network order (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(octets) + 1) // 2}H", octets + bytes(len(octets) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def internet_checksum(octets: bytes) -> int:
    return ~fold(octets) & 0xFFFF


def ip_header_length(packet: bytes) -> int:
    """Without IPv6 extension headers."""
    return (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40


def protocol_of(packet: bytes) -> int:
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def header_length(packet: bytes) -> int:
    """IP and TCP or UDP header."""
    l4 = ip_header_length(packet)
    return l4 + ((packet[l4 + 12] >> 4) * 4 if protocol_of(packet) == TCP_PROTOCOL else 8)


def pseudo_header(packet: bytes, length: int | None = None) -> bytes:
    """RFC 9293 section 3.1, RFC 8200 section 8.1."""
    l4 = ip_header_length(packet)
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + struct.pack("!II", len(packet) - l4 if length is None else length, protocol_of(packet))


def checksums_right(packet: bytes) -> bool:
    """Of the IPv4 header and of TCP or UDP."""
    l4 = ip_header_length(packet)
    header_right = packet[0] >> 4 == 6 or fold(packet[:l4]) == 0xFFFF
    return header_right and fold(pseudo_header(packet) + packet[l4:]) == 0xFFFF


def ip_layer(version: int, **fields: object) -> Packet:
    if version == 4:
        return IP(**{"src": V4[0], "dst": V4[1], "flags": "DF", "id": 100, **fields})
    return IPv6(**{"src": V6[0], "dst": V6[1], **fields})


def payload(size: int, seed: int = 0) -> bytes:
    return bytes((seed + 7 * i + i // 251) & 0xFF for i in range(size))


def tcp_packet(version: int = 4, size: int = 100, *, ip: dict[str, object] | None = None, **tcp: object) -> bytes:
    fields: dict[str, object] = {"sport": 40000, "dport": 443, "seq": 1000, "ack": 77, "flags": "A", **tcp}
    return bytes(ip_layer(version, **(ip or {})) / TCP(**fields) / payload(size, size))


def udp_packet(version: int = 4, size: int = 100, *, ip: dict[str, object] | None = None, **udp: object) -> bytes:
    fields: dict[str, object] = {"sport": 5353, "dport": 4433, **udp}
    return bytes(ip_layer(version, **(ip or {})) / UDP(**fields) / payload(size, size))


def superframe_vnet(packet: bytes, gso_size: int) -> Vnet:
    """What the kernel says of a superframe without extension headers."""
    tcp = protocol_of(packet) == TCP_PROTOCOL
    gso = (GSO_TCPV4 if packet[0] >> 4 == 4 else GSO_TCPV6) if tcp else GSO_UDP_L4
    return Vnet(NEEDS_CSUM, gso, header_length(packet), gso_size, ip_header_length(packet), 16 if tcp else 6)


def with_partial_checksum(packet: bytes) -> bytes:
    """The packet as a NEEDS_CSUM one: the pseudo-header's sum is where the checksum will be."""
    at = ip_header_length(packet) + (16 if protocol_of(packet) == TCP_PROTOCOL else 6)
    return packet[:at] + struct.pack("!H", fold(pseudo_header(packet))) + packet[at + 2 :]
