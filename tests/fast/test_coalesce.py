"""Decrypted packets joined into superframes. What holds for all of them: cut again, they are the packets they were."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.packet import Raw

from ipsec._probe import probe_coalesce, probe_segment
from tests.fast.frames import (
    Vnet,
    checksums_right,
    header_length,
    ip_layer,
    parse_vnet,
    payload,
    protocol_of,
    superframe_vnet,
    tcp_packet,
    udp_packet,
    with_partial_checksum,
)
from tests.fast.pumps import without_id

ALONE = Vnet().emit()
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (5, 6))]


def groups(packets: list[bytes], **switches: bool) -> list[int]:
    """How many packets each frame was made of; checks every frame on the way."""
    frames = probe_coalesce(packets, **switches)
    assert [packet for _, _, originals in frames for packet in originals] == packets
    for vnet, frame, originals in frames:
        check_frame(vnet, frame, originals)
    return [len(originals) for _, _, originals in frames]


def check_frame(vnet: bytes, frame: bytes, originals: list[bytes]) -> None:
    if len(originals) == 1:
        assert (vnet, frame) == (ALONE, originals[0])
        return
    said = parse_vnet(vnet)
    assert said == superframe_vnet(frame, len(originals[0]) - header_length(originals[0]))
    assert frame == with_partial_checksum(frame)
    assert len(frame) <= 65535
    cut = probe_segment(vnet, frame)
    assert cut is not None
    assert [without_id(packet) for packet in cut] == [without_id(packet) for packet in originals]


def tcp_stream(version: int, sizes: list[int], *, ip: dict[str, object] | None = None, **tcp: object) -> list[bytes]:
    """Segments in order, the last with PSH."""
    packets = []
    seq = int(str(tcp.pop("seq", 1000)))
    for k, size in enumerate(sizes):
        fields = {"id": 100 + k, **(ip or {})} if version == 4 else ip
        flags = "PA" if k + 1 == len(sizes) else "A"
        packets.append(tcp_packet(version, size, ip=fields, seq=seq & 0xFFFFFFFF, **{"flags": flags, **tcp}))
        seq += size
    return packets


@given(
    version=st.sampled_from([4, 6]),
    make=st.sampled_from([tcp_packet, udp_packet]),
    gso_size=st.integers(1, 1500),
    count=st.integers(2, 40),
    short=st.integers(0, 1499),
)
def test_what_was_cut_is_joined_again(
    version: int, make: Callable[..., bytes], gso_size: int, count: int, short: int
) -> None:
    whole = with_partial_checksum(make(version, gso_size * count - short % gso_size))
    vnet = superframe_vnet(whole, gso_size).emit()
    packets = probe_segment(vnet, whole)
    assert packets is not None
    assert probe_coalesce(packets) == [(vnet, whole, packets)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [[], TIMESTAMP, [("NOP", None)] * 40])
def test_tcp_stream(version: int, options: list[object]) -> None:
    assert groups(tcp_stream(version, [1000] * 5 + [3], options=options)) == [6]
    assert groups(tcp_stream(version, [1000] * 3, options=options, seq=2**32 - 1500)) == [3]


def test_push_ends_a_superframe() -> None:
    first, second = tcp_stream(4, [10] * 3, seq=1), tcp_stream(4, [10] * 2, seq=31)
    assert groups(first + second) == [3, 2]
    assert probe_coalesce(first)[0][1][33] == 0x18
    assert probe_coalesce(first[:2])[0][1][33] == 0x10


def test_a_shorter_segment_ends_a_superframe_and_a_longer_one_does_not_fit() -> None:
    assert groups(tcp_stream(4, [10, 10, 9, 9, 9, 10, 10])) == [3, 2, 2]
    assert groups([udp_packet(size=n, ip={"id": 5 + k}) for k, n in enumerate([10, 10, 9, 10, 11])]) == [3, 1, 1]


def test_bare_acks_are_never_joined() -> None:
    assert groups([tcp_packet(size=0, ack=k) for k in range(5)]) == [1] * 5
    data = tcp_stream(4, [10, 10])
    assert groups([data[0], tcp_packet(size=0, seq=1010), data[1]]) == [1, 1, 1]
    assert groups([udp_packet(size=0)] * 3) == [1] * 3


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"seq": 1101}, id="hole"),
        pytest.param({"seq": 1000}, id="again"),
        pytest.param({"seq": 1099}, id="overlap"),
        pytest.param({"ack": 78}, id="ack"),
        pytest.param({"window": 8191}, id="window"),
        pytest.param({"urgptr": 1}, id="urgent pointer"),
        pytest.param({"options": [("NOP", None)] * 4}, id="options"),
        *[pytest.param({"flags": flags}, id=flags) for flags in ("", "FA", "SA", "RA", "UA", "EA", "CA", "NA", "P")],
        pytest.param({"reserved": 4}, id="reserved"),
        pytest.param({"sport": 40001}, id="source port"),
        pytest.param({"dport": 444}, id="destination port"),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_tcp_fields_that_must_be_the_same(version: int, second: dict[str, object]) -> None:
    ip = {"id": 101} if version == 4 else {}
    packets = [tcp_packet(version), tcp_packet(version, ip=ip, **{"seq": 1100, **second})]
    assert groups(packets) == [1, 1]
    assert groups(packets[::-1]) == [1, 1]


@pytest.mark.parametrize(
    ("version", "second"),
    [
        (4, {"tos": 1}),
        (4, {"ttl": 63}),
        (4, {"flags": 0}),
        (4, {"flags": "evil+DF"}),
        (4, {"src": "192.0.2.3"}),
        (4, {"dst": "192.0.2.3"}),
        (4, {"options": [IPOption_Router_Alert()]}),
        (6, {"tc": 1}),
        (6, {"fl": 1}),
        (6, {"hlim": 63}),
        (6, {"src": "2001:db8::7"}),
        (6, {"dst": "2002:db8:ffff::2"}),
    ],
)
def test_ip_fields_that_must_be_the_same(version: int, second: dict[str, object]) -> None:
    ip = {"id": 101, **second} if version == 4 else second
    assert groups([tcp_packet(version), tcp_packet(version, ip=ip, seq=1100)]) == [1, 1]
    assert groups([udp_packet(version), udp_packet(version, ip=ip)]) == [1, 1]


def test_identification_counts_unless_df_makes_it_meaningless() -> None:
    def ids(flags: object, *values: int) -> list[int]:
        return groups([udp_packet(ip={"id": value, "flags": flags}) for value in values])

    assert ids(0, 65534, 65535, 0, 1) == [4]
    assert ids(0, 7, 7) == [1, 1]
    assert ids(0, 7, 9, 10) == [1, 2]
    assert ids("DF", 7, 7, 7) == [3]
    assert ids("DF", 7, 9, 3) == [3]


def corrupt(packet: bytes, at: int) -> bytes:
    return packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :]


@pytest.mark.parametrize("make", [tcp_stream, lambda version, sizes: [udp_packet(version, n) for n in sizes]])
@pytest.mark.parametrize("version", [4, 6])
def test_damage_from_before_protection_is_not_hidden(
    version: int, make: Callable[[int, list[int]], list[bytes]]
) -> None:
    good = make(version, [50] * 4)
    assert groups(good) == [4]
    for k in range(4):
        bad = [*good[:k], corrupt(good[k], len(good[k]) - 1), *good[k + 1 :]]
        assert sum(groups(bad)) == 4
        assert all(checksums_right(p) for _, _, made in probe_coalesce(bad) if len(made) > 1 for p in made)
        assert [len(made) for _, _, made in probe_coalesce(bad) if bad[k] in made] == [1]


def test_bad_ipv4_header_checksum_goes_alone() -> None:
    good = tcp_stream(4, [50] * 3)
    assert groups([good[0], corrupt(good[1], 10), good[2]]) == [1, 1, 1]


def test_udp_lengths_and_missing_checksums() -> None:
    assert groups([udp_packet(chksum=0)] * 2) == [1, 1]
    assert groups([udp_packet(len=107)] * 2) == [1, 1]
    assert groups([udp_packet(len=109)] * 2) == [1, 1]
    assert groups([udp_packet()] * 2) == [2]


def test_limits() -> None:
    assert groups([udp_packet(size=4, ip={"id": 0})] * 130) == [64, 64, 2]
    assert groups(tcp_stream(4, [1400] * 60)) == [46, 14]
    assert groups(tcp_stream(6, [32737, 32738])) == [1, 1]
    assert groups(tcp_stream(6, [32738, 32737])) == [2]
    assert groups(tcp_stream(6, [32738, 32738])) == [1, 1]


def test_many_flows_and_more_frames_than_slots() -> None:
    flows = [[udp_packet(sport=1000 + f, size=20 + f) for _ in range(3)] for f in range(8)]
    frames = probe_coalesce([packet for turn in zip(*flows, strict=True) for packet in turn])
    assert [made for _, _, made in frames] == flows
    many = [udp_packet(sport=f, size=9) for f in range(100)]
    assert groups(many) == [1] * 100
    # more flows at a time than are told apart: nothing is joined, nothing is lost
    assert sum(groups(many[:9] * 4)) == 36


def test_fragments_options_and_other_protocols() -> None:
    stream = tcp_stream(4, [10, 10])
    fragment = bytes(ip_layer(4, flags="MF", frag=3, proto=6) / Raw(payload(16)))
    icmp = bytes(ip_layer(4) / ICMP())
    assert groups([stream[0], fragment, stream[1]]) == [1, 1, 1]
    assert groups([bytes(ip_layer(4, proto=47) / Raw(b"gre!"))] * 2) == [1, 1]
    assert groups([udp_packet(ip={"options": [IPOption_Router_Alert()]})] * 2) == [1, 1]
    extended = bytes(ip_layer(6) / IPv6ExtHdrDestOpt() / IP(udp_packet(4)).payload)
    assert groups([extended] * 2) == [1, 1]
    # no order is kept between ICMP and the rest
    frames = probe_coalesce([stream[0], icmp, stream[1]])
    assert [made for _, _, made in frames] == [stream, [icmp]]


def test_switches() -> None:
    tcp, udp = tcp_stream(4, [10, 10]), [udp_packet()] * 2
    assert groups(tcp + udp) == [2, 2]
    assert groups(tcp + udp, tcp=False) == [1, 1, 2]
    assert groups(tcp + udp, udp=False) == [2, 1, 1]
    assert probe_coalesce(tcp + udp, vnet_hdr=False) == [(b"", packet, [packet]) for packet in tcp + udp]


def test_tcp_headers_that_lie() -> None:
    for octet in (0x00, 0x40, 0xF0):
        packets = [packet[:32] + bytes([octet]) + packet[33:] for packet in tcp_stream(4, [8, 8])]
        assert groups(packets) == [1, 1]
    short = bytes(ip_layer(4, proto=6) / Raw(bytes(19)))
    assert groups([short, short]) == [1, 1]


@st.composite
def packet_mix(draw: st.DrawFn) -> list[bytes]:
    """Interleaved flows with holes, repeats, ACKs, odd flags and damage."""
    next_seq: dict[int, int] = defaultdict(lambda: 2**32 - 300)
    packets = []
    for k in range(draw(st.integers(1, 60))):
        flow = draw(st.integers(0, 3))
        size = draw(st.sampled_from([0, 1, 100, 100, 100, 99]))
        version = 4 + 2 * (flow & 1)
        fields = {"id": k & 0xFFFF, "flags": draw(st.sampled_from([0, "DF"]))} if version == 4 else None
        if flow & 2:
            packet = udp_packet(version, size, ip=fields, sport=flow)
        else:
            jump = draw(st.sampled_from([0, 0, 0, 0, 0, 1, -100]))
            seq = (next_seq[flow] + jump) & 0xFFFFFFFF
            next_seq[flow] = seq + size
            flags = draw(st.sampled_from(["A", "A", "A", "A", "PA", "FA", "CA", "S"]))
            packet = tcp_packet(version, size, ip=fields, sport=flow, seq=seq, flags=flags)
        if draw(st.integers(0, 15)) == 0:
            packet = corrupt(packet, draw(st.integers(header_length(packet) - 4, len(packet) - 1)))
        packets.append(packet)
    return packets


def flow_of(packet: bytes) -> tuple[int, bytes]:
    at = 20 if packet[0] >> 4 == 4 else 40
    return protocol_of(packet), packet[at : at + 4]


@given(packet_mix())
def test_each_flow_keeps_its_order_and_every_packet_its_octets(packets: list[bytes]) -> None:
    frames = probe_coalesce(packets)
    for vnet, frame, originals in frames:
        check_frame(vnet, frame, originals)
    flows: dict[object, list[bytes]] = defaultdict(list)
    for packet in packets:
        flows[flow_of(packet)].append(packet)
    written: dict[object, list[bytes]] = defaultdict(list)
    for _, _, originals in frames:
        for packet in originals:
            written[flow_of(packet)].append(packet)
    assert written == flows


@given(
    st.lists(
        st.tuples(
            st.sampled_from([tcp_packet(4, 20), tcp_packet(6, 20), udp_packet(4, 20), udp_packet(6, 20)]),
            st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=3),
        ),
        max_size=8,
    )
)
def test_headers_that_were_changed_at_random(changed: list[tuple[bytes, list[tuple[int, int]]]]) -> None:
    packets = []
    for packet, changes in changed:
        octets = bytearray(packet)
        for at, value in changes:
            if at < len(octets):
                octets[at] = value
        packets.append(bytes(octets))
    kept = [packet for packet in packets if parses(packet)]
    frames = probe_coalesce(kept)
    for vnet, frame, originals in frames:
        check_frame(vnet, frame, originals)
    assert sorted(p for _, _, made in frames for p in made) == sorted(ip_part(packet) for packet in kept)


def parses(packet: bytes) -> bool:
    try:
        probe_coalesce([packet])
    except ValueError:
        return False
    return True


def ip_part(packet: bytes) -> bytes:
    at, extra = (2, 0) if packet[0] >> 4 == 4 else (4, 40)
    return packet[: extra + struct.unpack("!H", packet[at : at + 2])[0]]
