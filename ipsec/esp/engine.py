"""What an ESP engine is: SAD, SPD and packet processing in one object that does no I/O.

Two classes have this face: ``ipsec.esp.reference.ReferenceEngine``, written to be read, and
``ipsec._fastpath.Engine``, written to be fast. One test class runs both, and they agree byte for byte.

RFC 4301 sections 4.4 (databases) and 5 (processing), RFC 4303 (ESP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from ipsec.esp.drops import DropReason
from ipsec.esp.sa import IpAddress, Lifetime, Policy, SaParams


class Sealed(NamedTuple):
    """One ESP packet to send, from SPI to ICV, and what its outer header must say."""

    datagram: bytes
    sa: int
    "id of the outbound SA: it knows the addresses and ports"
    tos: int
    "outer DSCP and ECN"
    df: bool
    "outer DF (IPv4)"


class Outbound(NamedTuple):
    """What became of a packet that the inside sent. Exactly one of the fields says so, ``drop`` unless it is NONE."""

    drop: DropReason
    sealed: tuple[Sealed, ...] = ()
    "several if the packet had to be fragmented before protection"
    reply: bytes | None = None
    "an ICMP error for the inner sender, with drop OUT_TOO_BIG"
    clear: bytes | None = None
    "the packet itself, under a BYPASS policy"
    held: bool = False
    "kept until there is an SA: ``EspEngine.release`` tells what became of it"
    joined: bool = False
    "a fragment that goes with the rest of its datagram, in transport mode"


class Inbound(NamedTuple):
    """What became of an ESP packet that the outside sent."""

    drop: DropReason
    packet: bytes = b""
    "the inner IP packet"
    sa: int = -1

    @property
    def held(self) -> bool:
        """Kept until there is an SA with its SPI: ``EspEngine.release_early`` tells what became of it."""
        return self.drop is DropReason.NONE and self.sa < 0


class EventKind(IntEnum):
    """What the control plane is told."""

    SOFT_LIFETIME = 1
    "bytes or packets soft limit reached: rekey"
    HARD_LIFETIME = 2
    "bytes or packets hard limit reached: the SA carries nothing more"
    SEQUENCE_SOFT = 3
    "sequence numbers run out soon: rekey"
    SEQUENCE_HARD = 4
    "sequence numbers are used up"
    ACQUIRE = 5
    "a PROTECT policy matched a packet but has no SA; ``value`` is the reqid. Again after ``ACQUIRE_SECONDS``"
    MAPPING = 6
    "an authenticated packet came from a new address or port"
    DEVICE_LOST = 7
    "the TUN device was deleted: nothing can be sent or delivered any more; ``sa`` means nothing"


class Event(NamedTuple):
    """One event; ``sa`` is the SA's id, or the policy's id for ACQUIRE."""

    kind: EventKind
    sa: int
    value: int = 0
    source: tuple[IpAddress, int] | None = None
    "MAPPING: the new address and port"


@dataclass(frozen=True)
class SaStats:
    """Counters of one SA since it was added."""

    packets: int
    "good packets; each ESP packet counts"
    bytes: int
    "octets of inner packets"
    last_use: float | None
    "``now`` of the last good packet, None if there was none"
    seq: int
    "last number sent, or highest received"
    drops: dict[DropReason, int]
    "reasons that occurred"
    remote: IpAddress
    encap: tuple[int, int] | None


#: SEQUENCE_SOFT comes this many packets before the end (RFC 4303 section 3.3.3)
SEQUENCE_SOFT_MARGIN = 1 << 20

#: ACQUIRE repeats after so long for one policy, while packets come and no SA does; charon waits as long for a reqid
ACQUIRE_SECONDS = 10
#: packets that wait for SAs in all, frames of up to 64 KiB each: the oldest make room. Each worker has so many
HELD_FRAMES = 128
#: and so many octets of them
HELD_OCTETS = 1 << 19
#: nobody wants a packet that is older (the kernel's xfrm_acq_expires)
HELD_SECONDS = 30
#: packets that came before their SA, of each worker: of so many SPIs, and for each so many, with so many octets
EARLY_SPIS = 16
EARLY_PACKETS = 64
EARLY_OCTETS = 1 << 17
#: an answer that was lost has come by then: IKE sends its request again after 4 s
EARLY_SECONDS = 5
#: datagrams whose fragments are put together at once, and for how long
JOIN_DATAGRAMS = 8
JOIN_SECONDS = 30


class EspEngine(Protocol):
    """SAD, SPD and ESP processing. ``now`` is monotonic seconds. Nothing here blocks or raises for a packet."""

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if an inbound SA has that SPI, or an outbound one has (SPI, remote)."""

    def del_sa(self, sa: int) -> None:
        """Remove an SA and wipe its keys. SaError if it is not there."""

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses in place: keys, counters and window stay."""

    def set_lifetime(self, sa: int, lifetime: Lifetime) -> None:
        """Other limits by volume from now on; what was counted stays, and both lifetime events may come again."""

    def query_sa(self, sa: int) -> SaStats:
        """Counters of an SA. SaError if it is not there."""

    def expect_spi(self, spi: int) -> None:
        """A peer is told this SPI, and may use it before its SA is added (RFC 7296 section 2.8): keep such packets.

        Until an inbound SA has it or ``forget_spi``. SaError if an SA has it already, or none can.
        """

    def forget_spi(self, spi: int) -> None:
        """No SA will come with this SPI: what was kept for it is dropped. One that nobody expects is ignored."""

    def early(self) -> int:
        """How many packets came before their SA and wait for it, those included that are not dropped yet."""

    def release_early(self, now: float) -> list[Inbound]:
        """Open packets that ``inbound`` kept and whose SA is there; what became of them, oldest first for each SPI.

        They are not authenticated before. What waited too long, or for an SPI that is forgotten, is dropped as
        IN_NO_STATES. What a pump kept it delivers itself: ``Pump.wake``.
        """

    def add_policy(self, policy: Policy) -> int:
        """Add a policy; its id."""

    def set_policies(self, policies: Sequence[Policy]) -> list[int]:
        """Replace the whole SPD at once; the ids, in the same order."""

    def del_policy(self, policy: int) -> None:
        """Remove a policy. PolicyError if it is not there."""

    def rearm(self, policy: int) -> None:
        """Let the next packet of this policy without an SA raise ACQUIRE at once. A policy that is gone is ignored."""

    def held(self) -> int:
        """How many packets (frames, of pumps) wait for an SA: ``hold_packets`` for each policy at most."""

    def release(self, now: float) -> list[Outbound]:
        """Try packets again that ``outbound`` kept; what became of those that wait no longer, oldest first.

        The SPD decides anew, as if they had come now. What waited too long, or had to make room for a newer one, is
        dropped as OUT_NO_STATES. What a pump kept it sends itself: ``Pump.wake``.
        """

    def encapsulate(self, sa: int, packet: bytes, now: float) -> Sealed | DropReason:
        """Protect one IP packet with this SA, without asking the SPD, the MTU or the clamp."""

    def dummy(self, sa: int, length: int, now: float) -> Sealed | DropReason:
        """A dummy packet (next header 59) with ``length`` octets of payload (RFC 4303 section 2.6)."""

    def outbound(self, packet: bytes, now: float) -> Outbound:
        """Everything RFC 4301 section 5.1 asks for a packet from the inside: SPD, MTU, MSS clamp, fragments, ESP."""

    def inbound(
        self, datagram: bytes, now: float, *, tos: int = 0, source: tuple[IpAddress, int] | None = None
    ) -> Inbound:
        """Everything RFC 4301 section 5.2 asks for an ESP packet (SPI to ICV): SAD, replay, ICV, selectors, ECN.

        ``tos`` is the outer DSCP and ECN; ``source`` the outer source address and UDP port (0 for raw ESP).
        """

    def events(self) -> list[Event]:
        """What happened since the last call, oldest first."""

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason, SAs removed meanwhile included."""
