"""IP parsing, checksums and outer framing."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.esp.engine import Sealed
from ipsec.esp.framing import open_outer, outer_packet
from ipsec.esp.sa import Direction
from ipsec.wire.ip import (
    Fragment,
    OuterPacket,
    checksum,
    checksum_update,
    emit_outer,
    parse_outer,
    parse_packet,
    set_tos,
)
from tests.esp.support import ip, ipv4_fragment, ipv6_fragment, params, tcp_syn, udp

ADDRESSES = {4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")), 6: (ip_address("::1:1"), ip_address("::1:2"))}


def outer(version=4, ports=(4500, 4501), payload=b"payload!", tos=0xB9, df=True):
    return OuterPacket(*ADDRESSES[version], tos, df or version == 6, ports, payload)


def test_checksum_of_rfc_1071():
    """The example of RFC 1071 section 3: the sum is ddf2."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF
    assert checksum(b"\x01") == checksum(b"\x01\x00")
    assert checksum(b"") == 0xFFFF


def test_checksum_update_of_rfc_1624():
    """The example of RFC 1624 section 4, where the older equation gave FFFF."""
    assert checksum_update(0xDD2F, 0x5555, 0x3285) == 0x0000


@given(st.binary(min_size=4, max_size=60).map(lambda b: b[: len(b) & ~1]), st.integers(0, 65535), st.data())
def test_checksum_update_is_checksum(data, word, draw):
    at = draw.draw(st.integers(0, len(data) // 2 - 1)) * 2
    changed = data[:at] + struct.pack("!H", word) + data[at + 2 :]
    updated = checksum_update(checksum(data), int.from_bytes(data[at : at + 2], "big"), word)
    # 0 and FFFF are one number: all-zero data alone has the other form
    assert updated % 0xFFFF == checksum(changed) % 0xFFFF


@pytest.mark.parametrize("version", [4, 6])
def test_parse(version):
    packet = parse_packet(udp(b"abc", version, tos=0xB9) + b"behind")
    assert packet.data == udp(b"abc", version, tos=0xB9)
    assert (packet.version, packet.tos, packet.protocol, packet.ports) == (version, 0xB9, 17, (1000, 2000))
    assert packet.fragment is Fragment.NONE
    assert packet.dont_fragment == (version == 6)


@pytest.mark.parametrize("version", [4, 6])
def test_every_truncation_is_an_error(version):
    packet = udp(b"abc", version)
    for length in range(len(packet)):
        with pytest.raises(ParseError):
            parse_packet(packet[:length])


def test_ports():
    assert parse_packet(tcp_syn()).ports == (1000, 80)
    assert parse_packet(ip(1, b"\x08\x01")).ports == (0x0801, 0x0801)
    assert parse_packet(ip(135, bytes((59, 0, 5, 0)), 6)).ports == (0x0500, 0x0500)
    assert parse_packet(ip(47, b"")).ports is None
    for protocol, needed in ((6, 4), (17, 4), (132, 4), (136, 4), (33, 4), (1, 2), (58, 2), (135, 3)):
        parse_packet(ip(protocol, bytes(needed)))
        with pytest.raises(ParseError):
            parse_packet(ip(protocol, bytes(needed - 1)))


def test_ipv4_fragments():
    whole = udp(bytes(64))
    first = parse_packet(ipv4_fragment(whole, 0, True, whole[20:44]))
    assert (first.fragment, first.fragment_id, first.ports) == (Fragment.FIRST, 7, (1000, 2000))
    later = parse_packet(ipv4_fragment(whole, 24, False, whole[44:]))
    assert (later.fragment, later.fragment_offset, later.ports) == (Fragment.LATER, 24, None)
    parse_packet(ipv4_fragment(whole, 65528, False, bytes(7)))
    with pytest.raises(ParseError):
        parse_packet(ipv4_fragment(whole, 65528, False, bytes(8)))


def test_ipv6_chain():
    segment = udp(b"", 6)[40:]
    hop = bytes((60, 0, 1, 4, 0, 0, 0, 0))
    destination = bytes((51, 1)) + bytes(14)
    ah = bytes((17, 4)) + bytes(22)
    packet = parse_packet(ip(0, hop + destination + ah + segment, 6))
    assert (packet.protocol, packet.l4_offset, packet.ports) == (17, 40 + 8 + 16 + 24, (1000, 2000))
    assert parse_packet(ip(59, b"", 6)).protocol == 59
    with pytest.raises(ParseError):
        parse_packet(ip(0, hop[:7], 6))
    with pytest.raises(ParseError):
        parse_packet(ip(0, bytes((17, 9)) + bytes(14), 6))
    later = parse_packet(ipv6_fragment(64, True, b"\xff", protocol=60))
    assert (later.fragment, later.protocol, later.fragment_offset) == (Fragment.LATER, 60, 64)
    assert parse_packet(ipv6_fragment(0, False, segment)).fragment is Fragment.NONE


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x46", b"\x60"]))
def test_random_octets(data, head):
    data = head + data
    try:
        packet = parse_packet(data)
    except ParseError:
        return
    assert data.startswith(packet.data)
    assert packet.l4_offset <= len(packet.data)
    assert parse_packet(packet.data) == packet


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tos", [0, 1, 0x80, 0xFF])
def test_set_tos(version, tos):
    changed = set_tos(udp(version=version, tos=0x2E), tos)
    assert changed == udp(version=version, tos=tos)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ports", [None, (4500, 4501)])
@pytest.mark.parametrize("payload", [b"payload!", b"odd", bytes(1400)])
def test_outer_round_trip(version, ports, payload):
    packet = outer(version, ports, payload)
    framed = emit_outer(packet)
    assert parse_outer(framed) == packet
    assert parse_packet(framed).protocol == (50 if ports is None else 17)
    assert framed[8 if version == 4 else 7] == 64


def test_udp_checksum():
    """RFC 3948 section 2.1: zero over IPv4. RFC 8200 section 8.1: never zero over IPv6; RFC 6935: taken if it is."""
    assert emit_outer(outer(4))[26:28] == b"\0\0"
    framed = emit_outer(outer(6))
    assert framed[46:48] != b"\0\0"
    assert parse_outer(framed[:46] + b"\0\0" + framed[48:]) == outer(6)
    with pytest.raises(ParseError):
        parse_outer(framed[:-1] + b"?")


@pytest.mark.parametrize("place", range(20))
def test_outer_ipv4_header_is_checked(place):
    framed = emit_outer(outer())
    with pytest.raises(ParseError):
        parse_outer(framed[:place] + bytes([framed[place] ^ 1]) + framed[place + 1 :])


def test_outer_that_is_none():
    with pytest.raises(ParseError, match="neither"):
        parse_outer(tcp_syn())
    whole = emit_outer(outer(payload=bytes(64)))
    with pytest.raises(ParseError, match="fragment"):
        parse_outer(ipv4_fragment(whole, 0, True, whole[20:60]))
    for length in (0, 7, 17, 65535):
        broken = emit_outer(outer())
        with pytest.raises(ParseError):
            parse_outer(broken[:24] + struct.pack("!H", length) + broken[26:])
    with pytest.raises(ParseError):
        parse_outer(ip(17, bytes(7)))


@pytest.mark.parametrize("ports", [None, (1, 2)])
@pytest.mark.parametrize("version", [4, 6])
def test_outer_that_does_not_fit(version, ports):
    room = 65535 - (20 if version == 4 else 0) - (8 if ports else 0)
    assert len(emit_outer(outer(version, ports, bytes(room)))) == 65535 + (40 if version == 6 else 0)
    with pytest.raises(ValueError, match="fit"):
        emit_outer(outer(version, ports, bytes(room + 1)))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("encap", [None, (4500, 61000)])
@pytest.mark.parametrize("df", [True, False])
def test_framing(version, encap, df):
    sa = params(Direction.OUT, outer=version, encap=encap)
    datagram = struct.pack("!II", sa.spi, 0x12345678) + bytes(40)
    framed = outer_packet(Sealed(datagram, 1, 0xB9, df), sa)
    assert open_outer(framed) == (datagram, 0xB9, (sa.local, 4500 if encap else 0))
    if version == 4:
        assert framed[4:8] == (b"\0\0\x40\0" if df else b"\x56\x78\0\0")
        assert (framed[12:16], framed[16:20]) == (sa.local.packed, sa.remote.packed)
