"""``pools { }``: virtual addresses that peers get, and the attributes that go with them (RFC 7296 section 3.15).

``addrs`` is one network or one range ``a-b``. Of an IPv4 network its own address and the broadcast address are left
out, of an IPv6 network the subnet-router anycast address (RFC 4291 section 2.6.1); a host address with a prefix
length, ``10.3.0.100/24``, begins the pool there. Every other key is an attribute: a name of ``ATTRIBUTES`` or a number,
with a list of values.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_interface, ip_network
from itertools import pairwise

from ipsec.config.grammar import Section
from ipsec.config.refused import IKEV1, Parser, refused
from ipsec.config.values import IpAddress, error_at, list_of, parse_address, quoted, read_keys
from ipsec.errors import ConfigError
from ipsec.ike.config import RADIUS, PoolConfig

#: name of swanctl.conf -> numbers for IPv4 and IPv6 values; None where no such attribute is defined
ATTRIBUTES: dict[str, tuple[int, int | None]] = {
    "dns": (3, 10),
    "nbns": (4, 11),
    "dhcp": (6, 12),
    "netmask": (2, None),
    "server": (23456, 23457),
    "subnet": (13, 15),
    "p_cscf": (20, 21),
}

#: attributes of Cisco Unity, which has IKEv1 clients only
_UNITY = ("split_include", "split_exclude")

_SUBNETS = (13, 15)
#: assigned by the exchange itself: the virtual address and its lifetime
_RESERVED = (0, 1, 8)

Value = tuple[int, bytes]


def read_pools(top: Section) -> tuple[PoolConfig, ...]:
    """Every pool of ``pools { }``. ConfigError names the key; also if two of them share addresses."""
    read_keys(top, {}, sections=top.sections)
    pools = tuple(read_pool(section, name) for name, section in top.sections.items())
    by_start = sorted(pools, key=lambda pool: (pool.first.version, int(pool.first)))
    for pool, after in pairwise(by_start):
        if pool.first.version == after.first.version and int(pool.last) >= int(after.first):
            # tell it where the later of the two stands
            names = [name for name in top.sections if name in (pool.name, after.name)]
            why = f"overlaps with {top.sections[names[0]].child_path('addrs')}"
            raise error_at(top.sections[names[1]], "addrs", why)
    return pools


def read_pool(section: Section, name: str) -> PoolConfig:
    """The pool that ``pools.<name> { }`` describes."""
    parsers: dict[str, Parser] = {"addrs": _parse_range, **dict.fromkeys(ATTRIBUTES, list_of(str))}
    parsers |= dict.fromkeys(_UNITY, refused(f"this attribute is Cisco Unity's, {IKEV1}"))
    parsers |= {key: list_of(str) for key in section.values if key.isascii() and key.isdigit()}
    values = read_keys(section, parsers)
    if name == RADIUS:
        raise error_at(section, "addrs", "'radius' is what RADIUS servers grant, call the pool something else")
    if "addrs" not in values:
        raise error_at(section, "addrs", "a pool needs this key: a network or a range of addresses")
    first, last = values.pop("addrs")
    attributes: list[Value] = []
    for key, texts in values.items():
        try:
            attributes += [_numeric(key, text) if key.isdigit() else _named(key, text) for text in texts]
        except ConfigError as error:
            raise error_at(section, key, error.message) from None
    return PoolConfig(name, first, last, tuple(attributes))


def _parse_range(text: str) -> tuple[IpAddress, IpAddress]:
    """First and last address that may be given to somebody."""
    text = text.strip()
    low, dash, high = text.partition("-")
    if dash:
        start, end = parse_address(low.strip()), parse_address(high.strip())
        if start.version != end.version or int(start) > int(end):
            raise ConfigError(f"the range {quoted(text)} is empty or mixes families")
        return start, end
    try:
        interface = ip_interface(text)
    except ValueError:
        raise ConfigError(f"{quoted(text)} is not a network such as 10.3.0.0/24, or a range a-b") from None
    network, first = interface.network, interface.ip
    last = network[-1]
    if "%" in text:
        raise ConfigError(f"{quoted(text)}: an address with a zone cannot be assigned")
    # networks of one or two addresses have neither (RFC 3021, RFC 6164)
    if network.num_addresses > 2:
        if first == network[0]:
            first = network[1]
        if isinstance(first, IPv4Address):
            last = network[-2]
    if int(first) > int(last):
        raise ConfigError(f"{quoted(text)} leaves no address to assign")
    return first, last


def _named(key: str, text: str) -> Value:
    """An attribute by its name: addresses, and networks for ``subnet``."""
    four, six = ATTRIBUTES[key]
    if four in _SUBNETS:
        version, value = _network(text)
        if version == 0:
            raise ConfigError(f"{quoted(text)} is not a network such as 10.1.0.0/16")
    else:
        address = parse_address(text)
        version, value = address.version, address.packed
    number = four if version == 4 else six
    if number is None:
        raise ConfigError(f"there is no {key} for IPv6")
    return number, value


def _numeric(key: str, text: str) -> Value:
    """An attribute by its number; the value is an address, a network, or else text as it is."""
    number = int(key)
    if len(key) > 5 or number > 0x7FFF or number in _RESERVED:
        raise ConfigError("not the number of an attribute that can be set here: 2..32767 without 8")
    try:
        return number, parse_address(text).packed
    except ConfigError:
        version, value = _network(text) if "/" in text else (0, b"")
        return number, value if version else text.encode()


def _network(text: str) -> tuple[int, bytes]:
    """Version and octets of INTERNAL_IP4_SUBNET or INTERNAL_IP6_SUBNET; version 0 if it is not a network."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return 0, b""
    # RFC 7296 section 3.15.1: address and mask of four octets each; section 3.15.3: address and prefix length
    if network.version == 4:
        return 4, network.network_address.packed + network.netmask.packed
    return 6, network.network_address.packed + bytes((network.prefixlen,))
