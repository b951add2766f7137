"""Traffic selectors (RFC 4301 section 4.4.1.1, RFC 7296 section 3.13): text form, and what one holds.

Text is what charon logs: ``10.0.0.0/8``, ``10.0.0.1..10.0.0.9``, ``10.1.0.0/16[tcp/http]``, ``::/0[udp/1000-2000]``,
``10.0.0.0/8[icmp/8]``, ``10.0.0.0/8[icmp/3(4)]``, ``0.0.0.0/0[tcp/OPAQUE]``. ``ipsec.config.selector`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, summarize_address_range

from ipsec.errors import ConfigError

IpAddress = IPv4Address | IPv6Address

ICMP, TCP, UDP, ICMPV6, SCTP, UDPLITE, DCCP, MH = 1, 6, 17, 58, 132, 136, 33, 135
PORT_PROTOCOLS = frozenset((TCP, UDP, SCTP, UDPLITE, DCCP))
TYPE_PROTOCOLS = frozenset((ICMP, ICMPV6, MH))
"protocols whose selector is a message type (and code) instead of ports (RFC 4301 section 4.4.1.1)"

#: names as /etc/protocols has them, for what is worth reading in a log
PROTOCOL_NAMES = {
    ICMP: "icmp",
    4: "ipencap",
    TCP: "tcp",
    UDP: "udp",
    DCCP: "dccp",
    41: "ipv6",
    47: "gre",
    50: "esp",
    51: "ah",
    ICMPV6: "ipv6-icmp",
    89: "ospf",
    112: "vrrp",
    SCTP: "sctp",
    MH: "mobility-header",
    UDPLITE: "udplite",
}

#: names as /etc/services has them
SERVICE_NAMES = {
    22: "ssh",
    25: "smtp",
    53: "domain",
    80: "http",
    123: "ntp",
    179: "bgp",
    389: "ldap",
    443: "https",
}

ANY_PORT = (0, 65535)
OPAQUE = (65535, 0)
"start above end: the port is not available (RFC 7296 section 3.13.1), as in non-initial fragments"


@dataclass(frozen=True)
class TrafficSelector:
    """One side of a selector: an address range, a protocol and a port range.

    ``ports`` is inclusive. For ICMP, ICMPv6 and Mobility Header it holds ``type << 8 | code`` of RFC 7296
    section 3.13.1 and is judged on every side that names one; ``OPAQUE`` matches only packets whose ports are hidden.
    """

    start: IpAddress
    end: IpAddress
    protocol: int = 0
    "0 is any"
    ports: tuple[int, int] = ANY_PORT

    def __post_init__(self) -> None:
        if self.start.version != self.end.version or int(self.start) > int(self.end):
            raise ConfigError(f"address range {self.start}-{self.end} is empty or mixes families")
        if not 0 <= self.protocol <= 255:
            raise ConfigError(f"protocol {self.protocol} is not in 0..255")
        if self.ports != OPAQUE and not 0 <= self.ports[0] <= self.ports[1] <= 65535:
            raise ConfigError(f"port range {self.ports[0]}-{self.ports[1]} is empty or out of range")

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.start.version

    def covers_address(self, address: IpAddress) -> bool:
        """Whether ``address`` is in the range."""
        return address.version == self.version and int(self.start) <= int(address) <= int(self.end)

    def covers_port(self, port: int | None) -> bool:
        """Whether ``port`` is in the range; None, not available, is in ANY and OPAQUE only (RFC 4301, 4.4.1.1)."""
        if self.ports == ANY_PORT:
            return True
        if self.ports == OPAQUE:
            return port is None
        return port is not None and self.ports[0] <= port <= self.ports[1]

    def networks(self) -> list[str]:
        """The address range as CIDR prefixes."""
        first, size = int(self.start), int(self.end) - int(self.start) + 1
        if not size & (size - 1) and not first & (size - 1):
            # one prefix, as nearly always
            return [f"{self.start}/{self.start.max_prefixlen + 1 - size.bit_length()}"]
        if isinstance(self.start, IPv4Address) and isinstance(self.end, IPv4Address):
            return [str(n) for n in summarize_address_range(self.start, self.end)]
        return [str(n) for n in summarize_address_range(IPv6Address(self.start), IPv6Address(self.end))]

    def contains(self, other: TrafficSelector) -> bool:
        """Whether every packet that ``other`` lets through, this one does too."""
        if not (self.covers_address(other.start) and self.covers_address(other.end)):
            return False
        if self.protocol not in (0, other.protocol):
            return False
        if self.ports == ANY_PORT or OPAQUE in (self.ports, other.ports):
            return self.ports in (ANY_PORT, other.ports)
        return self.ports[0] <= other.ports[0] and other.ports[1] <= self.ports[1]

    def __str__(self) -> str:
        prefixes = self.networks()
        text = prefixes[0] if len(prefixes) == 1 else f"{self.start}..{self.end}"
        if not self.protocol and self.ports == ANY_PORT:
            return text
        protocol = PROTOCOL_NAMES.get(self.protocol, str(self.protocol))
        if self.ports == ANY_PORT:
            return f"{text}[{protocol}]"
        return f"{text}[{protocol}/{self._ports_text()}]"

    def _ports_text(self) -> str:
        if self.ports == OPAQUE:
            return "OPAQUE"
        low, high = self.ports
        if self.protocol in TYPE_PROTOCOLS:
            # as charon: a code of 0 is not shown, all of type 8 are 8-8(255)
            low_text, high_text = (f"{port >> 8}" + (f"({port & 0xFF})" if port & 0xFF else "") for port in self.ports)
        else:
            low_text, high_text = (
                SERVICE_NAMES.get(port, str(port)) if low == high else str(port) for port in self.ports
            )
        return low_text if low_text == high_text else f"{low_text}-{high_text}"


@dataclass(frozen=True)
class SelectorPair:
    """A local and a remote selector that go together. Families agree; protocols agree, or one of them is any."""

    local: TrafficSelector
    remote: TrafficSelector

    def __post_init__(self) -> None:
        if self.local.version != self.remote.version:
            raise ConfigError(f"{self.local} and {self.remote} are of different families")
        if self.local.protocol and self.remote.protocol and self.local.protocol != self.remote.protocol:
            raise ConfigError(f"{self.local} and {self.remote} have different protocols")

    @property
    def protocol(self) -> int:
        """The protocol that both sides mean, 0 for any."""
        return self.local.protocol or self.remote.protocol

    def contains(self, other: SelectorPair) -> bool:
        """Whether every packet that ``other`` means, this one means too."""
        # a protocol on one side holds for the packet, hence for both
        return (
            self.protocol in (0, other.protocol)
            and replace(self.local, protocol=0).contains(replace(other.local, protocol=0))
            and replace(self.remote, protocol=0).contains(replace(other.remote, protocol=0))
        )

    def __str__(self) -> str:
        return f"{self.local} === {self.remote}"


def agreeing_pairs(local: Iterable[TrafficSelector], remote: Iterable[TrafficSelector]) -> Iterator[SelectorPair]:
    """Every local selector with every remote one of the same family whose protocol does not contradict it."""
    remote = tuple(remote)
    for ours in local:
        for theirs in remote:
            if ours.version == theirs.version and (
                0 in (ours.protocol, theirs.protocol) or ours.protocol == theirs.protocol
            ):
                yield SelectorPair(ours, theirs)
