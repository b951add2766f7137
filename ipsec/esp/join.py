"""Datagrams that come in fragments and have to go whole: in transport mode ESP comes before fragmentation.

RFC 4303 section 3.3.4: to what sits below the IP layer, as the device does, that layer has fragmented already, and it
puts them together again. Our own host sends the fragments of a datagram in order, so that is what is taken.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from ipsec.esp.engine import JOIN_DATAGRAMS, JOIN_SECONDS
from ipsec.esp.pmtu import with_lengths
from ipsec.wire.ip import FRAGMENT_HEADER, IPV6_HEADER, Fragment, IpPacket


class Joined(NamedTuple):
    """What became of a fragment."""

    packet: bytes | None = None
    "its datagram, now whole"
    lost: int = 0
    "fragments that were given up"
    kept: bool = False
    "this one waits for the next"


@dataclass
class _Part:
    """The beginning of a datagram."""

    since: float
    header: bytes
    payload: bytes
    fragments: int = 1


class FragmentJoiner:
    """At most JOIN_DATAGRAMS at once, each for JOIN_SECONDS."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[object, ...], _Part] = OrderedDict()
        "the one that was added to last is last"

    def put(self, packet: IpPacket, now: float) -> Joined:
        """Take a fragment."""
        key = (packet.source, packet.destination, packet.fragment_id, packet.protocol if packet.version == 4 else 0)
        part = self._parts.pop(key, None)
        header, payload = _split(packet)
        if packet.fragment is Fragment.FIRST and header:
            lost = part.fragments if part else 0
            if len(self._parts) == JOIN_DATAGRAMS:
                lost += self._parts.popitem(last=False)[1].fragments
            self._parts[key] = _Part(now, header, payload)
            return Joined(lost=lost, kept=True)
        if part is None or not header or not _continues(part, packet, payload, now):
            return Joined(lost=1 + (part.fragments if part else 0))
        part.payload += payload
        if not _more(packet):
            return Joined(_whole(packet.version, part))
        part.fragments += 1
        self._parts[key] = part
        return Joined(kept=True)


def _continues(part: _Part, packet: IpPacket, payload: bytes, now: float) -> bool:
    if now - part.since > JOIN_SECONDS or packet.fragment_offset != len(part.payload):
        return False
    header = len(part.header) if packet.version == 4 else 0
    return header + len(part.payload) + len(payload) <= 65535


def _split(packet: IpPacket) -> tuple[bytes, bytes]:
    """Header, as that of the datagram, and payload. Empty if the fragment header is not the first after IPv6's own."""
    data = packet.data
    if packet.version == 4:
        length = (data[0] & 15) * 4
        return data[:length], data[length:]
    if data[6] != FRAGMENT_HEADER:
        return b"", b""
    return data[:6] + data[IPV6_HEADER : IPV6_HEADER + 1] + data[7:IPV6_HEADER], data[IPV6_HEADER + 8 :]


def _more(packet: IpPacket) -> bool:
    return bool(packet.data[6] & 0x20 if packet.version == 4 else packet.data[IPV6_HEADER + 3] & 1)


def _whole(version: int, part: _Part) -> bytes:
    if version == 4:
        return with_lengths(part.header, len(part.payload), 0) + part.payload
    return part.header[:4] + struct.pack("!H", len(part.payload)) + part.header[6:] + part.payload
