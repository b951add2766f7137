"""What the daemon asks of whatever does IPsec for it (strongSwan's kernel_ipsec_t).

The calls return at once; what happens later arrives as events. All of it belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Lifetime, Policy, SaParams

IpAddress = IPv4Address | IPv6Address


class Feature(Flag):
    """What a backend can do; the daemon negotiates no more than that."""

    NONE = 0
    ESN = auto()
    "64-bit sequence numbers (RFC 4303 section 2.2.1)"
    TRANSPORT = auto()
    "transport mode"
    RAW_ESP = auto()
    "IP protocol 50; without it UDP encapsulation must be forced"
    IMPLICIT_IV = auto()
    "RFC 8750"
    UPDATE_SA = auto()
    "SAs move to other addresses in place (RFC 4555)"
    EXCLUDE_ROUTES = auto()
    "peers inside a protected network are kept out of the tunnel by the backend itself"
    BYPASS = auto()
    "BYPASS policies carry traffic"


@dataclass(frozen=True)
class Acquire:
    """A packet met a PROTECT policy without an SA."""

    policy: int
    reqid: int


@dataclass(frozen=True)
class Expire:
    """A lifetime of an SA ended. Soft asks for a new SA, hard means that this one carries nothing more."""

    sa: int
    hard: bool
    reason: str
    "``volume``, ``sequence`` or ``time``"


@dataclass(frozen=True)
class Mapping:
    """An authenticated packet of an inbound SA came from a new address or port.

    The backend has followed by then, also with the outbound SAs of the same reqid that led to the old place.
    """

    sa: int
    address: IpAddress
    port: int
    "0 for raw ESP"


@dataclass(frozen=True)
class DeviceLost:
    """The device is gone and could not be made again; the backend has stopped carrying traffic."""

    error: str


BackendEvent = Acquire | Expire | Mapping | DeviceLost


@dataclass(frozen=True)
class Datagram:
    """A datagram on an ESP port that is not ESP: IKE, its non-ESP marker (RFC 3948 section 2.2) cut off."""

    data: bytes
    source: IpAddress
    port: int
    local: IpAddress | None
    "the address it was sent to, where known"
    fd: int
    "of the socket it came through, to answer from the same one"


class Backend(Protocol):
    """One way of doing IPsec."""

    @property
    def features(self) -> Feature:
        """What this backend can do, known once it has started."""

    async def start(self) -> None:
        """Acquire devices, sockets and routes, all or nothing. BackendError says what is missing and how to mend it."""

    async def stop(self) -> None:
        """Release everything and remove what ``start`` added. May be called in any state, more than once."""

    def get_spi(self) -> int:
        """A free SPI for an inbound SA."""

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if that cannot be."""

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses."""

    def set_lifetime(self, sa: int, lifetime: Lifetime) -> None:
        """Other limits by volume, counted since the SA was added; both lifetime events may come again."""

    def query_sa(self, sa: int) -> SaStats:
        """Counters of an SA."""

    def del_sa(self, sa: int) -> None:
        """Remove an SA and wipe its keys."""

    def add_policy(self, policy: Policy) -> int:
        """Add a policy; its id."""

    def set_policies(self, policies: Sequence[Policy]) -> list[int]:
        """Replace all policies at once."""

    def del_policy(self, policy: int) -> None:
        """Remove a policy."""

    async def sync_routes(self) -> None:
        """Bring routes in line with the SAs and policies that are installed now."""

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason."""

    def on_event(self, handler: Callable[[BackendEvent], None]) -> None:
        """Who hears of events, called in the event loop."""

    def on_datagram(self, handler: Callable[[Datagram], None]) -> None:
        """Who gets datagrams that are not ESP."""
