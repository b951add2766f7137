"""Traffic selectors as swanctl.conf writes them: ``dynamic[tcp/https]``, ``10.0.0.1-10.0.0.9``, ``::/0[icmp/8]``.

Names come from the tables of ``ipsec.wire.selector`` and from /etc/protocols and /etc/services.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from ipsec.config.values import IpAddress, quoted
from ipsec.errors import ConfigError
from ipsec.wire.selector import (
    ANY_PORT,
    ICMP,
    ICMPV6,
    MH,
    OPAQUE,
    PORT_PROTOCOLS,
    PROTOCOL_NAMES,
    SERVICE_NAMES,
    TCP,
    TYPE_PROTOCOLS,
    UDP,
    SelectorPair,
    TrafficSelector,
    agreeing_pairs,
)

_FORM = re.compile(r"([^\[\]\s]+)(?: *\[([^\[\]\s/]*)(?:/([^\[\]\s]*))?\])?")
_PROTOCOLS = {name: number for number, name in PROTOCOL_NAMES.items()} | {"icmpv6": ICMPV6, "icmp6": ICMPV6, "mh": MH}
_PROTOCOLS |= {"any": 0, "": 0}
_SERVICES = {name: number for number, name in SERVICE_NAMES.items()}


def parse_selector(text: str, dynamic: IpAddress | None = None, *, whole_types: bool = False) -> TrafficSelector:
    """A selector from its text; ``dynamic`` is what that word means. ConfigError says which part is wrong.

    ``icmp/8`` is what charon sends to its peers for it, type 8 with code 0 alone. ``whole_types``: with all its codes,
    as charon has it where no peer is told, in the policies of the kernel.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{quoted(text)} is not a traffic selector such as 10.1.0.0/16 or 10.1.0.0/16[tcp/https]")
    start, end = _parse_range(match[1], dynamic)
    if match[2] is None:
        return TrafficSelector(start, end)
    protocol = _parse_protocol(match[2])
    ports = _parse_ports(match[3], protocol, whole_types) if match[3] else ANY_PORT
    return TrafficSelector(start, end, protocol, ports)


def selector_pairs(local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]) -> tuple[SelectorPair, ...]:
    """Every local selector with every remote one of the same family whose protocol does not contradict it.

    ConfigError if that leaves nothing.
    """
    pairs = tuple(agreeing_pairs(local, remote))
    if not pairs:
        raise ConfigError("no selector of local_ts goes with one of remote_ts: families or protocols differ")
    return pairs


def _parse_range(text: str, dynamic: IpAddress | None) -> tuple[IpAddress, IpAddress]:
    if text.lower() == "dynamic":
        if dynamic is None:
            raise ConfigError("'dynamic' has no meaning here, write an address")
        return dynamic, dynamic
    if "%" in text:
        raise ConfigError(f"{quoted(text)}: an address with a zone cannot be a selector")
    # charon reads a-b and prints a..b
    low, dash, high = text.replace("..", "-", 1).partition("-")
    try:
        if dash:
            start, end = ip_address(low), ip_address(high)
        else:
            network = ip_network(text, strict=False)
            start, end = network[0], network[-1]
    except ValueError:
        raise ConfigError(f"{quoted(text)} is not an address, prefix or range") from None
    return start, end


def _parse_protocol(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255:
        return int(text)
    name = text.lower()
    if name in _PROTOCOLS:
        return _PROTOCOLS[name]
    try:
        return socket.getprotobyname(name)
    except (OSError, ValueError):
        raise ConfigError(f"{quoted(text)} is not a protocol") from None


def _parse_ports(text: str, protocol: int, whole_types: bool) -> tuple[int, int]:
    if not protocol:
        if text.lower() == "any":
            return ANY_PORT
        # RFC 7296 section 3.13.1: it could not be told to the peer, though charon does. And it would mean ICMP types
        raise ConfigError("ports need a protocol: write one selector with tcp and one with udp")
    if protocol not in PORT_PROTOCOLS | TYPE_PROTOCOLS:
        # RFC 4301 section 4.4.1.1: only these show ports, types or codes to match
        raise ConfigError(f"protocol {PROTOCOL_NAMES.get(protocol, protocol)} has no ports")
    if text.lower() == "any":
        return ANY_PORT
    if text.lower() == "opaque":
        return OPAQUE
    bounds = _parse_port(text, protocol, whole_types)
    if bounds is None and "-" in text:
        low, high = (_parse_port(part, protocol, whole_types) for part in text.split("-", 1))
        if low is not None and high is not None:
            bounds = low[0], high[1]
    if bounds is None:
        raise ConfigError(f"{quoted(text)} is not a port or range of ports")
    if bounds[0] > bounds[1]:
        raise ConfigError(f"the range {quoted(text)} is empty")
    return bounds


def _parse_port(text: str, protocol: int, whole_types: bool) -> tuple[int, int] | None:
    """Lowest and highest number that ``text`` stands for, None if it stands for nothing."""
    match = re.fullmatch(r"([0-9]{1,5})(?:\(([0-9]{1,3})\))?", text)
    if match and match[2] is None:
        number = int(match[1])
        if number > 65535:
            return None
        # swanctl.conf: below 256 it is a type, above that type and code
        if protocol in TYPE_PROTOCOLS and number < 256:
            return number << 8, number << 8 | (255 if whole_types else 0)
        return number, number
    if match:
        kind, code = int(match[1]), int(match[2])
        if protocol not in (ICMP, ICMPV6, MH) or kind > 255 or code > 255:
            return None
        return kind << 8 | code, kind << 8 | code
    if protocol in TYPE_PROTOCOLS:
        return None
    if text.lower() in _SERVICES:
        return (_SERVICES[text.lower()],) * 2
    try:
        port = socket.getservbyname(text, {TCP: "tcp", UDP: "udp"}.get(protocol, "sctp"))
    except (OSError, ValueError):
        return None
    return port, port
