"""Inner IPv4 packets cut into fragments, and put together again by RFC 791's rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_LSRR, IPOption_Router_Alert, IPOption_RR
from scapy.packet import Raw

from ipsec._probe import probe_fragments
from tests.fast.frames import fold, ip_layer, payload, udp_packet

MORE = 0x2000
RECORD_ROUTE = IPOption_RR(routers=["0.0.0.0"] * 3)
ALERT = IPOption_Router_Alert()
SOURCE_ROUTE = IPOption_LSRR(routers=["192.0.2.7"])


def word_of(packet: bytes) -> int:
    return int(struct.unpack("!H", packet[6:8])[0])


def check_fragments(packet: bytes, fragments: list[bytes], mtu: int) -> None:
    """RFC 791 section 3.2: they cover the packet in order, and say so."""
    header = (packet[0] & 15) * 4
    last = word_of(packet)
    offset = last & 0x1FFF
    data = b""
    for k, fragment in enumerate(fragments):
        assert len(fragment) <= mtu
        length = (fragment[0] & 15) * 4
        assert fold(fragment[:length]) == 0xFFFF
        assert struct.unpack("!H", fragment[2:4])[0] == len(fragment)
        assert fragment[1] == packet[1]
        assert fragment[4:6] == packet[4:6]
        assert fragment[8:10] == packet[8:10]
        assert fragment[12:20] == packet[12:20]
        assert word_of(fragment) & 0x1FFF == offset + len(data) // 8
        if k + 1 < len(fragments):
            assert word_of(fragment) & MORE
            assert (len(fragment) - length) % 8 == 0
            assert len(fragment) + 8 > mtu
        else:
            assert word_of(fragment) & MORE == last & MORE
        data += fragment[length:]
    assert data == packet[header:]


@given(
    size=st.integers(0, 9000),
    mtu=st.integers(68, 1500),
    options=st.lists(st.sampled_from([RECORD_ROUTE, ALERT, SOURCE_ROUTE]), max_size=2),
    more=st.booleans(),
    offset=st.sampled_from([0, 1, 100, 7000]),
    tos=st.integers(0, 255),
)
def test_fragments_cover_the_packet(
    size: int, mtu: int, options: list[object], more: bool, offset: int, tos: int
) -> None:
    fields = {"flags": "MF" if more else 0, "frag": offset, "tos": tos, "options": options, "proto": 17}
    packet = bytes(ip_layer(4, **fields) / Raw(payload(max(size, 8))))
    fragments = probe_fragments(packet, mtu)
    assert fragments is not None
    check_fragments(packet, fragments, mtu)
    assert fragments[0][20 : (packet[0] & 15) * 4] == packet[20 : (packet[0] & 15) * 4]


def test_only_options_with_the_copied_flag_are_in_later_fragments() -> None:
    packet = udp_packet(4, 200, ip={"flags": 0, "options": [RECORD_ROUTE, ALERT]})
    fragments = probe_fragments(packet, 100)
    assert fragments is not None
    assert len(fragments) > 2
    assert IP(fragments[0]).options == IP(packet).options
    for fragment in fragments[1:]:
        assert fragment[0] == 0x46
        assert fragment[20:24] == bytes(ALERT)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (b"\x01\x01\x01\x01", b""),
        (b"\x01\x94\x04\x00\x00\x01\x01\x00", b"\x94\x04\x00\x00"),
        (b"\x00\x94\x04\x00", b""),
        (b"\x83\x07\x04\x01\x02\x03\x04\x00", b"\x83\x07\x04\x01\x02\x03\x04\x00"),
        (b"\x07\x03\x04\x83\x03\x04\x94\x02", b"\x83\x03\x04\x94\x02\x00\x00\x00"),
    ],
)
def test_options_octet_by_octet(options: bytes, kept: bytes) -> None:
    head = bytes(ip_layer(4, flags=0, proto=253, ihl=5 + len(options) // 4, len=20 + len(options) + 64))
    fragments = probe_fragments(head + options + payload(64), 68)
    assert fragments is not None
    assert fragments[0][20 : 20 + len(options)] == options
    assert fragments[1][20 : (fragments[1][0] & 15) * 4] == kept


@pytest.mark.parametrize(
    "options", [b"\x94\x00\x00\x00", b"\x94\x01\x00\x00", b"\x94\x05\x00\x00", b"\x01\x01\x01\x94"]
)
def test_options_that_lie(options: bytes) -> None:
    packet = bytes(ip_layer(4, flags=0, proto=253, ihl=6, len=88)) + options + payload(64)
    assert probe_fragments(packet, 68) is None


def test_what_cannot_be_fragmented() -> None:
    assert probe_fragments(udp_packet(4, 200, ip={"flags": "DF"}), 100) is None
    assert probe_fragments(udp_packet(6, 200), 100) is None
    packet = udp_packet(4, 200, ip={"flags": 0})
    assert probe_fragments(packet, 27) is None
    assert len(probe_fragments(packet, 28) or []) == 26


def test_a_packet_that_fits_is_one_fragment() -> None:
    for size in (0, 1, 72):
        packet = udp_packet(4, size, ip={"flags": 0})
        assert probe_fragments(packet, 100) == [packet]
    bare = bytes(ip_layer(4, flags=0, proto=253))
    assert probe_fragments(bare, 68) == [bare]


@given(st.binary(min_size=0, max_size=40), st.integers(0, 300), st.integers(0, 1500))
def test_random_options(options: bytes, size: int, mtu: int) -> None:
    options = options[: len(options) & ~3]
    length = 20 + len(options) + size
    packet = bytes(ip_layer(4, flags=0, proto=253, ihl=5 + len(options) // 4, len=length)) + options + payload(size)
    fragments = probe_fragments(packet, mtu)
    if fragments is not None:
        assert b"".join(f[(f[0] & 15) * 4 :] for f in fragments) == payload(size)
        assert all(len(fragment) <= mtu for fragment in fragments)
