"""What the daemon asks of whatever does IPsec for it (strongSwan's kernel_ipsec_t).

The calls return at once; what happens later arrives as events. All of it belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple, Protocol

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Lifetime, Policy, SaParams
from ipsec.wire.selector import TrafficSelector

IpAddress = IPv4Address | IPv6Address
IpInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Acquire:
    """A packet met a PROTECT policy without an SA (RFC 4301 section 5.1).

    The backend keeps the newest few packets of each such policy and sends them once an outbound SA with that reqid is
    added. While packets keep coming and no SA has, the event repeats every ten seconds for a policy, and with the next
    packet after ``Backend.rearm``.
    """

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


class Datagram(NamedTuple):
    """An IKE datagram; the non-ESP marker (RFC 3948 section 2.2) of those that came to the ESP port is cut off.

    To answer, swap the ends: ``send_datagram(answer, local, local_port, source, port)``.
    """

    data: bytes
    "not empty; nothing in it was looked at"
    source: IpAddress
    port: int
    local: IpAddress
    "the address it was sent to, with wildcard sockets too"
    local_port: int
    "the IKE port or the ESP port of this host, as bound: tells whether a marker was cut off"


class Backend(Protocol):
    """One way of doing IPsec."""

    async def start(self) -> None:
        """Acquire devices, sockets and routes, all or nothing. BackendError says what is missing and how to mend it."""

    async def stop(self) -> None:
        """Release everything and remove what ``start`` added. May be called in any state, more than once."""

    def get_spi(self) -> int:
        """A free SPI for an inbound SA.

        A peer that is told may use it before we have its answer (RFC 7296 section 2.8): the few packets that come in
        between are kept until ``add_sa``, or for some seconds.
        """

    def free_spi(self, spi: int) -> None:
        """An SPI of ``get_spi`` that no SA was added with is not needed any more."""

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if that cannot be.

        With an outbound SA, packets that waited for its reqid are sent, and ACQUIRE of its policies may come again.
        Of several outbound SAs with one reqid the one added last is used.
        """

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses; keys, counters and replay window stay (RFC 4555, RFC 7296 section 2.23).

        ``encap`` may appear, change or vanish; the family may change. SaError, with nothing changed, for what
        ``add_sa`` would refuse: no such socket, protocol 50 switched off, another local UDP port than that in use.
        """

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

    def rearm(self, policy: int) -> None:
        """Let the next packet without an SA raise ACQUIRE at once: the negotiation for it failed, or was given up.

        A policy that is gone meanwhile is ignored.
        """

    async def sync_routes(self) -> None:
        """Return when routes are in line with the SAs and policies installed at the time of the call.

        Nobody has to call it: changes are carried out by themselves, those of 20 ms together. A caller that has to know
        that routes are there, before it reports a tunnel as up, waits for this. BackendError says what the kernel
        refused first; the rest is done all the same, and what was refused is tried again with the next change. Without
        a caller it is logged.
        """

    def begun(self, awaited: Collection[TrafficSelector | None] = ()) -> int:
        """All that the start wants has been added, but for policies whose remote ends are ``awaited``.

        Until then what a killed predecessor left closed stays so; from now on it opens if nobody wants it closed, and
        nothing awaited leads there. None is one host, nobody knows which. Whoever awaits something calls this again
        when it is less; how many networks stay closed for it.
        """

    def try_sync_routes(self) -> bool:
        """Do what ``sync_routes`` does within this call, if that is little; False: it was not, or something failed.

        The MTU may follow later where it grows.
        """

    async def add_address(self, address: IpInterface) -> None:
        """Give the device an address (a virtual IP of ours, RFC 7296 section 2.19). BackendError if the kernel refuses.

        From then on it is the source of routes whose policies have it as their local selector. It goes with ``stop``
        or ``del_address``, and what a killed daemon left of them with the next start. Counted: as many
        ``del_address`` undo it.
        """

    def try_add_address(self, address: IpInterface) -> bool:
        """Do what ``add_address`` does within this call, so that who hears of the tunnel can use it; False: it was not
        done."""

    async def del_address(self, address: IpInterface) -> None:
        """Take an address away that ``add_address`` gave; one that is not there is ignored."""

    @property
    def ports(self) -> dict[int, int]:
        """Local UDP port for ESP and for IKE behind a marker, by IP version; versions without sockets are missing."""

    @property
    def ike_ports(self) -> dict[int, int]:
        """Local UDP port for IKE without a marker, by IP version; empty without such sockets."""

    def send_datagram(
        self,
        data: bytes,
        local: IpAddress | None,
        local_port: int,
        remote: IpAddress,
        remote_port: int,
        *,
        dscp: int = 0,
    ) -> None:
        """Send IKE from ``local``, or from the address the kernel picks for None or the unspecified address.

        ``local_port`` chooses the socket: the one in ``ports`` puts the non-ESP marker (RFC 3948 section 2.2) in front,
        any other means the IKE socket, which does not. Never blocks, never raises: what cannot be sent is counted
        (``ike_tx_errors`` in ``counters``) and logged, at most once a second. Retransmission is IKE's.
        """

    def send_keepalive(self, local: IpAddress | None, local_port: int, remote: IpAddress, remote_port: int) -> None:
        """Send a NAT keepalive: the octet 0xFF without a marker (RFC 3948 section 2.3). Like ``send_datagram``."""

    def counters(self) -> dict[str, int]:
        """Counters since the start, by name: packets and octets of the data path, ``ike_...`` of the IKE datagrams."""

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason."""

    def on_event(self, handler: Callable[[BackendEvent], None]) -> None:
        """Who hears of events, called in the event loop."""

    def on_datagram(self, handler: Callable[[Datagram], None]) -> None:
        """Who gets IKE datagrams, called in the event loop.

        At most 64 in one turn of the loop from each socket, so that timers and commands have theirs in a flood.
        """
