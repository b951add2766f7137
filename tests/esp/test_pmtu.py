"""MTU, ICMP to the inner sender, fragments before protection, MSS (RFC 4301 section 8)."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from ipsec.crypto.suites import all_esp_suites
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Outbound
from ipsec.esp.framing import outer_packet
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.sa import Direction, Mode
from ipsec.wire.ip import checksum, parse_packet, pseudo_header_sum
from tests.esp.support import (
    ADDRESSES,
    NOW,
    SUITE_NAMES,
    gateway,
    ip,
    ipv4_fragment,
    opener,
    params,
    tcp_syn,
    transport_packet,
    udp,
)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("encap", [None, (4500, 4500)])
@pytest.mark.parametrize("outer", [4, 6])
def test_inner_mtu_is_exact(outer, encap, mode):
    """The largest inner packet fills the path as far as blocks allow; one octet more does not fit."""
    for suite in all_esp_suites():
        for path_mtu in (1280, 1399, 1400, 1499, 1500, 9000):
            mtu = inner_mtu(params(Direction.OUT, suite, outer, encap=encap, path_mtu=path_mtu, mode=mode))
            payload = mtu - (0 if mode is Mode.TUNNEL else 20 if outer == 4 else 40)
            overhead = (20 if outer == 4 else 40) + (8 if encap else 0) + 8 + suite.iv_len + suite.icv_len

            def size(n, suite=suite, overhead=overhead):
                return overhead + (n + 2 + suite.block - 1) // suite.block * suite.block

            assert size(payload) <= path_mtu < size(payload + 1)


@pytest.mark.parametrize("name", SUITE_NAMES)
@pytest.mark.parametrize("outer", [4, 6])
def test_full_packets_fit_the_path(engine_class, name, outer):
    sa = params(Direction.OUT, name, outer, encap=(4500, 4500))
    engine, _ = gateway(engine_class, name, outer, encap=(4500, 4500))
    sealed = engine.outbound(udp(b"x" * (inner_mtu(sa) - 28), df=True), NOW).sealed[0]
    packet = outer_packet(sealed, sa)
    assert 1500 - sa.suite.block < len(packet) <= 1500


def icmp4(reply):
    header = parse_packet(reply)
    body = reply[20:]
    assert checksum(reply[:20]) == 0
    assert checksum(body) == 0
    assert (header.protocol, header.fragment_offset, reply[8]) == (1, 0, 64)
    return header, struct.unpack("!BBxxHH", body[:8]), body[8:]


def test_too_big_ipv4(engine_class):
    """RFC 1191 section 4: destination unreachable, fragmentation needed, with the MTU of the next hop."""
    engine, sa = gateway(engine_class)
    mtu = inner_mtu(params(Direction.OUT))
    packet = udp(b"x" * (mtu - 28 + 1), df=True)
    result = engine.outbound(packet, NOW)
    assert result.drop is DropReason.OUT_TOO_BIG
    assert (result.sealed, result.clear) == ((), None)
    header, fields, quoted = icmp4(result.reply)
    assert fields == (3, 4, 0, mtu)
    assert (str(header.source), str(header.destination)) == ("10.2.0.9", "10.1.0.5")
    assert len(result.reply) == 576
    assert packet.startswith(quoted)
    assert engine.query_sa(sa).drops == {DropReason.OUT_TOO_BIG: 1}
    assert engine.query_sa(sa).seq == 0
    assert engine.outbound(packet[:2] + struct.pack("!H", mtu) + packet[4:-1], NOW).drop is DropReason.NONE


@pytest.mark.parametrize("inner", [4, 6])
def test_icmp_source(engine_class, inner):
    options = {"icmp_source4": ip_address("10.9.9.9").packed, "icmp_source6": ip_address("fd09::9").packed}
    engine, _ = gateway(engine_class, options=options)
    reply = engine.outbound(udp(bytes(1500), inner, df=True), NOW).reply
    assert str(parse_packet(reply).source) == ("10.9.9.9" if inner == 4 else "fd09::9")


@pytest.mark.parametrize("size", [1447, 1500, 9000])
def test_too_big_ipv6(engine_class, size):
    """RFC 4443 section 3.2; the reply keeps to 1280 octets."""
    engine, _ = gateway(engine_class)
    mtu = inner_mtu(params(Direction.OUT))
    packet = udp(bytes(size - 48), 6)
    reply = engine.outbound(packet, NOW).reply
    header = parse_packet(reply)
    assert struct.unpack("!BBxxI", reply[40:48]) == (2, 0, mtu)
    assert checksum(reply[40:], pseudo_header_sum(header.source, header.destination, 58, len(reply) - 40)) == 0
    assert (str(header.source), str(header.destination)) == ("fd02::9", "fd01::5")
    assert len(reply) == 1280
    assert packet.startswith(reply[48:])


def test_ipv6_is_never_told_less_than_1280(engine_class):
    """RFC 8200 section 5. Up to there packets go whole, and the outer packet may be fragmented (RFC 2473 7.1)."""
    engine, _ = gateway(engine_class, path_mtu=1000)
    for size in (1280, 1000):
        packet = udp(bytes(size - 48), 6)
        (sealed,) = engine.outbound(packet, NOW).sealed
        assert sealed.df is False
        assert opener(engine_class).inbound(sealed.datagram, NOW).packet == packet
    reply = engine.outbound(udp(bytes(1281 - 48), 6), NOW).reply
    assert struct.unpack("!I", reply[44:48]) == (1280,)
    assert engine.outbound(udp(bytes(100), 6), NOW).sealed[0].df is True


@pytest.mark.parametrize(
    "packet",
    [
        ip(1, b"\x03\x04" + bytes(1500), df=True),
        ip(1, b"\x0b\0" + bytes(1500), df=True),
        udp(bytes(1500), source="0.0.0.0", df=True),
        udp(bytes(1500), source="127.0.0.1", df=True),
        udp(bytes(1500), source="224.0.0.1", df=True),
        udp(bytes(1500), destination="224.0.0.5", df=True),
        udp(bytes(1500), destination="255.255.255.255", df=True),
        ip(58, b"\x01\0" + bytes(1500), 6),
        ip(58, b"\x89\0" + bytes(1500), 6),
        udp(bytes(1500), 6, source="::"),
        udp(bytes(1500), 6, source="ff02::1"),
        udp(bytes(1500), 6, destination="ff02::1"),
    ],
)
def test_what_gets_no_icmp(engine_class, packet):
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4: errors must not cause errors."""
    result = gateway(engine_class)[0].outbound(packet, NOW)
    assert (result.drop, result.reply) == (DropReason.OUT_TOO_BIG, None)


def test_icmp_queries_and_first_fragments_get_icmp(engine_class):
    engine, _ = gateway(engine_class)
    assert engine.outbound(ip(1, b"\x08\0" + bytes(1500), df=True), NOW).reply
    assert engine.outbound(ip(58, b"\x80\0" + bytes(1500), 6), NOW).reply
    packet = udp(bytes(1500), df=True)
    first = packet[:6] + b"\x60\0" + packet[8:]
    later = packet[:6] + b"\x60\x10" + packet[8:]
    assert engine.outbound(first, NOW).reply
    assert engine.outbound(later, NOW) == Outbound(DropReason.OUT_TOO_BIG)


def reassemble(parts):
    """RFC 791 section 3.2, for fragments in any order; their headers must agree."""
    payload = b""
    for part in sorted(parts, key=lambda p: parse_packet(p).fragment_offset):
        parsed = parse_packet(part)
        assert checksum(part[: parsed.l4_offset]) == 0
        assert parsed.fragment_offset == len(payload)
        payload += part[parsed.l4_offset :]
    return payload


@pytest.mark.parametrize("size", [1447, 1500, 2000, 2868, 9000, 60000])
def test_fragments_before_protection(engine_class, size):
    engine, sa = gateway(engine_class)
    receiver = opener(engine_class)
    mtu = inner_mtu(params(Direction.OUT))
    packet = udp(bytes(i & 0xFF for i in range(size - 28)))
    sealed = engine.outbound(packet, NOW).sealed
    parts = [receiver.inbound(one.datagram, NOW).packet for one in sealed]
    assert all(len(part) <= mtu for part in parts)
    assert reassemble(parts) == packet[20:]
    assert [bool(part[6] & 0x20) for part in parts] == [True] * (len(parts) - 1) + [False]
    for part in parts:
        # all but length, offset and checksum
        for kept in (slice(0, 2), slice(4, 6), slice(8, 10), slice(12, 20)):
            assert part[kept] == packet[kept]
    assert len(parts) == -(-(size - 20) // ((mtu - 20) // 8 * 8))
    assert engine.query_sa(sa).packets == len(parts)


def test_fragments_of_a_fragment(engine_class):
    engine, _ = gateway(engine_class)
    receiver = opener(engine_class)
    whole = udp(bytes(i & 0xFF for i in range(6000)))
    middle = ipv4_fragment(whole, 1480, True, whole[1500:4460])
    assert engine.outbound(ipv4_fragment(whole, 0, True, whole[20:1420]), NOW).drop is DropReason.NONE
    sealed = engine.outbound(middle, NOW).sealed
    parts = [parse_packet(receiver.inbound(one.datagram, NOW).packet) for one in sealed]
    # the first fragment took number 1, which the receiver did not see
    assert b"".join(part.data[20:] for part in parts) == middle[20:]
    assert [part.fragment_offset for part in parts] == [1480, 1480 + 1424, 1480 + 2 * 1424]
    assert all(part.data[6] & 0x20 for part in parts)


def test_fragments_copy_options_by_their_flag(engine_class):
    """RFC 791 section 3.1: only options with the copied flag are in later fragments."""
    engine, _ = gateway(engine_class)
    receiver = opener(engine_class)
    packet = udp(bytes(2000))
    options = b"\x07\x04\x04\x00" + b"\x01" + b"\x94\x04\x00\x00" + b"\x00" * 3
    head = (
        b"\x48" + packet[1:2] + struct.pack("!H", len(packet) + 12) + packet[4:10] + b"\0\0" + packet[12:20] + options
    )
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    sealed = engine.outbound(head + packet[20:], NOW).sealed
    first, second = (receiver.inbound(one.datagram, NOW).packet for one in sealed)
    assert first[20:32] == options
    assert second[0] == 0x46
    assert second[20:24] == b"\x94\x04\x00\x00"
    assert reassemble([first, second]) == packet[20:]
    broken = head[:20] + b"\x94\x00" + head[22:] + packet[20:]
    assert engine.outbound(broken, NOW) == Outbound(DropReason.OUT_TOO_BIG)


def test_transport_mode_is_fragmented_after_esp(engine_class):
    """RFC 4303 section 3.3.4: the ESP packet is made whole, and its outer packet may be fragmented."""
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    packet = transport_packet(4, bytes(3000))
    (sealed,) = engine.outbound(packet, NOW).sealed
    assert sealed.df is False
    assert opener(engine_class, mode=Mode.TRANSPORT).inbound(sealed.datagram, NOW).packet[20:] == packet[20:]
    result = engine.outbound(transport_packet(4, bytes(3000), df=True), NOW)
    assert result.drop is DropReason.OUT_TOO_BIG
    assert icmp4(result.reply)[1][3] == inner_mtu(params(Direction.OUT, mode=Mode.TRANSPORT))


def mss_of(packet):
    at = parse_packet(packet).l4_offset
    options = packet[at + 20 : at + (packet[at + 12] >> 4) * 4]
    place = options.index(b"\x02\x04")
    return int.from_bytes(options[place + 2 : place + 4], "big")


def tcp_checksum_good(packet):
    parsed = parse_packet(packet)
    segment = packet[parsed.l4_offset :]
    return checksum(segment, pseudo_header_sum(parsed.source, parsed.destination, 6, len(segment))) == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("prefix", [b"", b"\x01", b"\x01\x01", b"\x04\x02\x01", b"\x08\x0a" + bytes(8)])
@pytest.mark.parametrize("flags", [0x02, 0x12])
def test_mss_is_clamped_both_ways(engine_class, version, prefix, flags):
    limit = inner_mtu(params(Direction.OUT)) - (40 if version == 4 else 60)
    for mss in (limit - 1, limit, limit + 1, 1460, 65535):
        packet = tcp_syn(version, prefix + b"\x02\x04" + struct.pack("!H", mss), flags)
        engine, _ = gateway(engine_class)
        datagram = engine.outbound(packet, NOW).sealed[0].datagram
        sent = opener(engine_class).inbound(datagram, NOW).packet
        assert mss_of(sent) == min(mss, limit)
        assert tcp_checksum_good(sent)
        plain = gateway(engine_class, options={"mss_clamp": False})[0].outbound(packet, NOW).sealed[0].datagram
        receiver = engine_class()
        receiver.add_sa(params(Direction.IN))
        assert receiver.inbound(plain, NOW).packet == sent
        assert opener(engine_class).inbound(plain, NOW).packet == packet


@pytest.mark.parametrize(
    "packet",
    [
        tcp_syn(flags=0x10),
        tcp_syn(options=b""),
        tcp_syn(options=b"\x02\x03\x05\xb4"),
        tcp_syn(options=b"\x02\x04"),
        tcp_syn(options=b"\x05\x00\x02\x04\xff\xff"),
        tcp_syn(options=b"\x05\xff\x02\x04\xff\xff"),
        tcp_syn(options=b"\x00\x02\x04\xff\xff"),
        tcp_syn()[:32] + b"\xf0" + tcp_syn()[33:],
        tcp_syn()[:32] + b"\x40" + tcp_syn()[33:],
        ip(6, tcp_syn()[20:34]),
        ip(17, tcp_syn()[20:]),
    ],
)
def test_what_is_not_clamped(engine_class, packet):
    engine, _ = gateway(engine_class)
    assert opener(engine_class).inbound(engine.outbound(packet, NOW).sealed[0].datagram, NOW).packet == packet


def test_later_fragments_are_not_clamped(engine_class):
    packet = tcp_syn()
    later = ipv4_fragment(packet, 64, False, packet[20:])
    engine, _ = gateway(engine_class)
    assert opener(engine_class).inbound(engine.outbound(later, NOW).sealed[0].datagram, NOW).packet == later


def test_mtu_follows_the_path(engine_class):
    engine, sa = gateway(engine_class)
    packet = udp(bytes(1380), df=True)
    assert engine.outbound(packet, NOW).drop is DropReason.NONE
    local, remote = (ip_address(text) for text in ADDRESSES[4])
    engine.update_sa(sa, local=local, remote=remote, encap=None, path_mtu=1300)
    assert engine.outbound(packet, NOW).drop is DropReason.OUT_TOO_BIG
    engine.update_sa(sa, local=local, remote=remote, encap=None, path_mtu=1600)
    assert engine.outbound(packet, NOW).drop is DropReason.NONE
