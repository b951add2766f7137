"""Fields of inner headers that the tunnel rewrites: ECN and DSCP, MSS, checksums behind NAT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Raw

from ipsec._probe import probe_clamp_mss, probe_ecn_decapsulate, probe_outer_tos, probe_transport_checksum
from tests.fast.frames import V6, checksums_right, fold, ip_layer, payload, tcp_packet, udp_packet

NOT_ECT, ECT1, ECT0, CE = range(4)

#: RFC 6040 figure 4: rows are the inner field, columns the outer one in the order Not-ECT, ECT(0), ECT(1), CE
RFC_6040_FIGURE_4 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


def with_tos(version: int, tos: int, size: int = 9) -> bytes:
    return udp_packet(version, size, ip={"tos": tos} if version == 4 else {"tc": tos, "fl": 0xABCDE})


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", range(256))
def test_ecn_and_dscp_of_all_inner_headers(version: int, inner: int) -> None:
    packet = with_tos(version, inner)
    for outer in (*range(4), 0xB8, 0xB9, 0xBA, 0xBB, 0xFF):
        ecn = RFC_6040_FIGURE_4[inner & 3][outer & 3]
        for dscp, copied in ((inner, False), (outer, True)):
            expected = None if ecn is None else with_tos(version, dscp & 0xFC | ecn)
            assert probe_ecn_decapsulate(packet, outer, True, copied) == expected
            kept = with_tos(version, dscp & 0xFC | inner & 3)
            assert probe_ecn_decapsulate(packet, outer, False, copied) == kept


@given(tos=st.integers(0, 255), outer=st.integers(0, 3), ip_id=st.integers(0, 65535), size=st.integers(0, 1500))
def test_the_ipv4_checksum_stays_right(tos: int, outer: int, ip_id: int, size: int) -> None:
    packet = udp_packet(4, size, ip={"tos": tos, "id": ip_id})
    after = probe_ecn_decapsulate(packet, outer)
    assert after is None or fold(after[:20]) == 0xFFFF


def test_a_wrong_ipv4_checksum_stays_wrong() -> None:
    packet = udp_packet(4, 10, ip={"tos": ECT0, "chksum": 0x1234})
    after = probe_ecn_decapsulate(packet, CE)
    assert after is not None
    assert fold(after[:20]) == fold(packet[:20]) != 0xFFFF


def test_outer_tos() -> None:
    for tos in range(256):
        assert probe_outer_tos(tos, True, True) == tos
        assert probe_outer_tos(tos, True, False) == tos & 0xFC
        assert probe_outer_tos(tos, False, True) == tos & 3
        assert probe_outer_tos(tos, False, False) == 0


def syn(version: int, options: list[tuple[str, object]], flags: str = "S", size: int = 0) -> bytes:
    return tcp_packet(version, size, flags=flags, options=options)


@given(
    version=st.sampled_from([4, 6]),
    before=st.integers(0, 5),
    mss=st.integers(0, 65535),
    limit=st.integers(0, 65535),
    flags=st.sampled_from(["S", "SA", "SEC"]),
    size=st.integers(0, 9),
    seq=st.integers(0, 2**32 - 1),
)
def test_mss_is_lowered_at_any_offset(
    version: int, before: int, mss: int, limit: int, flags: str, size: int, seq: int
) -> None:
    def packet(value: int) -> bytes:
        options = [("NOP", None)] * before + [("MSS", value), ("WScale", 7)]
        return tcp_packet(version, size, flags=flags, options=options, seq=seq)

    after = probe_clamp_mss(packet(mss), limit)
    expected = packet(min(mss, limit))
    at = 36 if version == 4 else 56
    assert after[:at] + after[at + 2 :] == expected[:at] + expected[at + 2 :]
    assert checksums_right(after)


def test_only_syn_segments_are_clamped() -> None:
    options = [("MSS", 1460)]
    assert probe_clamp_mss(syn(4, options), 1300) == syn(4, [("MSS", 1300)])
    for flags in ("A", "FA", "R", "PA"):
        assert probe_clamp_mss(syn(4, options, flags), 1300) == syn(4, options, flags)
    assert probe_clamp_mss(syn(4, [("WScale", 7)]), 1300) == syn(4, [("WScale", 7)])
    udp = udp_packet(4, 40)
    assert probe_clamp_mss(udp, 0) == udp


def test_mss_behind_extension_headers_and_in_fragments() -> None:
    def extended(mss: int) -> bytes:
        return bytes(ip_layer(6) / IPv6ExtHdrDestOpt() / TCP(flags="S", options=[("MSS", mss)]))

    assert probe_clamp_mss(extended(1440), 1300) == extended(1300)
    first, later = (
        bytes(ip_layer(4, flags="MF", frag=frag, proto=6) / Raw(syn(4, [("MSS", 1460)])[20:])) for frag in (0, 1)
    )
    assert probe_clamp_mss(first, 1300)[42:44] == (1300).to_bytes(2, "big")
    assert probe_clamp_mss(later, 1300) == later


@pytest.mark.parametrize(
    "options",
    [
        b"\x02\x00\x05\xb4",  # length 0
        b"\x02\x01\x05\xb4",  # length 1
        b"\x02\x03\x05\xb4",  # too short to be an MSS
        b"\x02\x05\x05\xb4",  # beyond the header
        b"\x00\x02\x04\x05\xb4\x00\x00\x00",  # behind the end
        b"\x01\x01\x01\x02",  # no length
        b"\x03\xff\x02\x04\x05\xb4\x00\x00",  # another option beyond the header
    ],
)
def test_options_that_lie_are_left_alone(options: bytes) -> None:
    head = TCP(flags="S", dataofs=5 + len(options) // 4)
    packet = bytes(ip_layer(4) / head / Raw(options + b"data"))
    assert probe_clamp_mss(packet, 536) == packet


def test_data_offset_beyond_the_packet() -> None:
    packet = bytes(ip_layer(4) / TCP(flags="S", dataofs=15) / Raw(b"\x02\x04\x05\xb4"))
    assert probe_clamp_mss(packet, 536) == packet
    short = bytes(ip_layer(4, proto=6) / Raw(bytes(13) + b"\x02" + bytes(5)))
    assert probe_clamp_mss(short, 536) == short


@given(st.binary(max_size=40), st.integers(0, 15), st.integers(0, 65535))
def test_random_options_keep_a_right_checksum_right(options: bytes, offset: int, limit: int) -> None:
    packet = bytes(ip_layer(4) / TCP(flags="S", dataofs=offset) / Raw(options))
    after = probe_clamp_mss(packet, limit)
    assert len(after) == len(packet)
    assert checksums_right(after)


@pytest.mark.parametrize("make", [tcp_packet, udp_packet])
@pytest.mark.parametrize("size", [0, 1, 1399])
def test_checksum_after_nat(make: Callable[..., bytes], size: int) -> None:
    for version, there in ((4, "203.0.113.99"), (6, "2001:db8:9::9")):
        before = make(version, size)
        wanted = make(version, size, ip={"src": there})
        translated = wanted[:40] + before[40:] if version == 6 else wanted[:20] + before[20:]
        assert not checksums_right(translated)
        assert probe_transport_checksum(translated) == wanted
        assert probe_transport_checksum(before) == before


def test_checksum_after_nat_of_what_has_none() -> None:
    for packet in (udp_packet(4, chksum=0), bytes(ip_layer(4) / ICMP()), bytes(ip_layer(4, proto=47) / Raw(b"gre"))):
        assert probe_transport_checksum(packet) == packet


def test_checksum_after_nat_uses_the_udp_length() -> None:
    packet = udp_packet(4, 40)
    longer = IP(packet)
    del longer.chksum
    longer.len = None
    padded = bytes(longer / Raw(b"tail"))
    assert probe_transport_checksum(padded) == padded


@pytest.mark.parametrize(
    "packet",
    [
        udp_packet(4, 10, len=7),
        udp_packet(4, 10, len=19),
        bytes(ip_layer(4, proto=17) / Raw(bytes(7))),
        bytes(ip_layer(4, proto=6) / Raw(bytes(19))),
        bytes(ip_layer(4, flags="MF", proto=6) / Raw(bytes(40))),
        bytes(ip_layer(4, frag=2, proto=6) / Raw(bytes(40))),
        bytes(IPv6(src=V6[0], dst=V6[1], nh=17) / Raw(payload(6))),
    ],
)
def test_checksum_after_nat_of_lying_lengths(packet: bytes) -> None:
    assert probe_transport_checksum(packet) is None
