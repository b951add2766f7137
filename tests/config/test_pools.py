"""``pools { }``: ranges, attributes, overlaps."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ipsec.config import load_text
from ipsec.errors import ConfigError
from ipsec.ike.config import PoolConfig


def read(text: str) -> PoolConfig:
    return load_text(f"pools {{\n p {{\n{text}\n }}\n}}", "f").pools[0]


def refuse(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f")
    assert caught.value.file == "f"
    return caught.value


def test_none() -> None:
    assert load_text("").pools == ()
    assert load_text("pools {\n}").pools == ()


@pytest.mark.parametrize(
    ("addrs", "first", "last"),
    [
        ("10.3.0.0/24", "10.3.0.1", "10.3.0.254"),
        ("10.3.0.100/24", "10.3.0.100", "10.3.0.254"),
        ("10.0.0.0/8", "10.0.0.1", "10.255.255.254"),
        ("10.3.0.0/30", "10.3.0.1", "10.3.0.2"),
        # RFC 3021: both are hosts
        ("10.3.0.0/31", "10.3.0.0", "10.3.0.1"),
        ("10.3.0.7/32", "10.3.0.7", "10.3.0.7"),
        ("10.3.0.7", "10.3.0.7", "10.3.0.7"),
        ("10.3.0.7-10.3.1.9", "10.3.0.7", "10.3.1.9"),
        ("10.3.0.0 - 10.3.0.255", "10.3.0.0", "10.3.0.255"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::100/120", "fd00::101", "fd00::1ff"),
        ("fd00::7/120", "fd00::7", "fd00::ff"),
        ("fd00::1-fd00::9", "fd00::1", "fd00::9"),
    ],
)
def test_range(addrs: str, first: str, last: str) -> None:
    assert read(f"addrs = {addrs}") == PoolConfig("p", ip_address(first), ip_address(last))


@pytest.mark.parametrize(
    ("line", "attributes"),
    [
        # RFC 7296 section 3.15.1
        ("dns = 1.2.3.4", ((3, bytes((1, 2, 3, 4))),)),
        ("dns = 1.2.3.4, fd00::1", ((3, bytes((1, 2, 3, 4))), (10, ip_address("fd00::1").packed))),
        ("nbns = 1.2.3.4", ((4, bytes((1, 2, 3, 4))),)),
        ("dhcp = 1.2.3.4, fd00::1", ((6, bytes((1, 2, 3, 4))), (12, ip_address("fd00::1").packed))),
        ("netmask = 255.255.255.0", ((2, bytes((255, 255, 255, 0))),)),
        ("subnet = 10.0.0.0/8", ((13, bytes((10, 0, 0, 0, 255, 0, 0, 0))),)),
        ("subnet = fd00::/16", ((15, ip_address("fd00::").packed + b"\x10"),)),
        ("server = 1.2.3.4", ((23456, bytes((1, 2, 3, 4))),)),
        # RFC 7651
        ("p_cscf = 1.2.3.4, fd00::1", ((20, bytes((1, 2, 3, 4))), (21, ip_address("fd00::1").packed))),
        ("25 = example.org", ((25, b"example.org"),)),
        ("28672 = 10.0.0.0/8, 1.2.3.4", ((28672, bytes((10, 0, 0, 0, 255, 0, 0, 0))), (28672, bytes((1, 2, 3, 4))))),
        ("16384 = a/b", ((16384, b"a/b"),)),
        ("dns =", ()),
    ],
)
def test_attributes(line: str, attributes: tuple[tuple[int, bytes], ...]) -> None:
    assert read(f"addrs = 10.3.0.0/24\n{line}").attributes == attributes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("addrs = 10.3.0.0/33", "is not a network such as 10.3.0.0/24, or a range a-b"),
        ("addrs = pool", "is not a network"),
        ("addrs = 10.3.0.9-10.3.0.1", "is empty or mixes families"),
        ("addrs = 10.3.0.9-fd00::1", "is empty or mixes families"),
        ("addrs = 10.3.0.1-", "'' is not an IP address"),
        ("addrs = 10.3.0.255/24", "leaves no address to assign"),
        ("addrs = fe80::1%eth0/64", "zone"),
        ("dns = example.org", "'example.org' is not an IP address"),
        ("dns = ,", "the list is empty"),
        ("netmask = ffff::", "there is no netmask for IPv6"),
        ("subnet = here", "'here' is not a network"),
        ("split_include = 10.0.0.0/8", "IKEv1 is not supported"),
        ("split_exclude = 10.0.0.0/8", "IKEv1 is not supported"),
        ("1 = 10.3.0.1", "not the number of an attribute that can be set"),
        ("0 = x", "not the number of an attribute that can be set"),
        ("99999 = x", "not the number of an attribute that can be set"),
        ("999999999999999999999 = x", "not the number of an attribute that can be set"),
        ("dsn = 1.2.3.4", "unknown key, did you mean 'dns'?"),
    ],
)
def test_misuse(line: str, message: str) -> None:
    extra = "" if line.startswith("addrs") else "addrs = 10.3.0.0/24"
    error = refuse(f"pools {{\n p {{\n{line}\n{extra}\n }}\n}}")
    assert (error.line, error.key) == (3, f"pools.p.{line.split()[0]}")
    assert message in error.message


def test_needs_addresses() -> None:
    error = refuse("pools {\n p {\n dns = 1.2.3.4\n }\n}")
    assert (error.line, error.key) == (2, "pools.p.addrs")


@pytest.mark.parametrize(
    ("one", "two"),
    [("10.3.0.0/24", "10.3.0.128/25"), ("10.3.0.128/25", "10.3.0.0/24"), ("fd00::/64", "fd00::1-fd00::1")],
)
def test_overlap(one: str, two: str) -> None:
    error = refuse(f"pools {{\n a {{\n  addrs = {one}\n }}\n b {{\n  addrs = {two}\n }}\n}}")
    assert str(error) == "f:6: pools.b.addrs: overlaps with pools.a.addrs"


def test_neighbours() -> None:
    text = "pools {\n a {\n addrs = 10.3.0.0/25\n }\n b {\n addrs = 10.3.0.128/25\n }\n c {\n addrs = ::a03:1\n }\n}"
    assert [pool.name for pool in load_text(text).pools] == ["a", "b", "c"]


def test_misplaced() -> None:
    assert refuse("pools {\n addrs = 10.3.0.0/24\n}").key == "pools.addrs"
    assert refuse("pools {\n a {\n b {\n }\n }\n}").key == "pools.a.b"
