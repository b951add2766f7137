"""What the IKEv2 engine tells its caller: values, in the order in which they have to be acted upon.

An inbound SA must be in place before the datagram that makes the peer use it is sent, so a caller handles all events
first, then sends ``datagrams_to_send()``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from ipsec.crypto.suites import EspSuite

if TYPE_CHECKING:
    from ipsec.crypto.revocation import Source
    from ipsec.ike.child_sa import ChildSa
    from ipsec.ike.config import ChildConfig
    from ipsec.ike.failure import Cause, Problem
    from ipsec.ike.sa import IkeSa

IpAddress = IPv4Address | IPv6Address


class Path(NamedTuple):
    """Both ends of a datagram's way, from our point of view."""

    local: IpAddress
    local_port: int
    remote: IpAddress
    remote_port: int

    def __str__(self) -> str:
        return f"{self.local}[{self.local_port}]...{self.remote}[{self.remote_port}]"


class Outgoing(NamedTuple):
    """A datagram to send. Whoever sends puts the non-ESP marker in front where the port needs it (RFC 3948)."""

    data: bytes
    "one octet 0xff is a NAT keepalive, which has no marker"
    path: Path
    dscp: int = 0
    "of the IP header (RFC 2474)"


KEEPALIVE = b"\xff"


@dataclass(frozen=True)
class ChildKeys:
    """Keys of one direction, as ``ipsec.esp.sa.SaParams`` wants them."""

    encr: bytes = field(repr=False)
    integ: bytes = field(repr=False)


@dataclass(frozen=True)
class InstallChild:
    """Put SAs into the data path. If that fails, call ``child_failed``.

    The first of a CHILD_SA has ``inbound`` and is to be followed by its policies; a responder of a rekeying gets
    ``outbound`` later, when the initiator is known to be ready (RFC 7296 section 2.8).
    """

    child: ChildSa
    suite: EspSuite
    esn: bool
    inbound: ChildKeys | None
    outbound: ChildKeys | None
    path: Path
    encap: bool


@dataclass(frozen=True)
class RemoveChild:
    """Take SAs out of the data path; with the last of a reqid its policies go as well, unless a trap keeps them."""

    child: ChildSa
    inbound: bool
    outbound: bool


@dataclass(frozen=True)
class MoveChild:
    """The outer addresses changed (RFC 4555, RFC 7296 section 2.23)."""

    child: ChildSa
    path: Path
    encap: bool


@dataclass(frozen=True)
class ChildUp:
    """A CHILD_SA carries traffic. ``replaces`` is the one it was made for by rekeying, unless that has gone down."""

    child: ChildSa
    replaces: ChildSa | None = None


@dataclass(frozen=True)
class ChildDown:
    """A CHILD_SA that was up, and was not replaced, is gone."""

    child: ChildSa
    reason: str


@dataclass(frozen=True)
class IkeUp:
    """An IKE_SA is established: both ends are authenticated."""

    sa: IkeSa


@dataclass(frozen=True)
class IkeDown:
    """An IKE_SA is gone. ``established`` tells whether it ever was up, ``cause`` what kind of failure it was."""

    sa: IkeSa
    reason: str
    established: bool
    cause: Cause | None = None


@dataclass(frozen=True)
class IkeRekeyed:
    """A new IKE_SA took over the CHILD_SAs of an old one."""

    old: IkeSa
    new: IkeSa


@dataclass(frozen=True)
class IkeMoved:
    """The path of an IKE_SA changed."""

    sa: IkeSa
    old: Path


@dataclass(frozen=True)
class AddressesAssigned:
    """The peer gave us virtual addresses (RFC 7296 section 2.19)."""

    sa: IkeSa
    addresses: tuple[IpAddress, ...]
    dns: tuple[IpAddress, ...]


@dataclass(frozen=True)
class AddressesReleased:
    """Virtual addresses are ours no longer."""

    sa: IkeSa
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True)
class RevocationNeeded:
    """The peer's chain is good but for its revocation status: fetch what the certificates name, then call
    ``status_known`` with the same ticket. Comes only for chains that end in a trust anchor of ours."""

    ticket: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class EapAnswerNeeded:
    """A packet of a peer for an EAP server that is somebody else; call ``eap_answered`` with what that says.

    All of one IKE_SA are one conversation, which ends with a verdict, or with IkeDown.
    """

    sa: IkeSa
    identity: bytes
    "who the peer says it is"
    packet: bytes = field(repr=False)


@dataclass(frozen=True)
class Initiate:
    """The engine wants a connection or one child to be brought up (close_action, dpd_action, redirect, a try more).

    The caller resolves names and calls ``initiate``.
    """

    connection: str
    child: str | None
    remote: IpAddress | str | None = None
    "only there: the gateway, or its name, that a redirect named (RFC 5685)"
    redirected_from: IpAddress | None = None
    replaces: int = 0
    "unique id of the IKE_SA that this re-authenticates, whose CHILD_SAs are to be made again"
    addresses: tuple[IpAddress, ...] = ()
    "virtual addresses of the IKE_SA before, to ask for again"
    path: Path | None = None
    "where the peer is, if the connection does not say so"


@dataclass(frozen=True)
class ChildNotMade:
    """A CHILD_SA that we asked for did not come to be; the IKE_SA is up, or was until now."""

    sa: IkeSa
    config: ChildConfig
    reason: str


@dataclass(frozen=True)
class Failed:
    """Something failed; comes before what follows from it. ``sa`` is None if there was no IKE_SA for it."""

    problem: Problem
    sa: IkeSa | None


@dataclass(frozen=True)
class TrapWanted:
    """A child is to wait for traffic (close_action or dpd_action trap)."""

    connection: str
    child: str


Event = (
    InstallChild
    | RemoveChild
    | MoveChild
    | ChildUp
    | ChildDown
    | IkeUp
    | IkeDown
    | IkeRekeyed
    | IkeMoved
    | AddressesAssigned
    | AddressesReleased
    | RevocationNeeded
    | EapAnswerNeeded
    | Initiate
    | ChildNotMade
    | Failed
    | TrapWanted
)
