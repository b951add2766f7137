"""What fits through an SA, and what to do with what does not: ICMP, fragments, TCP MSS.

RFC 4301 section 8, RFC 1191, RFC 8201, RFC 2473 section 7, RFC 791.

An IPv4 sender is told the inner MTU as it is: it is never below 68 (RFC 1191 section 3), since no path MTU below 576
is accepted. An IPv6 sender is never told less than 1280, the least MTU of any IPv6 link (RFC 8200 section 5). IPv6
packets of up to 1280 octets that are larger than the inner MTU are therefore sealed whole, and their outer packet is
fragmented: its DF is clear (RFC 2473 section 7.1).
"""

from __future__ import annotations

import struct

from ipsec.esp.sa import Mode, SaParams
from ipsec.wire.ip import (
    ICMP,
    ICMPV6,
    IPV4_HEADER,
    IPV6_HEADER,
    TCP,
    UDP_HEADER,
    Fragment,
    IpPacket,
    checksum,
    checksum_update,
    ip_header,
    pseudo_header_sum,
)

ESP_HEADER = 8
IPV6_MIN_MTU = 1280
ICMPV4_MAX = 576
"octets of an ICMP error (RFC 1812 section 4.3.2.3)"
INTERNETWORK_CONTROL = 0xC0
"precedence of ICMP errors (RFC 1812 section 4.3.2.5)"

_ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))
_ICMPV6_REDIRECT = 137


def inner_mtu(params: SaParams) -> int:
    """Octets of the largest inner IP packet whose outer packet keeps to the SA's path MTU."""
    suite = params.suite
    ip = IPV4_HEADER if params.local.version == 4 else IPV6_HEADER
    udp = UDP_HEADER if params.encap is not None else 0
    room = params.path_mtu - ip - udp - ESP_HEADER - suite.iv_len - suite.icv_len
    payload = room // suite.block * suite.block - 2
    return payload + ip if params.mode is Mode.TRANSPORT else payload


def packet_limit(mtu: int, version: int) -> int:
    """Octets up to which a packet is sealed whole although it must not be fragmented."""
    return mtu if version == 4 else max(mtu, IPV6_MIN_MTU)


def clamp_mss(packet: IpPacket, mtu: int) -> bytes:
    """``packet`` with the MSS option of a TCP SYN lowered to what ``mtu`` carries; anything else as it is.

    The search ends at an option that does not parse. The checksum is updated, not computed anew: one that was wrong
    stays wrong.
    """
    data, at = packet.data, packet.l4_offset
    if packet.protocol != TCP or packet.fragment is Fragment.LATER or len(data) < at + 20 or not data[at + 13] & 0x02:
        return data
    end = at + (data[at + 12] >> 4) * 4
    limit = mtu - (40 if packet.version == 4 else 60)
    option = at + 20
    if end > len(data):
        return data
    while option < end and data[option] != 0:
        if data[option] == 1:
            option += 1
            continue
        size = data[option + 1] if option + 2 <= end else 0
        if size < 2 or option + size > end:
            break
        if data[option] == 2 and size == 4:
            data = _lower_mss(data, at, option + 2, limit)
        option += size
    return data


def _lower_mss(data: bytes, tcp: int, at: int, limit: int) -> bytes:
    mss = int.from_bytes(data[at : at + 2], "big")
    if mss <= limit:
        return data
    old, new = mss, limit
    if (at - tcp) % 2:
        # the value straddles two words of the sum: swapping octets moves it (RFC 1071 section 2)
        old, new = (value >> 8 | (value & 0xFF) << 8 for value in (mss, limit))
    updated = checksum_update(int.from_bytes(data[tcp + 16 : tcp + 18], "big"), old, new)
    out = bytearray(data)
    out[at : at + 2] = limit.to_bytes(2, "big")
    out[tcp + 16 : tcp + 18] = updated.to_bytes(2, "big")
    return bytes(out)


def fragment_ipv4(packet: IpPacket, mtu: int) -> list[bytes]:
    """``packet`` in fragments of up to ``mtu`` octets, at least 68 (RFC 791 section 3.2). Its DF must be clear.

    Empty if it has options that do not parse: which of them later fragments must carry is then not known.
    """
    data = packet.data
    header, later = data[: packet.l4_offset], _later_header(data[: packet.l4_offset])
    if later is None:
        return []
    payload = data[packet.l4_offset :]
    base = int.from_bytes(data[6:8], "big")
    fragments, at = [], 0
    while at < len(payload):
        room = mtu - len(header)
        last = len(payload) - at <= room
        part = payload[at:] if last else payload[at : at + room // 8 * 8]
        word = base + at // 8 | (0 if last else 0x2000)
        fragments.append(with_lengths(header, len(part), word) + part)
        at += len(part)
        header = later
    return fragments


def _later_header(header: bytes) -> bytes | None:
    """The header of fragments after the first: only options with the copied flag, padded with EOL. None: malformed."""
    options, kept, at = header[IPV4_HEADER:], b"", 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return None
        if options[at] & 0x80:
            kept += options[at : at + length]
        at += length
    kept += b"\0" * (-len(kept) % 4)
    return bytes([0x40 | (IPV4_HEADER + len(kept)) // 4]) + header[1:IPV4_HEADER] + kept


def with_lengths(header: bytes, payload: int, word: int) -> bytes:
    """An IPv4 header for that many octets of payload, with this word of fragment offset and flags."""
    length = (len(header) + payload).to_bytes(2, "big")
    head = header[:2] + length + header[4:6] + word.to_bytes(2, "big") + header[8:10] + bytes(2) + header[12:]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]


def too_big(packet: IpPacket, mtu: int, source4: bytes | None, source6: bytes | None) -> bytes | None:
    """The ICMP error that tells the sender of ``packet`` the MTU, from ``source4`` or ``source6`` or its destination.

    None where no error may be sent: for ICMP errors and redirects, and for packets from what is not one host; IPv4
    also for later fragments and for packets to what is not one host (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7).
    IPv6 allows these two (RFC 4443 section 2.4 (e)): path MTU discovery would not work without. A reply to a multicast
    packet needs a ``source6``.
    """
    if _is_icmp_error(packet) or not _answerable(packet):
        return None
    own = source4 if packet.version == 4 else source6
    if own is None and packet.destination.is_multicast:
        return None
    source = packet.destination if own is None else type(packet.destination)(own)
    destination = packet.source
    if packet.version == 4:
        quoted = packet.data[: ICMPV4_MAX - IPV4_HEADER - 8]
        body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        return ip_header(source, destination, ICMP, len(body), tos=INTERNETWORK_CONTROL, df=True) + body
    quoted = packet.data[: IPV6_MIN_MTU - IPV6_HEADER - 8]
    body = struct.pack("!BBHI", 2, 0, 0, mtu) + quoted
    value = checksum(body, pseudo_header_sum(source, destination, ICMPV6, len(body)))
    body = body[:2] + value.to_bytes(2, "big") + body[4:]
    return ip_header(source, destination, ICMPV6, len(body), tos=0, df=True) + body


def _answerable(packet: IpPacket) -> bool:
    source, destination = packet.source.packed, packet.destination.packed
    if packet.version == 6:
        return source[0] != 0xFF and int(packet.source) > 1
    # 0/8 is "this network", 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast
    if source[0] in (0, 127) or source[0] >= 224:
        return False
    return packet.fragment is not Fragment.LATER and 0 < destination[0] < 224


def _is_icmp_error(packet: IpPacket) -> bool:
    if packet.ports is None:
        return False
    kind = packet.ports[0] >> 8
    if packet.version == 4:
        return packet.protocol == ICMP and kind in _ICMP_ERRORS
    return packet.protocol == ICMPV6 and (kind < 128 or kind == _ICMPV6_REDIRECT)
