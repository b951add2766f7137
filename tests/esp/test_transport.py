"""Transport mode (RFC 4303 section 3.1.1) and checksums behind NAT (RFC 3948 section 3.1.2)."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Outbound
from ipsec.esp.sa import Direction, Mode
from ipsec.wire.ip import checksum, parse_packet, pseudo_header_sum
from tests.esp.support import (
    ADDRESSES,
    GCM,
    NOW,
    Tunnel,
    forge,
    gateway,
    ip,
    ipv4_fragment,
    opener,
    params,
    trailer,
    transport_packet,
    udp,
)

LOCAL, REMOTE = (ip_address(text) for text in ADDRESSES[4])


@pytest.mark.parametrize("outer", [4, 6])
def test_only_between_the_two_hosts(engine_class, outer):
    source, destination = ADDRESSES[outer]
    other = "192.0.2.99" if outer == 4 else "2001:db8::99"
    tunnel = Tunnel(engine_class, outer=outer, mode=Mode.TRANSPORT)
    engine, _ = gateway(engine_class, outer=outer, mode=Mode.TRANSPORT)
    for packet in (
        udp(version=outer, source=other, destination=destination),
        udp(version=outer, source=source, destination=other),
        udp(version=outer, source=destination, destination=source),
        udp(version=10 - outer),
    ):
        assert tunnel.seal(packet) is DropReason.OUT_STATE_MODE_ERROR
        assert engine.outbound(packet, NOW).drop is DropReason.OUT_STATE_MODE_ERROR
    assert tunnel.seal(transport_packet(outer)).datagram


def test_no_fragments(engine_class):
    packet = transport_packet(4, bytes(64))
    tunnel = Tunnel(engine_class, mode=Mode.TRANSPORT)
    for fragment in (ipv4_fragment(packet, 0, True, packet[20:44]), ipv4_fragment(packet, 24, False, packet[44:])):
        assert tunnel.seal(fragment) is DropReason.OUT_STATE_MODE_ERROR
    addresses = tuple(ip_address(text) for text in ADDRESSES[6])
    tunnel = Tunnel(engine_class, outer=6, mode=Mode.TRANSPORT)
    fragment = ip(44, struct.pack("!BBHI", 17, 0, 1, 7) + bytes(64), 6, addresses=addresses)
    assert tunnel.seal(fragment) is DropReason.OUT_STATE_MODE_ERROR


def fragments(packet, size=1000):
    """``packet`` as the IP layer of its host sends it over a link that carries ``size`` octets of it at once."""
    if packet[0] >> 4 == 4:
        body = packet[20:]
        parts = [(at, at + size < len(body), body[at : at + size]) for at in range(0, len(body), size)]
        return [ipv4_fragment(packet, *part) for part in parts]
    body = packet[40:]
    addresses = ip_address(packet[8:24]), ip_address(packet[24:40])
    return [
        ip(44, struct.pack("!BBHI", packet[6], 0, at | (at + size < len(body)), 7) + body[at : at + size], 6,
           addresses=addresses)
        for at in range(0, len(body), size)
    ]  # fmt: skip


def without_number(packet):
    """What transport mode keeps of a packet: the receiver's IPv4 header has no identification."""
    return packet[20:] if packet[0] >> 4 == 4 else packet


KEPT = Outbound(DropReason.NONE, joined=True)
LOST = Outbound(DropReason.OUT_FRAGMENT_ERROR)


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("size", [1104, 4000, 65400])
def test_fragments_of_the_host_go_as_the_datagram_they_are(engine_class, outer, size):
    """RFC 4303 section 3.3.4: below the IP layer, which has fragmented it already, a datagram is put together first."""
    engine, sa = gateway(engine_class, outer=outer, mode=Mode.TRANSPORT)
    packet = transport_packet(outer, bytes(size), identification=7)
    *before, last = fragments(packet)
    assert before
    assert [engine.outbound(part, NOW) for part in before] == [KEPT] * len(before)
    (sealed,) = engine.outbound(last, NOW).sealed
    assert sealed.df is False
    receiver = opener(engine_class, outer=outer, mode=Mode.TRANSPORT)
    assert without_number(receiver.inbound(sealed.datagram, NOW).packet) == without_number(packet)
    assert engine.query_sa(sa).packets == 1
    assert engine.drops() == {}


def test_fragments_of_two_datagrams_may_alternate(engine_class):
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    receiver = opener(engine_class, mode=Mode.TRANSPORT)
    packets = [transport_packet(4, bytes([number]) * 2500, identification=number) for number in (1, 2)]
    results = [engine.outbound(part, NOW) for pair in zip(*map(fragments, packets), strict=True) for part in pair]
    assert results[:-2] == [KEPT] * 4
    opened = [receiver.inbound(result.sealed[0].datagram, NOW).packet[20:] for result in results[-2:]]
    assert opened == [packet[20:] for packet in packets]


@pytest.mark.parametrize("outer", [4, 6])
def test_fragments_that_do_not_follow_each_other_are_given_up(engine_class, outer):
    engine, sa = gateway(engine_class, outer=outer, mode=Mode.TRANSPORT)
    first, second, third = fragments(transport_packet(outer, bytes(2500), identification=7))
    assert engine.outbound(second, NOW) == LOST
    assert [engine.outbound(part, NOW) for part in (first, third)] == [KEPT, LOST]
    assert [engine.outbound(part, NOW) for part in (second, third)] == [LOST, LOST]
    assert [engine.outbound(part, NOW) for part in (first, second, first, second)] == [KEPT] * 4
    assert engine.outbound(third, NOW).sealed
    assert engine.drops() == engine.query_sa(sa).drops == {DropReason.OUT_FRAGMENT_ERROR: 7}


def test_fragments_wait_for_30_s(engine_class):
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    first, second = fragments(transport_packet(4, bytes(1500), identification=7))
    assert engine.outbound(first, NOW) == KEPT
    assert engine.outbound(second, NOW + 31) == LOST
    assert engine.outbound(first, NOW) == KEPT
    assert engine.outbound(second, NOW + 29).sealed


def test_datagrams_that_wait_are_bounded(engine_class):
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    pairs = [fragments(transport_packet(4, bytes(1500), identification=number)) for number in range(1, 10)]
    assert [engine.outbound(first, NOW) for first, _ in pairs] == [KEPT] * 9
    assert engine.drops() == {DropReason.OUT_FRAGMENT_ERROR: 1}
    assert engine.outbound(pairs[0][1], NOW) == LOST
    assert all(engine.outbound(last, NOW).sealed for _, last in pairs[1:])


def test_fragments_for_others_are_not_collected(engine_class):
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    part = fragments(transport_packet(4, bytes(1500)))[0]
    other = part[:12] + bytes((192, 0, 2, 99)) + part[16:]
    assert engine.outbound(other, NOW).drop is DropReason.OUT_STATE_MODE_ERROR


def test_a_datagram_cannot_outgrow_the_largest(engine_class):
    """Options of the first fragment count, which fragments alone do not show."""
    engine, _ = gateway(engine_class, mode=Mode.TRANSPORT)
    packet = transport_packet(4, bytes(65472), identification=7)
    *before, last = fragments(packet, 21824)
    head = b"\x4f" + before[0][1:2] + struct.pack("!H", len(before[0]) + 40) + before[0][4:20] + b"\x01" * 40
    assert engine.outbound(head + before[0][20:], NOW) == KEPT
    assert [engine.outbound(part, NOW) for part in (*before[1:], last)] == [KEPT] * (len(before) - 1) + [LOST]


def test_options_stay_behind_and_extension_headers_travel(engine_class):
    packet = transport_packet(4)
    head = b"\x46" + packet[1:2] + struct.pack("!H", len(packet) + 4) + packet[4:10] + b"\0\0" + packet[12:20]
    head += b"\x94\x04\0\0"
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    received = Tunnel(engine_class, mode=Mode.TRANSPORT).send(head + packet[20:]).packet
    assert received[0] == 0x45
    assert received[20:] == packet[20:]
    addresses = tuple(ip_address(text) for text in ADDRESSES[6])
    segment = transport_packet(6)[40:]
    packet = ip(60, bytes((17, 0, 1, 4, 0, 0, 0, 0)) + segment, 6, addresses=addresses)
    assert Tunnel(engine_class, outer=6, mode=Mode.TRANSPORT).send(packet).packet == packet


@pytest.mark.parametrize(
    ("suite", "encap"), [("aes128gcm16", (4500, 4500)), ("aes256-sha512", None), ("aes256-sha512", (4500, 4500))]
)
def test_extension_headers_count_towards_the_outer_length(engine_class, suite, encap):
    """What cannot be said in an outer length is refused before it takes a number."""
    sa = params(Direction.OUT, suite, 6, mode=Mode.TRANSPORT, encap=encap)
    addresses = tuple(ip_address(text) for text in ADDRESSES[6])
    engine = engine_class()
    out = engine.add_sa(sa)
    room = 65535 - (8 if encap else 0) - 8 - sa.suite.iv_len - sa.suite.icv_len
    largest = room // sa.suite.block * sa.suite.block - 2
    for length in range(largest - 3, largest + 5):
        packet = ip(60, bytes((59, 0, 1, 4, 0, 0, 0, 0)) + bytes(length - 8), 6, addresses=addresses)
        sealed = engine.encapsulate(out, packet, NOW)
        assert (sealed is DropReason.OUT_TOO_BIG) == (length > largest)
    assert engine.query_sa(out).seq == 4


@pytest.mark.parametrize("outer", [4, 6])
def test_rebuilt_header(engine_class, outer):
    received = Tunnel(engine_class, outer=outer, mode=Mode.TRANSPORT).send(transport_packet(outer), tos=0xB9).packet
    header = parse_packet(received)
    assert (str(header.source), str(header.destination)) == ADDRESSES[outer]
    assert header.tos == 0xB9
    if outer == 4:
        assert checksum(received[:20]) == 0
        assert (received[4:6], received[6:8], received[8]) == (b"\0\0", b"\x40\0", 64)
    else:
        assert received[7] == 64


@pytest.mark.parametrize("protocol", [4, 6, 17, 41, 47, 50, 1])
def test_any_protocol(engine_class, protocol):
    payload = {4: udp(), 41: udp(version=6)}.get(protocol, bytes(40))
    packet = transport_packet(4, payload, protocol, df=True, identification=0)
    assert Tunnel(engine_class, mode=Mode.TRANSPORT).send(packet).packet == packet


def test_payload_too_short_for_its_protocol(engine_class):
    engine = engine_class()
    engine.add_sa(params(Direction.IN, mode=Mode.TRANSPORT))
    assert engine.inbound(forge(GCM, trailer(b"ab", 17)), NOW).drop is DropReason.IN_INNER_HDR_ERROR
    assert engine.inbound(forge(GCM, trailer(b"", 47), 2), NOW).drop is DropReason.NONE


def sums_right(packet):
    parsed = parse_packet(packet)
    segment = packet[parsed.l4_offset :]
    initial = pseudo_header_sum(parsed.source, parsed.destination, parsed.protocol, len(segment))
    return checksum(segment, initial) == 0


def behind_nat(engine_class, encap, outer=4):
    """A receiver for which the sender has another address than the sender thinks."""
    engine = engine_class()
    remote = ip_address("203.0.113.50" if outer == 4 else "2001:db8:99::50")
    engine.add_sa(params(Direction.IN, outer=outer, mode=Mode.TRANSPORT, encap=encap, remote=remote))
    return engine


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_checksums_behind_nat(engine_class, outer, protocol):
    segment = udp(b"odd", outer)[20 if outer == 4 else 40 :] if protocol == 17 else bytes(12) + b"\x50" + bytes(10)
    packet = trailer(segment, protocol)
    received = behind_nat(engine_class, (4500, 4500), outer).inbound(forge(GCM, packet), NOW).packet
    assert sums_right(received)
    plain = behind_nat(engine_class, None, outer).inbound(forge(GCM, packet), NOW).packet
    assert plain[-len(segment) :] == segment
    assert not sums_right(plain)


def test_udp_without_checksum_stays_so(engine_class):
    segment = udp()[20:26] + b"\0\0" + udp()[28:]
    received = behind_nat(engine_class, (4500, 4500)).inbound(forge(GCM, trailer(segment, 17)), NOW).packet
    assert received[20:] == segment


@pytest.mark.parametrize("length", [0, 7, 16, 65535])
def test_udp_length_that_lies_is_left_alone(engine_class, length):
    segment = udp()[20:24] + struct.pack("!H", length) + udp()[26:28] + b"7 chars"
    received = behind_nat(engine_class, (4500, 4500)).inbound(forge(GCM, trailer(segment, 17)), NOW).packet
    assert received[20:] == segment


def test_address_follows_the_peer(engine_class):
    """From the packet after the one that moves the peer, at the latest."""
    tunnel = Tunnel(engine_class, mode=Mode.TRANSPORT, encap=(4500, 4500))
    away = (ip_address("203.0.113.9"), 61001)
    assert tunnel.send(transport_packet(4), source=away).drop is DropReason.NONE
    assert [event.source for event in tunnel.receiver.events()] == [away]
    received = tunnel.send(transport_packet(4), source=away).packet
    assert str(parse_packet(received).source) == "203.0.113.9"
    assert sums_right(received)
