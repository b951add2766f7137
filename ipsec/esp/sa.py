"""What describes a Security Association and a policy: values shared by the reference and the compiled data path.

RFC 4301 section 4.4.2.1 (SAD entries) and 4.4.1.2 (SPD entries), for ESP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from ipsec.crypto.suites import EspSuite
from ipsec.errors import SaError
from ipsec.wire.selector import SelectorPair

IpAddress = IPv4Address | IPv6Address

REPLAY_WINDOW_MAX = 65536
REPLAY_WINDOW_MIN = 64


class Direction(IntEnum):
    """Which way an SA protects; an SA is for one direction (RFC 4301 section 4.1)."""

    IN = 0
    OUT = 1


class Mode(IntEnum):
    """RFC 4303 section 3.1."""

    TUNNEL = 0
    TRANSPORT = 1


class DfPolicy(IntEnum):
    """DF of the outer IPv4 header (RFC 4301 section 8.1)."""

    COPY = 0
    SET = 1
    CLEAR = 2


class DscpPolicy(IntEnum):
    """Which way DSCP is copied between inner and outer header (swanctl ``copy_dscp``). Bits: 1 = out, 2 = in."""

    NO = 0
    OUT = 1
    IN = 2
    YES = 3


class Action(IntEnum):
    """What a policy does (RFC 4301 section 4.4.1)."""

    PROTECT = 0
    BYPASS = 1
    DISCARD = 2


@dataclass(frozen=True)
class Lifetime:
    """Limits by volume; 0 is none. Soft raises an event once, hard stops the SA exactly."""

    bytes_soft: int = 0
    bytes_hard: int = 0
    packets_soft: int = 0
    packets_hard: int = 0


@dataclass(frozen=True)
class SaParams:
    """One Security Association. Keys never appear in ``repr``.

    ``local`` and ``remote`` are the outer addresses from this host's point of view for either direction.
    """

    spi: int
    "256 .. 2^32-1 (RFC 4303 section 2.1)"
    direction: Direction
    suite: EspSuite
    local: IpAddress
    remote: IpAddress
    encr_key: bytes = field(repr=False)
    "cipher key followed by the salt"
    integ_key: bytes = field(default=b"", repr=False)
    mode: Mode = Mode.TUNNEL
    encap: tuple[int, int] | None = None
    "UDP encapsulation (RFC 3948): (local port, remote port); None is IP protocol 50"
    selectors: tuple[SelectorPair, ...] = ()
    "inbound: what decrypted packets must match, seen as (local, remote); () lets nothing but ANY pass: everything"
    esn: bool = False
    replay_window: int = 1024
    "packets, a multiple of 64 in 64..65536; 0 turns the check off"
    df: DfPolicy = DfPolicy.SET
    copy_dscp: DscpPolicy = DscpPolicy.OUT
    copy_ecn: bool = True
    tfc: int = 0
    "outbound, tunnel mode: pad inner packets up to this many octets (RFC 4303 section 2.7); -1 pads to the MTU"
    path_mtu: int = 1500
    "octets of the largest outer IP packet"
    lifetime: Lifetime = Lifetime()
    follow_peer: bool = True
    "inbound: learn the peer's address and port from authenticated packets (RFC 3948 section 4, RFC 7296 section 2.23)"
    reqid: int = 0
    "ties SAs to policies; the outbound SA added last for a reqid carries its traffic"
    icmp: bool = False
    "inbound: let ICMP errors pass whose quoted packet, reversed, matches the selectors (RFC 4301 section 6.2)"
    initial_seq: int = 0
    "last sequence number used (outbound) or highest seen (inbound); for tests and takeover"

    def __post_init__(self) -> None:
        if not 256 <= self.spi <= 0xFFFFFFFF:
            raise SaError(f"SPI 0x{self.spi:08x} is not in 0x100..0xffffffff (RFC 4303 section 2.1)")
        self.suite.check_keys(self.encr_key, self.integ_key)
        if self.local.version != self.remote.version:
            raise SaError(f"SA 0x{self.spi:08x}: {self.local} and {self.remote} are of different families")
        if self.mode is Mode.TRANSPORT and self.local.is_unspecified:
            raise SaError(f"SA 0x{self.spi:08x}: transport mode needs a local address, {self.local} is none")
        window = self.replay_window
        if window and (window % 64 or not REPLAY_WINDOW_MIN <= window <= REPLAY_WINDOW_MAX):
            raise SaError(f"SA 0x{self.spi:08x}: replay window {window} is not 0 or a multiple of 64 in 64..65536")
        if self.encap is not None and not all(0 < port < 65536 for port in self.encap):
            raise SaError(f"SA 0x{self.spi:08x}: UDP ports {self.encap} are not in 1..65535")
        if not 576 <= self.path_mtu <= 65535:
            raise SaError(f"SA 0x{self.spi:08x}: path MTU {self.path_mtu} is not in 576..65535")
        if self.tfc < -1 or self.tfc > 65535:
            raise SaError(f"SA 0x{self.spi:08x}: TFC padding {self.tfc} is not in -1..65535")
        if not 0 <= self.initial_seq < 1 << (64 if self.esn else 32):
            raise SaError(f"SA 0x{self.spi:08x}: sequence number {self.initial_seq} does not fit the SA")


@dataclass(frozen=True)
class Policy:
    """One SPD entry. Order decides: the first policy that matches is the one (RFC 4301 section 4.4.1)."""

    action: Action
    selectors: tuple[SelectorPair, ...]
    "a packet matches if it matches any of the pairs, seen as (local, remote)"
    reqid: int = 0
    "PROTECT: which SAs carry the traffic"
    priority: int = 0
    "smaller comes first; equal priorities keep the order in which they were added"
    icmp: bool = False
    "PROTECT: also ICMP errors that match no policy but quote a packet which, reversed, this one is for"
