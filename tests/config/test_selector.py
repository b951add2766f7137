"""Selector text of swanctl.conf."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.config.selector import parse_selector, selector_pairs
from ipsec.errors import ConfigError
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
    TrafficSelector,
)


@pytest.mark.parametrize(
    ("text", "start", "end", "protocol", "ports"),
    [
        ("10.1.0.0/16", "10.1.0.0", "10.1.255.255", 0, ANY_PORT),
        ("10.1.2.3/16", "10.1.0.0", "10.1.255.255", 0, ANY_PORT),
        ("10.1.2.3", "10.1.2.3", "10.1.2.3", 0, ANY_PORT),
        ("10.1.2.3-10.1.2.9", "10.1.2.3", "10.1.2.9", 0, ANY_PORT),
        ("10.1.2.3..10.1.2.9", "10.1.2.3", "10.1.2.9", 0, ANY_PORT),
        ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0, ANY_PORT),
        ("2001:db8::1-2001:db8::2", "2001:db8::1", "2001:db8::2", 0, ANY_PORT),
        ("dynamic", "192.0.2.1", "192.0.2.1", 0, ANY_PORT),
        ("dynamic[tcp/https]", "192.0.2.1", "192.0.2.1", TCP, (443, 443)),
        ("10.0.0.1[tcp]", "10.0.0.1", "10.0.0.1", TCP, ANY_PORT),
        ("10.0.0.1[TCP/HTTP]", "10.0.0.1", "10.0.0.1", TCP, (80, 80)),
        ("10.0.0.1[17/1000-2000]", "10.0.0.1", "10.0.0.1", UDP, (1000, 2000)),
        ("10.0.0.1[udp/domain-123]", "10.0.0.1", "10.0.0.1", UDP, (53, 123)),
        ("10.0.0.1[udp/any]", "10.0.0.1", "10.0.0.1", UDP, ANY_PORT),
        ("10.0.0.1[0]", "10.0.0.1", "10.0.0.1", 0, ANY_PORT),
        ("10.0.0.1[gre]", "10.0.0.1", "10.0.0.1", 47, ANY_PORT),
        ("10.0.0.1[tcp/opaque]", "10.0.0.1", "10.0.0.1", TCP, OPAQUE),
        ("10.0.0.1[tcp/OPAQUE]", "10.0.0.1", "10.0.0.1", TCP, OPAQUE),
        ("10.0.0.1 [tcp/80]", "10.0.0.1", "10.0.0.1", TCP, (80, 80)),
        ("10.0.0.1[tcp/]", "10.0.0.1", "10.0.0.1", TCP, ANY_PORT),
        # what charon 5.9.8 sends for it
        ("10.0.0.1[icmp/8]", "10.0.0.1", "10.0.0.1", ICMP, (0x0800, 0x0800)),
        ("10.0.0.1[icmp/8-10]", "10.0.0.1", "10.0.0.1", ICMP, (0x0800, 0x0A00)),
        ("10.0.0.1[icmp/2048-2303]", "10.0.0.1", "10.0.0.1", ICMP, (0x0800, 0x08FF)),
        ("10.0.0.1[icmp/3-3(255)]", "10.0.0.1", "10.0.0.1", ICMP, (0x0300, 0x03FF)),
        ("10.0.0.1[icmp/772]", "10.0.0.1", "10.0.0.1", ICMP, (0x0304, 0x0304)),
        ("10.0.0.1[icmp/3(4)]", "10.0.0.1", "10.0.0.1", ICMP, (0x0304, 0x0304)),
        ("10.0.0.1[icmp/0(3)]", "10.0.0.1", "10.0.0.1", ICMP, (3, 3)),
        ("::1[ipv6-icmp/128]", "::1", "::1", ICMPV6, (0x8000, 0x8000)),
        ("::1[135/5]", "::1", "::1", MH, (0x0500, 0x0500)),
        ("10.0.0.1[any/any]", "10.0.0.1", "10.0.0.1", 0, ANY_PORT),
        ("10.0.0.1[any]", "10.0.0.1", "10.0.0.1", 0, ANY_PORT),
        ("10.0.0.1[]", "10.0.0.1", "10.0.0.1", 0, ANY_PORT),
        ("  10.0.0.1  ", "10.0.0.1", "10.0.0.1", 0, ANY_PORT),
    ],
)
def test_parse(text: str, start: str, end: str, protocol: int, ports: tuple[int, int]) -> None:
    expected = TrafficSelector(ip_address(start), ip_address(end), protocol, ports)
    assert parse_selector(text, ip_address("192.0.2.1")) == expected


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("10.0.0.1[icmp/8]", (0x0800, 0x08FF)),
        ("10.0.0.1[icmp/8-10]", (0x0800, 0x0AFF)),
        ("10.0.0.1[icmp/3(4)]", (0x0304, 0x0304)),
        ("10.0.0.1[icmp/2048]", (0x0800, 0x0800)),
        ("10.0.0.1[tcp/80]", (80, 80)),
    ],
)
def test_whole_types(text: str, ports: tuple[int, int]) -> None:
    assert parse_selector(text, whole_types=True).ports == ports


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a traffic selector"),
        ("10.0.0.0/8[", "is not a traffic selector"),
        ("10.0.0.0/8[tcp /80]", "is not a traffic selector"),
        ("10.0.0.0/33", "is not an address, prefix or range"),
        ("gateway.example", "is not an address, prefix or range"),
        ("10.0.0.1-", "is not an address, prefix or range"),
        ("10.0.0.9-10.0.0.1", "is empty"),
        ("10.0.0.1-::1", "mixes families"),
        ("fe80::1%eth0", "zone"),
        ("dynamic", "has no meaning here"),
        ("10.0.0.1[nope]", "'nope' is not a protocol"),
        ("10.0.0.1[256]", "'256' is not a protocol"),
        ("10.0.0.1[tcp/nope]", "'nope' is not a port"),
        ("10.0.0.1[tcp/65536]", "'65536' is not a port"),
        ("10.0.0.1[tcp/90-80]", "'90-80' is empty"),
        ("10.0.0.1[tcp/80(1)]", "is not a port"),
        ("10.0.0.1[icmp/3(256)]", "is not a port"),
        ("10.0.0.1[icmp/http]", "is not a port"),
        ("10.0.0.1[gre/80]", "protocol gre has no ports"),
        ("10.0.0.1[any/53]", "ports need a protocol"),
        ("10.0.0.1[0/53-60]", "ports need a protocol"),
        ("10.0.0.1[/53]", "ports need a protocol"),
        ("10.0.0.1[any/opaque]", "ports need a protocol"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_selector(text)
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        (["10.0.0.1"], ["10.0.0.2", "10.0.0.3"], ["10.0.0.1/32 === 10.0.0.2/32", "10.0.0.1/32 === 10.0.0.3/32"]),
        (["10.0.0.1", "::1"], ["10.0.0.2", "::2"], ["10.0.0.1/32 === 10.0.0.2/32", "::1/128 === ::2/128"]),
        (["10.0.0.1[tcp]"], ["10.0.0.2[udp]", "10.0.0.3"], ["10.0.0.1/32[tcp] === 10.0.0.3/32"]),
    ],
)
def test_pairs(local: list[str], remote: list[str], expected: list[str]) -> None:
    sides = [[parse_selector(text) for text in texts] for texts in (local, remote)]
    assert [str(pair) for pair in selector_pairs(*sides)] == expected


def test_no_pairs() -> None:
    with pytest.raises(ConfigError, match="families or protocols differ"):
        selector_pairs([parse_selector("10.0.0.1")], [parse_selector("::1")])


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    version = draw(st.sampled_from((4, 6)))
    bits = st.integers(0, 2**32 - 1 if version == 4 else 2**128 - 1)
    low, high = sorted((draw(bits), draw(bits)))
    start, end = (IPv4Address(n) if version == 4 else IPv6Address(n) for n in (low, high))
    protocol = draw(st.integers(0, 255))
    ports = ANY_PORT
    if protocol in PORT_PROTOCOLS | TYPE_PROTOCOLS:
        pair = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda p: (min(p), max(p)))
        ports = draw(st.one_of(pair, st.just(ANY_PORT), st.just(OPAQUE)))
    return TrafficSelector(start, end, protocol, ports)


@given(selectors())
def test_round_trip(selector: TrafficSelector) -> None:
    assert parse_selector(str(selector)) == selector


@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from((ICMP, ICMPV6, MH)))
def test_round_trip_types(kind: int, code: int, protocol: int) -> None:
    for ports in ((kind << 8, kind << 8 | 255), (kind << 8 | code, kind << 8 | code)):
        selector = TrafficSelector(ip_address("10.0.0.1"), ip_address("10.0.0.1"), protocol, ports)
        assert parse_selector(str(selector)) == selector


@given(st.one_of(st.text(), st.text("0123456789.:-/[]()tcpicmpdynamic", max_size=40)))
def test_only_config_errors(text: str) -> None:
    with suppress(ConfigError):
        parse_selector(text)
