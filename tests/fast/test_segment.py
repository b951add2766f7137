"""Superframes from the TUN device cut into packets, against packets that scapy builds one by one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Packet, Raw

from ipsec._probe import probe_segment
from tests.fast.frames import (
    ECN_BIT,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    V6,
    Vnet,
    checksums_right,
    ip_layer,
    payload,
    superframe_vnet,
    tcp_packet,
    udp_packet,
    with_partial_checksum,
)

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]
SACK = [("SAck", (1, 2, 3, 4)), ("NOP", None), ("NOP", None)]


def scapy_segments(ip: Packet, l4: Packet, data: bytes, gso_size: int) -> list[bytes]:
    """RFC 9293 and RFC 768 done slowly: a packet for each piece, every length and checksum by scapy."""
    pieces = [data[at : at + gso_size] for at in range(0, len(data), gso_size)]
    packets = []
    for k, piece in enumerate(pieces):
        network, transport = ip.copy(), l4.copy()
        if isinstance(network, IP):
            network.id = (network.id + k) & 0xFFFF
        if isinstance(transport, TCP):
            transport.seq = (transport.seq + k * gso_size) & 0xFFFFFFFF
            flags = int(transport.flags)
            flags &= ~CWR if k else flags
            if k + 1 < len(pieces):
                flags &= ~(FIN | PSH)
            transport.flags = flags
        packets.append(bytes(network / transport / Raw(piece)))
    return packets


@given(
    version=st.sampled_from([4, 6]),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN | CWR, ACK | CWR]),
    seq=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32 - 1500]) | st.integers(0, 2**32 - 1),
    ip_id=st.sampled_from([0, 65535, 65530, 4711]),
    options=st.sampled_from([[], TIMESTAMP, SACK]),
    gso_size=st.integers(1, 2000),
    count=st.integers(1, 9),
    short=st.integers(0, 1999),
    tos=st.integers(0, 255),
    df=st.booleans(),
)
def test_tcp(
    version: int,
    flags: int,
    seq: int,
    ip_id: int,
    options: list[tuple[str, object]],
    gso_size: int,
    count: int,
    short: int,
    tos: int,
    df: bool,
) -> None:
    fields = {"id": ip_id, "tos": tos, "flags": "DF" if df else 0} if version == 4 else {"tc": tos, "fl": 0x12345}
    ip = ip_layer(version, **fields)
    tcp = TCP(sport=1, dport=65535, seq=seq, ack=99, flags=flags, window=501, options=options)
    data = payload(gso_size * count - short % gso_size, seq & 255)
    frame = with_partial_checksum(bytes(ip / tcp / Raw(data)))
    vnet = superframe_vnet(frame, gso_size)
    if flags & CWR:
        vnet = vnet._replace(gso_type=vnet.gso_type | ECN_BIT)
    assert probe_segment(vnet.emit(), frame) == scapy_segments(ip, tcp, data, gso_size)


@given(
    version=st.sampled_from([4, 6]),
    gso_size=st.integers(1, 2000),
    count=st.integers(1, 9),
    short=st.integers(0, 1999),
    sport=st.integers(0, 65535),
)
def test_udp(version: int, gso_size: int, count: int, short: int, sport: int) -> None:
    ip, udp = ip_layer(version), UDP(sport=sport, dport=443)
    data = payload(gso_size * count - short % gso_size, sport & 255)
    frame = with_partial_checksum(bytes(ip / udp / Raw(data)))
    packets = probe_segment(superframe_vnet(frame, gso_size).emit(), frame)
    assert packets == scapy_segments(ip, udp, data, gso_size)


def test_udp_checksum_zero_is_sent_as_ones() -> None:
    ip = ip_layer(6)
    # chosen so that the sum over the first datagram is 0xffff
    first = bytes(ip / UDP(sport=9, dport=9) / Raw(b"\0\0"))
    fill = struct.pack("!H", struct.unpack("!H", first[46:48])[0])
    frame = with_partial_checksum(bytes(ip / UDP(sport=9, dport=9) / Raw(fill + b"zz")))
    packets = probe_segment(superframe_vnet(frame, 2).emit(), frame)
    assert packets is not None
    assert packets[0][46:48] == b"\xff\xff"
    assert all(map(checksums_right, packets))


def test_largest_superframes() -> None:
    for frame in (tcp_packet(4, 65535 - 40), tcp_packet(6, 65535 - 20), udp_packet(4, 65535 - 28)):
        packets = probe_segment(superframe_vnet(frame, 1400).emit(), with_partial_checksum(frame))
        assert packets is not None
        assert len(packets) == 47
        assert all(map(checksums_right, packets))


def test_ip_options_and_extension_headers_go_into_every_segment() -> None:
    data = payload(250)
    tcp = TCP(sport=1, dport=2, seq=5, flags="PA")
    ip = ip_layer(4, options=[IPOption_Router_Alert()])
    vnet = Vnet(NEEDS_CSUM, GSO_TCPV4, 44, 100, 24, 16).emit()
    assert probe_segment(vnet, bytes(ip / tcp / Raw(data))) == scapy_segments(ip, tcp, data, 100)
    chain = ip_layer(6) / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(12))]) / IPv6ExtHdrDestOpt()
    start = len(bytes(chain))
    vnet = Vnet(NEEDS_CSUM, GSO_TCPV6, start + 20, 100, start, 16).emit()
    assert probe_segment(vnet, bytes(chain / tcp / Raw(data))) == scapy_segments(chain, tcp, data, 100)


def test_hdr_len_is_not_believed() -> None:
    frame = with_partial_checksum(tcp_packet(4, 300, options=TIMESTAMP))
    vnet = superframe_vnet(frame, 100)
    expected = probe_segment(vnet.emit(), frame)
    assert expected is not None
    assert len(expected) == 3
    for lie in (0, 1, 19, 40, 53, 352, 65535):
        assert probe_segment(vnet._replace(hdr_len=lie).emit(), frame) == expected


TCP4 = with_partial_checksum(tcp_packet(4, 300))
TCP6 = with_partial_checksum(tcp_packet(6, 300))
UDP4 = with_partial_checksum(udp_packet(4, 300))


def set_octet(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes([value]) + packet[at + 1 :]


@pytest.mark.parametrize(
    ("frame", "changes"),
    [
        pytest.param(TCP4, {"gso_size": 0}, id="gso_size 0"),
        pytest.param(TCP4, {"gso_type": GSO_TCPV6}, id="TCPV6 with IPv4"),
        pytest.param(TCP6, {"gso_type": GSO_TCPV4}, id="TCPV4 with IPv6"),
        pytest.param(TCP4, {"gso_type": GSO_UDP_L4}, id="UDP_L4 with TCP"),
        pytest.param(UDP4, {"gso_type": GSO_TCPV4}, id="TCPV4 with UDP"),
        pytest.param(UDP4, {"gso_type": 3}, id="UFO was not asked for"),
        pytest.param(UDP4, {"gso_type": GSO_UDP_L4 | ECN_BIT}, id="UDP has no CWR"),
        pytest.param(TCP4, {"gso_type": 77}, id="unknown type"),
        pytest.param(TCP4, {"csum_start": 24}, id="csum_start elsewhere"),
        pytest.param(TCP4, {"csum_offset": 6}, id="csum_offset elsewhere"),
        pytest.param(set_octet(TCP4, 32, 0x40), {}, id="data offset below 5"),
        pytest.param(set_octet(TCP4[:2] + b"\0\x30" + TCP4[4:48], 32, 0xF0), {}, id="data offset beyond the packet"),
        pytest.param(set_octet(TCP4[:2] + b"\0\x4f" + TCP4[4:79], 32, 0xF0), {}, id="data offset an octet beyond"),
        pytest.param(TCP4[:2] + b"\0\x24" + TCP4[4:36], {}, id="no room for a TCP header"),
        pytest.param(UDP4[:2] + b"\0\x1a" + UDP4[4:26], {}, id="no room for a UDP header"),
        pytest.param(set_octet(TCP4, 6, 0x20), {}, id="a fragment"),
        pytest.param(set_octet(TCP4, 33, SYN | ACK), {}, id="SYN"),
    ],
)
def test_refused(frame: bytes, changes: dict[str, int]) -> None:
    whole = UDP4 if frame[9] == 17 else TCP4 if frame[0] >> 4 == 4 else TCP6
    vnet = superframe_vnet(whole, 100)
    assert probe_segment(vnet.emit(), whole) is not None
    assert probe_segment(vnet._replace(**changes).emit(), frame) is None


@pytest.mark.parametrize("extension", [IPv6ExtHdrRouting(addresses=[V6[0]]), IPv6ExtHdrFragment(offset=0, m=0)])
def test_extension_headers_that_segments_cannot_share(extension: Packet) -> None:
    packet = bytes(IPv6(src=V6[0], dst=V6[1]) / extension / TCP(flags="A") / Raw(payload(300)))
    start = len(packet) - 320
    assert probe_segment(Vnet(NEEDS_CSUM, GSO_TCPV6, start + 20, 100, start, 16).emit(), packet) is None


@pytest.mark.parametrize(("octets", "taken"), [(192, True), (200, False)])
def test_the_longest_header(octets: int, taken: bool) -> None:
    """A copy of it has 256 octets."""
    chain = ip_layer(6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(octets - 4))])
    start = len(bytes(chain))
    assert start == 40 + octets
    vnet = Vnet(NEEDS_CSUM, GSO_TCPV6, start + 20, 100, start, 16).emit()
    segments = probe_segment(vnet, bytes(chain / TCP(flags="A") / Raw(payload(300))))
    assert (segments is not None) is taken


@pytest.mark.parametrize("packet", [tcp_packet(4), tcp_packet(6), udp_packet(4), udp_packet(6), udp_packet(6, 0)])
def test_finish_checksum(packet: bytes) -> None:
    whole = superframe_vnet(packet, 0)
    vnet = Vnet(NEEDS_CSUM, csum_start=whole.csum_start, csum_offset=whole.csum_offset)
    assert probe_segment(vnet.emit(), with_partial_checksum(packet)) == [packet]


def test_without_needs_csum_a_packet_is_left_alone() -> None:
    packet = with_partial_checksum(tcp_packet())
    assert probe_segment(Vnet().emit(), packet) == [packet]
    assert probe_segment(Vnet(csum_start=7, csum_offset=9999).emit(), packet) == [packet]


@pytest.mark.parametrize(("start", "offset"), [(0, 16), (19, 16), (20, 120), (20, 119), (140, 0), (65535, 65535)])
def test_finish_checksum_stays_within_the_packet(start: int, offset: int) -> None:
    packet = tcp_packet(size=100)
    assert len(packet) == 140
    assert probe_segment(Vnet(NEEDS_CSUM, csum_start=start, csum_offset=offset).emit(), packet) is None


@given(
    vnet=st.builds(
        Vnet,
        st.sampled_from([0, 1, 2, 3, 255]),
        st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84, 0x85, 255]),
        *[st.integers(0, 65535) | st.integers(0, 70)] * 4,
    ),
    frame=st.sampled_from([TCP4, TCP6, UDP4]),
    changes=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=4),
    cut=st.integers(20, 400),
)
def test_whatever_is_said_payload_is_neither_lost_nor_made_up(
    vnet: Vnet, frame: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    for at, value in changes:
        frame = set_octet(frame, at, value)
    try:
        packets = probe_segment(vnet.emit(), frame[:cut])
    except ValueError:
        return  # the IP header contradicts itself: the pump drops it before
    if packets is None or vnet.gso_type & 0x7F == 0:
        return
    length = struct.unpack("!H", frame[2:4])[0] if frame[0] >> 4 == 4 else 40 + struct.unpack("!H", frame[4:6])[0]
    if len(packets) > 1:
        header = len(packets[0]) - vnet.gso_size
        assert b"".join(packet[header:] for packet in packets) == frame[header:length]
        assert {len(packet) for packet in packets[:-1]} == {header + vnet.gso_size}
    else:
        assert len(packets[0]) == length
