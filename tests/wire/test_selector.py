"""Traffic selectors: text, matching, containment."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ConfigError
from ipsec.esp.spd import Flow, Match, match_selectors
from ipsec.wire.selector import (
    ANY_PORT,
    ICMP,
    ICMPV6,
    MH,
    OPAQUE,
    TCP,
    UDP,
    IpAddress,
    SelectorPair,
    TrafficSelector,
)

GRE = 47
LOCAL, REMOTE = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def selector(network: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    net = ip_network(network)
    return TrafficSelector(net[0], net[-1], protocol, ports)


def any4(protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    return selector("0.0.0.0/0", protocol, ports)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (selector("10.1.0.0/16"), "10.1.0.0/16"),
        (selector("10.0.0.1/32"), "10.0.0.1/32"),
        (selector("::/0"), "::/0"),
        (TrafficSelector(ip_address("10.0.0.1"), ip_address("10.0.0.9")), "10.0.0.1..10.0.0.9"),
        (any4(TCP), "0.0.0.0/0[tcp]"),
        (any4(TCP, (80, 80)), "0.0.0.0/0[tcp/http]"),
        (any4(UDP, (1000, 1000)), "0.0.0.0/0[udp/1000]"),
        (any4(UDP, (80, 443)), "0.0.0.0/0[udp/80-443]"),
        (any4(TCP, OPAQUE), "0.0.0.0/0[tcp/OPAQUE]"),
        (any4(250), "0.0.0.0/0[250]"),
        (any4(ICMP, (0x0800, 0x0800)), "0.0.0.0/0[icmp/8]"),
        (any4(ICMP, (0x0000, 0x0000)), "0.0.0.0/0[icmp/0]"),
        (any4(ICMP, (0x0800, 0x0A00)), "0.0.0.0/0[icmp/8-10]"),
        (any4(ICMP, (0x0304, 0x0304)), "0.0.0.0/0[icmp/3(4)]"),
        (any4(ICMP, (0x0300, 0x0304)), "0.0.0.0/0[icmp/3-3(4)]"),
        (any4(ICMP, (0x0800, 0x08FF)), "0.0.0.0/0[icmp/8-8(255)]"),
        (selector("::/0", ICMPV6, (0x8000, 0x8000)), "::/0[ipv6-icmp/128]"),
        (selector("::/0", MH, (0x0500, 0x0500)), "::/0[mobility-header/5]"),
    ],
)
def test_text(value: TrafficSelector, text: str) -> None:
    assert str(value) == text


def test_pair_text() -> None:
    pair = SelectorPair(selector("10.1.0.0/16"), any4(TCP, (80, 80)))
    assert str(pair) == "10.1.0.0/16 === 0.0.0.0/0[tcp/http]"


@pytest.mark.parametrize(
    ("start", "end", "protocol", "ports"),
    [
        ("10.0.0.2", "10.0.0.1", 0, ANY_PORT),
        ("10.0.0.2", "::1", 0, ANY_PORT),
        ("10.0.0.1", "10.0.0.1", 256, ANY_PORT),
        ("10.0.0.1", "10.0.0.1", -1, ANY_PORT),
        ("10.0.0.1", "10.0.0.1", TCP, (2, 1)),
        ("10.0.0.1", "10.0.0.1", TCP, (1, 65536)),
        ("10.0.0.1", "10.0.0.1", TCP, (-1, 1)),
    ],
)
def test_refused(start: str, end: str, protocol: int, ports: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        TrafficSelector(ip_address(start), ip_address(end), protocol, ports)


def test_pair_refused() -> None:
    with pytest.raises(ConfigError, match="different families"):
        SelectorPair(selector("10.0.0.0/8"), selector("::/0"))
    with pytest.raises(ConfigError, match="different protocols"):
        SelectorPair(any4(TCP), any4(UDP))


def test_networks() -> None:
    assert selector("10.0.0.0/8").networks() == ["10.0.0.0/8"]
    odd = TrafficSelector(ip_address("10.0.0.1"), ip_address("10.0.0.4"))
    assert odd.networks() == ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]
    assert selector("2001:db8::/64").networks() == ["2001:db8::/64"]


def matches(
    pair: SelectorPair,
    local: IpAddress,
    remote: IpAddress,
    protocol: int,
    local_port: int | None,
    remote_port: int | None,
) -> bool:
    """Whether a packet that is no fragment is one that the pair means."""
    ports = None if local_port is None or remote_port is None else (local_port, remote_port)
    return match_selectors([pair], Flow(local, remote, protocol, ports), outbound=True) is Match.YES


ECHO = 0x0800
TOO_BIG = 0x0304


@pytest.mark.parametrize(
    ("local", "remote", "protocol", "ports", "expected"),
    [
        # no protocol: everything, ports known or not
        (any4(), any4(), TCP, (1, 2), True),
        (any4(), any4(), GRE, (None, None), True),
        # a protocol on one side holds for the packet
        (any4(TCP), any4(), TCP, (1, 2), True),
        (any4(), any4(TCP), UDP, (1, 2), False),
        (any4(TCP), any4(TCP), TCP, (None, None), True),
        # ports belong to their side
        (any4(TCP, (80, 90)), any4(TCP), TCP, (80, 5), True),
        (any4(TCP, (80, 90)), any4(TCP), TCP, (90, 5), True),
        (any4(TCP, (80, 90)), any4(TCP), TCP, (91, 5), False),
        (any4(TCP, (80, 90)), any4(TCP), TCP, (5, 80), False),
        (any4(TCP, (80, 90)), any4(TCP), TCP, (None, None), False),
        (any4(TCP), any4(TCP, (80, 80)), TCP, (5, 80), True),
        # OPAQUE: only ports that are not there (RFC 7296 section 3.13.1)
        (any4(TCP, OPAQUE), any4(TCP, OPAQUE), TCP, (None, None), True),
        (any4(TCP, OPAQUE), any4(TCP), TCP, (None, None), True),
        (any4(TCP, OPAQUE), any4(TCP), TCP, (0, 0), False),
        (any4(TCP, OPAQUE), any4(TCP), TCP, (65535, 0), False),
        # the whole range is ANY, one port less is not
        (any4(TCP, (1, 65535)), any4(TCP), TCP, (None, None), False),
        (any4(TCP, (0, 65534)), any4(TCP), TCP, (None, None), False),
        # ICMP: one field, every side that names a type must agree
        (any4(ICMP, (0x0800, 0x08FF)), any4(ICMP), ICMP, (ECHO, ECHO), True),
        (any4(ICMP), any4(ICMP, (0x0800, 0x08FF)), ICMP, (ECHO, ECHO), True),
        (any4(ICMP, (0x0800, 0x08FF)), any4(ICMP, (0x0800, 0x08FF)), ICMP, (ECHO, ECHO), True),
        (any4(ICMP, (0x0800, 0x08FF)), any4(), ICMP, (0, 0), False),
        (any4(ICMP, (TOO_BIG, TOO_BIG)), any4(), ICMP, (TOO_BIG, TOO_BIG), True),
        (any4(ICMP, (TOO_BIG, TOO_BIG)), any4(), ICMP, (TOO_BIG + 1, TOO_BIG + 1), False),
        (any4(ICMP, (0x0800, 0x08FF)), any4(), ICMP, (None, None), False),
        (any4(ICMP), any4(), ICMP, (None, None), True),
        # protocols that have no ports
        (any4(0, (80, 80)), any4(), GRE, (None, None), False),
        (any4(GRE, OPAQUE), any4(), GRE, (None, None), True),
    ],
)
def test_matches(
    local: TrafficSelector,
    remote: TrafficSelector,
    protocol: int,
    ports: tuple[int | None, int | None],
    expected: bool,
) -> None:
    assert matches(SelectorPair(local, remote), LOCAL, REMOTE, protocol, *ports) is expected


def test_matches_addresses() -> None:
    pair = SelectorPair(selector("10.0.0.0/31"), selector("10.0.0.2/31"))
    assert matches(pair, ip_address("10.0.0.1"), ip_address("10.0.0.3"), TCP, 1, 1)
    assert not matches(pair, ip_address("10.0.0.3"), ip_address("10.0.0.1"), TCP, 1, 1)
    assert not matches(pair, ip_address("9.255.255.255"), ip_address("10.0.0.3"), TCP, 1, 1)
    assert not matches(pair, ip_address("10.0.0.1"), ip_address("10.0.0.4"), TCP, 1, 1)
    # 10.0.0.1 and ::a00:1 are the same number
    assert not matches(pair, ip_address("::a00:1"), ip_address("::a00:3"), TCP, 1, 1)


def test_mobility_header() -> None:
    binding_update = SelectorPair(selector("::/0", MH, (0x0500, 0x05FF)), selector("::/0"))
    ends = ip_address("::1"), ip_address("::2")
    assert matches(binding_update, *ends, MH, 0x0500, 0x0500)
    assert not matches(binding_update, *ends, MH, 0x0600, 0x0600)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (any4(), selector("10.0.0.0/8", TCP, (80, 80)), True),
        (selector("10.0.0.0/8"), any4(), False),
        (any4(TCP), any4(), False),
        (any4(TCP), any4(UDP), False),
        (any4(TCP, (80, 90)), any4(TCP, (80, 90)), True),
        (any4(TCP, (80, 90)), any4(TCP, (80, 91)), False),
        (any4(TCP, (80, 90)), any4(TCP), False),
        (any4(TCP, (80, 90)), any4(TCP, OPAQUE), False),
        (any4(TCP), any4(TCP, OPAQUE), True),
        (any4(TCP, OPAQUE), any4(TCP, OPAQUE), True),
        (any4(TCP, OPAQUE), any4(TCP, (80, 90)), False),
        (any4(TCP, OPAQUE), any4(TCP), False),
        (selector("::/0"), any4(), False),
    ],
)
def test_contains(outer: TrafficSelector, inner: TrafficSelector, expected: bool) -> None:
    assert outer.contains(inner) is expected


NUMBERS = st.integers(0, 7)
SMALL_PORTS = st.one_of(st.just(ANY_PORT), st.just(OPAQUE), st.tuples(NUMBERS, NUMBERS).map(lambda p: (min(p), max(p))))


@st.composite
def sides(draw: st.DrawFn, protocol: int) -> TrafficSelector:
    low, high = sorted((draw(NUMBERS), draw(NUMBERS)))
    return TrafficSelector(IPv4Address(low), IPv4Address(high), draw(st.sampled_from((0, protocol))), draw(SMALL_PORTS))


PAIRS = st.sampled_from((TCP, UDP)).flatmap(lambda protocol: st.builds(SelectorPair, sides(protocol), sides(protocol)))


@given(PAIRS, PAIRS, NUMBERS, NUMBERS, st.sampled_from((TCP, UDP)), st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS)))
def test_contains_means_matches(
    outer: SelectorPair, inner: SelectorPair, a: int, b: int, protocol: int, ports: tuple[int, int] | None
) -> None:
    """What the inner pair lets through, the outer one does."""
    packet = IPv4Address(a), IPv4Address(b), protocol, *(ports or (None, None))
    if outer.contains(inner) and matches(inner, *packet):
        assert matches(outer, *packet)
    assert inner.contains(inner)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_covers_address(a: int, b: int, c: int) -> None:
    low, high = sorted((a, b))
    value = TrafficSelector(IPv4Address(low), IPv4Address(high))
    assert value.covers_address(IPv4Address(c)) == (low <= c <= high)
    assert not value.covers_address(IPv6Address(c))
    address: IpAddress = IPv4Address(low)
    assert value.covers_address(address)
