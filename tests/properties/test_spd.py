"""The compiled SPD against a naive ordered list (RFC 4301 section 4.4.1), written from the RFCs.

The list is walked in full for every packet; the compiled one goes through its flow cache, its trees and its overlay.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipsec._probe import SpdProbe
from ipsec.errors import ConfigError, PolicyError
from ipsec.esp.sa import Action, Policy
from ipsec.wire.selector import (
    ANY_PORT,
    ICMP,
    ICMPV6,
    MH,
    OPAQUE,
    PORT_PROTOCOLS,
    TCP,
    TYPE_PROTOCOLS,
    UDP,
    IpAddress,
    SelectorPair,
    TrafficSelector,
)

NONE, FOUND, AMBIGUOUS = 0, 1, 2
GRE, DESTINATION_OPTIONS, FRAGMENT_HEADER = 47, 60, 44
WHOLE, FIRST, LATER = "whole", "first", "later"


@dataclass(frozen=True)
class Packet:
    """An IP packet as the list sees it, and as octets."""

    src: IpAddress
    dst: IpAddress
    protocol: int
    ports: tuple[int, int] = (0, 0)
    "(type << 8 | code) twice for protocols with a type"
    fragment: str = WHOLE
    identification: int = 1
    extension: int | None = None
    "IPv6: the extension header between the fragment header and the upper layer of the first fragment"

    @property
    def has_ports(self) -> bool:
        return self.fragment != LATER and self.protocol in PORT_PROTOCOLS | TYPE_PROTOCOLS

    def upper_layer(self) -> bytes:
        if self.fragment == LATER:
            return b"\xa5" * 16
        if self.protocol in PORT_PROTOCOLS:
            return struct.pack("!HH", *self.ports).ljust(16, b"\0")
        if self.protocol == MH:
            return bytes((59, 0, self.ports[0] >> 8)).ljust(16, b"\0")
        return struct.pack("!H", self.ports[0]).ljust(16, b"\0")

    def emit(self) -> bytes:
        body = self.upper_layer()
        if self.src.version == 4:
            offset = {WHOLE: 0, FIRST: 0x2000, LATER: 0x2002}[self.fragment]
            length = 20 + len(body)
            fixed = struct.pack("!BBHHHBBH", 0x45, 0, length, self.identification, offset, 64, self.protocol, 0)
            return fixed + self.src.packed + self.dst.packed + body
        upper = self.protocol
        if self.extension is not None:
            upper = self.extension
            if self.fragment != LATER:
                body = bytes((self.protocol, 0, 1, 4, 0, 0, 0, 0)) + body
        if self.fragment != WHOLE:
            offset = 0x0001 if self.fragment == FIRST else 0x0010
            body = struct.pack("!BBHI", upper, 0, offset, self.identification) + body
            upper = FRAGMENT_HEADER
        return struct.pack("!IHBB", 6 << 28, len(body), upper, 64) + self.src.packed + self.dst.packed + body


def judge_pair(pair: SelectorPair, packet: Packet, inbound: bool = False) -> bool | None:
    """Whether the pair covers the packet; None if only ports that are hidden could tell."""
    ends = (packet.dst, packet.src) if inbound else (packet.src, packet.dst)
    ports = packet.ports[::-1] if inbound else packet.ports
    if not (pair.local.covers_address(ends[0]) and pair.remote.covers_address(ends[1])):
        return False
    protocol = pair.local.protocol or pair.remote.protocol
    later = packet.fragment == LATER
    protocol_hidden = later and packet.extension is not None
    unsure = bool(protocol) and protocol_hidden
    if protocol and not unsure and protocol != packet.protocol:
        return False
    may_have_ports = protocol_hidden or packet.protocol in PORT_PROTOCOLS | TYPE_PROTOCOLS
    for selector, port in ((pair.local, ports[0]), (pair.remote, ports[1])):
        if packet.has_ports:
            if not selector.covers_port(port):
                return False
        elif not may_have_ports:
            if selector.ports not in (ANY_PORT, OPAQUE):
                return False
        elif selector.ports not in (ANY_PORT, OPAQUE):
            unsure = True
    return None if unsure else True


def judge(pairs: tuple[SelectorPair, ...], packet: Packet, inbound: bool = False) -> bool | None:
    answers = [judge_pair(pair, packet, inbound) for pair in pairs]
    return True if True in answers else None if None in answers else False


@dataclass
class NaiveSpd:
    """The ordered list."""

    entries: list[tuple[int, int, Policy]] = field(default_factory=list)
    "(priority, id, policy); ids grow with age"

    def add(self, number: int, policy: Policy) -> None:
        self.entries.append((policy.priority, number, policy))
        self.entries.sort(key=lambda entry: entry[:2])

    def delete(self, number: int) -> None:
        self.entries = [entry for entry in self.entries if entry[1] != number]

    def find(self, packet: Packet) -> tuple[int, int]:
        for _, number, policy in self.entries:
            answer = judge(policy.selectors, packet)
            if answer is not False:
                return (FOUND, number) if answer else (AMBIGUOUS, -1)
        return (NONE, -1)


def pair_of(
    local: str, remote: str, protocol: int = 0, local_ports: tuple[int, int] = ANY_PORT,
    remote_ports: tuple[int, int] = ANY_PORT,
) -> SelectorPair:
    sides = []
    for text, ports in ((local, local_ports), (remote, remote_ports)):
        network = ip_network(text)
        sides.append(TrafficSelector(network[0], network[-1], protocol, ports))
    return SelectorPair(*sides)


def protect(*pairs: SelectorPair, priority: int = 0) -> Policy:
    return Policy(Action.PROTECT, pairs, priority=priority)


def agree(probe: SpdProbe, naive: NaiveSpd, packet: Packet) -> None:
    data = packet.emit()
    expected = naive.find(packet)
    assert probe.find(data, False) == expected, packet
    # the second time from the cache, which must not change the answer
    assert probe.find(data, True) == expected, packet
    assert probe.find(data, True) == expected, packet


# --- generated policies and packets: few distinct values, so that they meet ----------------------------------------

BASE = {4: int(IPv4Address("10.0.0.0")), 6: int(IPv6Address("2001:db8:0:1::")) - 32}
TOP = {4: 2**32 - 1, 6: 2**128 - 1}


def make_address(version: int, number: int) -> IpAddress:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def points(version: int) -> list[int]:
    near = [BASE[version] + i for i in range(64)]
    # both sides of where the upper 64 bits change, and the ends of the space
    return [0, 1, *near, *near[:8], TOP[version] - 1, TOP[version]]


@st.composite
def address_ranges(draw: st.DrawFn, version: int) -> tuple[IpAddress, IpAddress]:
    shape = draw(st.sampled_from(("any", "host", "prefix", "range")))
    a, b = sorted((draw(st.sampled_from(points(version))), draw(st.sampled_from(points(version)))))
    if shape == "any":
        a, b = 0, TOP[version]
    elif shape == "host":
        b = a
    elif shape == "prefix":
        size = 1 << draw(st.integers(0, 6))
        a -= a % size
        b = a + size - 1
    return make_address(version, a), make_address(version, b)


PORTS = st.one_of(
    st.just(ANY_PORT),
    st.just(ANY_PORT),
    st.just(OPAQUE),
    st.sampled_from(((80, 80), (0, 0), (65535, 65535), (0x0800, 0x08FF), (1, 65535), (0, 65534), (100, 2000))),
    st.tuples(st.integers(75, 85), st.integers(75, 85)).map(lambda p: (min(p), max(p))),
)
PROTOCOLS = st.sampled_from((0, 0, TCP, TCP, UDP, 132, ICMP, ICMPV6, MH, GRE, 50, DESTINATION_OPTIONS))


@st.composite
def selector_pairs(draw: st.DrawFn) -> SelectorPair:
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(PROTOCOLS)
    sides = []
    for bare in draw(st.sampled_from(((False, False), (True, False), (False, True)))):
        start, end = draw(address_ranges(version))
        sides.append(TrafficSelector(start, end, 0 if bare else protocol, draw(PORTS)))
    return SelectorPair(*sides)


POLICIES = st.builds(
    Policy,
    st.sampled_from(Action),
    st.lists(selector_pairs(), min_size=1, max_size=3).map(tuple),
    priority=st.sampled_from((0, 0, 0, 1, -1, 2**32 - 1, -(2**31))),
)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    version = draw(st.sampled_from((4, 6)))
    ends = [make_address(version, draw(st.sampled_from(points(version)))) for _ in range(2)]
    protocol = draw(st.sampled_from((TCP, TCP, UDP, 132, 136, 33, ICMP, ICMPV6, MH, GRE, 50)))
    port = st.one_of(st.integers(74, 86), st.sampled_from((0, 1, 100, 2000, 2001, 0x0800, 0x08FF, 65534, 65535)))
    ports = (draw(port), draw(port))
    if protocol == MH:
        ports = (ports[0] & 0xFF00,) * 2
    elif protocol in TYPE_PROTOCOLS:
        ports = (ports[0],) * 2
    elif protocol not in PORT_PROTOCOLS:
        ports = (0, 0)
    fragment = draw(st.sampled_from((WHOLE, WHOLE, FIRST, LATER)))
    extension = draw(st.sampled_from((None, DESTINATION_OPTIONS))) if version == 6 and fragment != WHOLE else None
    return Packet(ends[0], ends[1], protocol, ports, fragment, extension=extension)


COMMANDS = st.lists(
    st.one_of(
        POLICIES.map(lambda policy: ("add", policy)),
        st.integers(0, 1 << 16).map(lambda n: ("delete", n)),
        packets().map(lambda packet: ("find", packet)),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(COMMANDS, st.lists(packets(), min_size=1, max_size=8))
def test_interleaved_changes(commands: list[tuple[str, object]], probes: list[Packet]) -> None:
    probe, naive = SpdProbe(), NaiveSpd()
    for verb, value in commands:
        if verb == "add":
            assert isinstance(value, Policy)
            naive.add(probe.add(value), value)
        elif verb == "delete" and naive.entries:
            assert isinstance(value, int)
            number = naive.entries[value % len(naive.entries)][1]
            probe.delete(number)
            naive.delete(number)
        elif verb == "find":
            assert isinstance(value, Packet)
            agree(probe, naive, value)
    for packet in probes:
        agree(probe, naive, packet)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(POLICIES, max_size=12), st.lists(packets(), min_size=1, max_size=8))
def test_replaced_at_once(policies: list[Policy], probes: list[Packet]) -> None:
    """Everything in the trees, nothing in the overlay."""
    probe, naive = SpdProbe(), NaiveSpd()
    probe.add(protect(pair_of("0.0.0.0/0", "0.0.0.0/0"), priority=-5))
    for number, policy in zip(probe.replace(policies), policies, strict=True):
        naive.add(number, policy)
    for packet in probes:
        agree(probe, naive, packet)


@given(st.lists(selector_pairs(), max_size=4).map(tuple), packets(), st.booleans())
def test_selectors_of_an_sa(pairs: tuple[SelectorPair, ...], packet: Packet, inbound: bool) -> None:
    expected = judge(pairs, packet, inbound) if pairs else True
    assert SpdProbe.accepts(pairs, packet.emit(), inbound) == (expected is True, expected is None)


# --- random sets that are large enough for every tree, and for rebuilding ------------------------------------------


def random_network(rng: random.Random, version: int) -> str:
    if version == 4:
        prefix = rng.choice((0, 8, 12, 16, 16, 24, 24, 32))
        number = (10 << 24) | rng.getrandbits(24) & 0x0307FF
        return f"{IPv4Address(number >> (32 - prefix) << (32 - prefix))}/{prefix}"
    prefix = rng.choice((0, 32, 48, 60, 64, 64, 96, 128))
    number = (0x20010DB8 << 96) | rng.getrandbits(3) << 64 | rng.getrandbits(5)
    return f"{IPv6Address(number >> (128 - prefix) << (128 - prefix))}/{prefix}"


def random_policy(rng: random.Random) -> Policy:
    pairs = []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        version = rng.choice((4, 4, 6))
        protocol = rng.choice((0, 0, TCP, UDP, ICMP if version == 4 else ICMPV6))
        ports = [ANY_PORT, ANY_PORT]
        if protocol:
            low = rng.randrange(40)
            ports[rng.randrange(2)] = rng.choice((ANY_PORT, OPAQUE, (low, low), (low, low + rng.randrange(9))))
        local, remote = random_network(rng, version), random_network(rng, version)
        pairs.append(pair_of(local, remote, protocol, ports[0], ports[1]))
    return Policy(Action.PROTECT, tuple(pairs), priority=rng.randrange(3))


def packet_near(rng: random.Random, policy: Policy) -> Packet:
    """One that meets a selector of the policy, or just misses it."""
    pair = rng.choice(policy.selectors)
    ends = []
    for side in (pair.local, pair.remote):
        edge = int(rng.choice((side.start, side.end))) + rng.choice((0, 0, 0, 1, -1))
        ends.append(make_address(side.version, min(max(edge, 0), TOP[side.version])))
    protocol = pair.local.protocol or rng.choice((TCP, UDP, GRE))
    ports = [rng.randrange(50), rng.randrange(50)]
    for i, side in enumerate((pair.local, pair.remote)):
        if side.ports not in (ANY_PORT, OPAQUE):
            ports[i] = min(max(rng.choice(side.ports) + rng.choice((0, 0, 1, -1)), 0), 65535)
    if protocol in TYPE_PROTOCOLS:
        ports = [max(ports)] * 2
    elif protocol == GRE:
        ports = [0, 0]
    return Packet(ends[0], ends[1], protocol, (ports[0], ports[1]), rng.choice((WHOLE, WHOLE, FIRST, LATER)))


@pytest.mark.parametrize("seed", range(4))
def test_random_history(seed: int) -> None:
    """Growing past several rebuilds, then shrinking to nothing, compared all along."""
    rng = random.Random(seed)
    probe, naive = SpdProbe(), NaiveSpd()
    seen = set()
    for step in range(900):
        if naive.entries and rng.random() < (0.15 if step < 500 else 0.85):
            number = rng.choice(naive.entries)[1]
            probe.delete(number)
            naive.delete(number)
        else:
            policy = random_policy(rng)
            naive.add(probe.add(policy), policy)
        for _ in range(2 if naive.entries else 0):
            packet = packet_near(rng, rng.choice(naive.entries)[2])
            seen.add(naive.find(packet)[0])
            agree(probe, naive, packet)
    assert seen == {NONE, FOUND, AMBIGUOUS}
    for _, number, _ in list(naive.entries):
        probe.delete(number)
    assert probe.find(Packet(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), TCP).emit(), True) == (NONE, -1)


def spread_sets() -> dict[str, list[Policy]]:
    """Sets that make each of the trees, and the worst cases for all of them."""
    n = 600
    net = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(n)]
    everywhere = "0.0.0.0/0"
    return {
        "remote hosts": [protect(pair_of(everywhere, f"10.0.{i >> 8}.{i & 255}/32")) for i in range(n)],
        "local subnets": [protect(pair_of(net[i], everywhere)) for i in range(n)],
        "remote ports": [protect(pair_of(everywhere, net[0], TCP, ANY_PORT, (i, i))) for i in range(n)],
        "local ports": [protect(pair_of(net[0], everywhere, UDP, (i, i + 3))) for i in range(n)],
        "mesh": [protect(pair_of(net[i % 24], net[i // 24])) for i in range(n)],
        "nested": [protect(pair_of(everywhere, f"{IPv4Address(2**31 >> i << i)}/{32 - i}")) for i in range(31)],
        "nested, widest first": [
            protect(pair_of(everywhere, f"{IPv4Address(2**31 >> i << i)}/{32 - i}")) for i in range(31, -1, -1)
        ],
        "identical": [protect(pair_of(everywhere, everywhere)) for _ in range(n)],
        "identical but for the last": [protect(pair_of(everywhere, everywhere, GRE)) for _ in range(n)]
        + [protect(pair_of(everywhere, everywhere))],
        "mixture": [
            protect(pair_of(everywhere, everywhere, UDP, (500, 500), (500, 500))),
            *(protect(pair_of(everywhere, net[i])) for i in range(0, n, 3)),
            *(protect(pair_of(net[i], everywhere)) for i in range(1, n, 3)),
            *(protect(pair_of(everywhere, everywhere, TCP, ANY_PORT, (i, i))) for i in range(2, n, 3)),
            Policy(Action.DISCARD, (pair_of(everywhere, everywhere),)),
        ],
    }


@pytest.mark.parametrize("shape", spread_sets())
def test_every_shape(shape: str) -> None:
    rng = random.Random(shape)
    policies = spread_sets()[shape]
    probe, naive = SpdProbe(), NaiveSpd()
    for number, policy in zip(probe.replace(policies), policies, strict=True):
        naive.add(number, policy)
    for _ in range(300):
        agree(probe, naive, packet_near(rng, rng.choice(policies)))
    # dead marks, then a rebuild
    for number in rng.sample([entry[1] for entry in naive.entries], len(policies) * 2 // 3):
        probe.delete(number)
        naive.delete(number)
        agree(probe, naive, packet_near(rng, rng.choice(policies)))


# --- single rules, by name ------------------------------------------------------------------------------------------

A, B = ip_address("10.1.0.1"), ip_address("10.2.0.1")
HTTP = pair_of("10.1.0.0/16", "10.2.0.0/16", TCP, ANY_PORT, (80, 80))
ALL = pair_of("10.1.0.0/16", "10.2.0.0/16")


def test_priority_then_age() -> None:
    probe = SpdProbe()
    packet = Packet(A, B, TCP, (1, 2)).emit()
    later = probe.add(protect(ALL, priority=2))
    assert probe.find(packet, True) == (FOUND, later)
    first = probe.add(protect(ALL, priority=1))
    assert probe.find(packet, True) == (FOUND, first)
    probe.add(protect(ALL, priority=1))
    assert probe.find(packet, True) == (FOUND, first)
    probe.delete(first)
    assert probe.find(packet, True) == (FOUND, first + 1)


def test_later_fragment_is_not_guessed() -> None:
    later = Packet(A, B, TCP, fragment=LATER).emit()
    probe = SpdProbe()
    http = probe.add(protect(HTTP))
    assert probe.find(later, True) == (AMBIGUOUS, -1)
    probe.add(protect(ALL))
    assert probe.find(later, True) == (AMBIGUOUS, -1), "the policy without ports comes second"
    probe.delete(http)
    assert probe.find(later, True) == (FOUND, http + 1)


def test_one_policy_that_matches_either_way_is_not_ambiguous() -> None:
    probe = SpdProbe()
    number = probe.add(protect(HTTP, ALL))
    assert probe.find(Packet(A, B, TCP, fragment=LATER).emit(), True) == (FOUND, number)


def test_opaque_is_for_ports_that_cannot_be_seen() -> None:
    probe = SpdProbe()
    number = probe.add(protect(pair_of("10.1.0.0/16", "10.2.0.0/16", TCP, OPAQUE, OPAQUE)))
    assert probe.find(Packet(A, B, TCP, (1, 2)).emit(), True) == (NONE, -1)
    assert probe.find(Packet(A, B, TCP, fragment=LATER).emit(), True) == (FOUND, number)
    bare = probe.add(protect(pair_of("10.1.0.0/16", "10.2.0.0/16", GRE, OPAQUE, OPAQUE)))
    assert probe.find(Packet(A, B, GRE).emit(), True) == (FOUND, bare), "GRE has no ports to see"
    probe.delete(bare)
    probe.add(protect(pair_of("10.1.0.0/16", "10.2.0.0/16", GRE, ANY_PORT, (1, 2))))
    assert probe.find(Packet(A, B, GRE).emit(), True) == (NONE, -1)


def test_icmp_type_and_code() -> None:
    probe = SpdProbe()
    echo = (8 << 8, 8 << 8 | 255)
    number = probe.add(protect(pair_of("10.1.0.0/16", "10.2.0.0/16", ICMP, echo, ANY_PORT)))
    assert probe.find(Packet(A, B, ICMP, (8 << 8,) * 2).emit(), True) == (FOUND, number)
    assert probe.find(Packet(A, B, ICMP, (0, 0)).emit(), True) == (NONE, -1)


@pytest.mark.parametrize("extension", [None, DESTINATION_OPTIONS])
@pytest.mark.parametrize("ends", [(A, B), (ip_address("2001:db8::1"), ip_address("2001:db8::2"))])
def test_fragments_learn_their_ports(ends: tuple[IpAddress, IpAddress], extension: int | None) -> None:
    if ends[0].version == 4:
        extension = None
    host = "/32" if ends[0].version == 4 else "/128"
    probe = SpdProbe()
    number = probe.add(protect(pair_of(f"{ends[0]}{host}", f"{ends[1]}{host}", TCP, ANY_PORT, (80, 80))))
    first = Packet(*ends, TCP, (1024, 80), FIRST, 7, extension).emit()
    other = Packet(*ends, TCP, (1024, 81), FIRST, 7, extension).emit()
    later = Packet(*ends, TCP, (0, 0), LATER, 7, extension).emit()
    stranger = Packet(*ends, TCP, (0, 0), LATER, 8, extension).emit()
    second = 10**9
    assert probe.find(later, True, 0) == (AMBIGUOUS, -1), "before its first fragment"
    assert probe.find(first, True, 0) == (FOUND, number)
    assert probe.find(later, True, 30 * second) == (FOUND, number)
    assert probe.find(stranger, True, 1) == (AMBIGUOUS, -1)
    assert probe.find(later, True, 30 * second + 1) == (AMBIGUOUS, -1), "expired"
    assert probe.find(first, True, 31 * second) == (FOUND, number)
    assert probe.find(other, True, 31 * second) == (NONE, -1)
    assert probe.find(later, True, 31 * second) == (NONE, -1), "the newest first fragment counts"


def test_fragment_table_is_bounded_and_drops_the_oldest() -> None:
    probe = SpdProbe()
    probe.add(protect(HTTP))
    for number in range(5000):
        probe.find(Packet(A, B, TCP, (1, 80), FIRST, number).emit(), True, number)
    known = [probe.find(Packet(A, B, TCP, (0, 0), LATER, n).emit(), True, 5000)[0] == FOUND for n in range(5000)]
    assert sum(known) == 256
    assert known[-1]
    assert not any(known[:2500])


def test_flow_cache_overflows_without_harm() -> None:
    """More flows than the cache has room for, twice over; then every answer changes at once."""
    probe = SpdProbe()
    number = probe.add(protect(ALL))
    flows = [Packet(A, ip_address(int(B) + i % 97), UDP, (i, 53)).emit() for i in range(12000)]
    for _ in range(2):
        assert {probe.find(flow, True) for flow in flows} == {(FOUND, number)}
    probe.delete(number)
    assert {probe.find(flow, True) for flow in flows} == {(NONE, -1)}


def test_what_is_refused() -> None:
    probe = SpdProbe()
    with pytest.raises(PolicyError):
        probe.add(protect())
    with pytest.raises(PolicyError):
        probe.add(protect(ALL, priority=2**32))
    with pytest.raises(PolicyError):
        probe.delete(0)
    six = pair_of("::/0", "::/0")
    with pytest.raises(ConfigError, match="families"):
        probe.add(protect(ALL, SelectorPair(ALL.local, six.remote)))
    udp = pair_of("10.1.0.0/16", "10.2.0.0/16", UDP)
    with pytest.raises(ConfigError, match="protocols"):
        probe.replace([protect(ALL), protect(SelectorPair(HTTP.local, udp.remote))])
    assert probe.find(Packet(A, B, TCP, (1, 80)).emit(), True) == (NONE, -1)
