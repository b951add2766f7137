"""ICMP "fragmentation needed" and ICMPv6 "packet too big", read by scapy."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw

from ipsec._probe import probe_too_big
from tests.fast.frames import V4, V6, fold, ip_layer, payload, pseudo_header, tcp_packet, udp_packet


@pytest.mark.parametrize("size", [0, 8, 519, 520, 521, 1400, 60000])
@pytest.mark.parametrize("source", [None, "203.0.113.9"])
def test_fragmentation_needed(size: int, source: str | None) -> None:
    packet = udp_packet(4, size)
    reply = probe_too_big(packet, 1300, ip_address(source).packed if source else None)
    assert reply is not None
    assert len(reply) == min(576, 28 + len(packet))
    seen = IP(reply)
    assert (seen.src, seen.dst, seen.proto, seen.len) == (source or V4[1], V4[0], 1, len(reply))
    assert (seen[ICMP].type, seen[ICMP].code, seen[ICMP].nexthopmtu) == (3, 4, 1300)
    assert reply[24:26] == bytes(2)
    assert reply[28:] == packet[: len(reply) - 28]
    assert fold(reply[:20]) == fold(reply[20:]) == 0xFFFF


@pytest.mark.parametrize("size", [0, 8, 1183, 1184, 1185, 60000])
@pytest.mark.parametrize("source", [None, "2001:db8::9"])
def test_packet_too_big(size: int, source: str | None) -> None:
    packet = udp_packet(6, size)
    reply = probe_too_big(packet, 1400, ip_address(source).packed if source else None)
    assert reply is not None
    assert len(reply) == min(1280, 48 + len(packet))
    seen = IPv6(reply)
    assert (seen.src, seen.dst, seen.nh, seen.plen) == (source or V6[1], V6[0], 58, len(reply) - 40)
    assert seen[ICMPv6PacketTooBig].mtu == 1400
    assert reply[48:] == packet[: len(reply) - 48]
    assert fold(pseudo_header(reply) + reply[40:]) == 0xFFFF


def test_what_the_header_says_of_the_mtu() -> None:
    def mtu_v4(mtu: int) -> int:
        return int.from_bytes((probe_too_big(udp_packet(4), mtu) or b"")[26:28], "big")

    def mtu_v6(mtu: int) -> int:
        return int.from_bytes((probe_too_big(udp_packet(6), mtu) or b"")[44:48], "big")

    assert [mtu_v4(n) for n in (68, 1438, 65535, 70000)] == [68, 1438, 65535, 65535]
    # RFC 8200 section 5: no link is narrower than 1280
    assert [mtu_v6(n) for n in (600, 1280, 1418, 70000)] == [1280, 1280, 1418, 70000]


@pytest.mark.parametrize("kind", range(19))
def test_icmp_errors_are_not_answered(kind: int) -> None:
    packet = bytes(ip_layer(4) / ICMP(type=kind) / Raw(payload(1400)))
    assert (probe_too_big(packet, 1300) is None) == (kind in (3, 4, 5, 11, 12))


def test_icmpv6_errors_are_not_answered() -> None:
    for error in (ICMPv6PacketTooBig(), ICMPv6TimeExceeded(), ICMPv6ND_Redirect()):
        assert probe_too_big(bytes(ip_layer(6) / error / Raw(payload(1400))), 1300) is None
    assert probe_too_big(bytes(ip_layer(6) / ICMPv6EchoRequest(data=payload(1400))), 1300) is not None


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"])
def test_ipv4_sources_that_name_no_single_host(source: str) -> None:
    assert probe_too_big(udp_packet(4, ip={"src": source}), 1300) is None


@pytest.mark.parametrize("destination", ["0.0.0.0", "224.0.0.1", "239.1.1.1", "255.255.255.255"])
def test_ipv4_destinations_that_name_no_single_host(destination: str) -> None:
    assert probe_too_big(udp_packet(4, ip={"dst": destination}), 1300) is None


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1"])
def test_ipv6_sources_that_name_no_single_host(source: str) -> None:
    assert probe_too_big(udp_packet(6, ip={"src": source}), 1300) is None


def test_ipv6_multicast_is_answered_from_our_address() -> None:
    packet = udp_packet(6, ip={"dst": "ff0e::1"})
    assert probe_too_big(packet, 1300) is None
    reply = probe_too_big(packet, 1300, ip_address("2001:db8::9").packed)
    assert reply is not None
    assert IPv6(reply).src == "2001:db8::9"


def test_fragments() -> None:
    later = bytes(ip_layer(4, flags="DF+MF", frag=10, proto=17) / Raw(payload(1400)))
    first = bytes(ip_layer(4, flags="DF+MF", proto=17) / Raw(payload(1400)))
    assert probe_too_big(later, 1300) is None
    assert probe_too_big(first, 1300) is not None
    # RFC 4443 has no such exception, and only the sender can fragment IPv6
    fragment = bytes(ip_layer(6) / IPv6ExtHdrFragment(offset=10, m=1, nh=17) / Raw(payload(1400)))
    assert probe_too_big(fragment, 1300) is not None


def test_options_are_quoted() -> None:
    packet = tcp_packet(4, 1400, ip={"options": [IPOption_Router_Alert()]})
    assert (probe_too_big(packet, 1300) or b"")[28:] == packet[:548]


@given(st.binary(min_size=20, max_size=1500), st.sampled_from([0x45, 0x46, 0x60]), st.integers(0, 2**32 - 1))
def test_random_packets(octets: bytes, first: int, mtu: int) -> None:
    try:
        reply = probe_too_big(bytes([first]) + octets[1:], mtu)
    except ValueError:
        return
    assert reply is None or len(reply) <= (576 if first >> 4 == 4 else 1280)
