"""MOBIKE (RFC 4555): an IKE_SA and its CHILD_SAs move to other addresses; nothing is rekeyed.

The initiator decides. The responder follows an authenticated UPDATE_SA_ADDRESSES, and then makes sure with a COOKIE2
that the new address answers (section 3.7).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import ParseError
from ipsec.ike import natd
from ipsec.ike.events import IpAddress, Path
from ipsec.ike.sa import IkeSa, Request
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload

log = logging.getLogger(__name__)

ADDRESSES_MAX = 16
COOKIE2_LEN = 16


def mobike_payloads(sa: IkeSa, request: Sequence[Payload] | None = None) -> list[Payload]:
    """MOBIKE_SUPPORTED and our other addresses, for IKE_AUTH; the responder's come only after the initiator's."""
    if not sa.connection.mobike or (request is not None and not sa.mobike):
        return []
    payloads: list[Payload] = [NotifyPayload(NotifyType.MOBIKE_SUPPORTED)]
    for address in sa.core.host.local_addresses()[:ADDRESSES_MAX]:
        if address != sa.path.local:
            number = NotifyType.ADDITIONAL_IP4_ADDRESS if address.version == 4 else NotifyType.ADDITIONAL_IP6_ADDRESS
            payloads.append(NotifyPayload(number, address.packed))
    return payloads


def take_addresses(sa: IkeSa, payloads: Sequence[Payload]) -> None:
    """What IKE_AUTH, or later an INFORMATIONAL request, says about MOBIKE."""
    found: list[IpAddress] = []
    for payload in payloads:
        if not isinstance(payload, NotifyPayload):
            continue
        if payload.notify == NotifyType.MOBIKE_SUPPORTED:
            sa.mobike = sa.connection.mobike
        elif payload.notify == NotifyType.ADDITIONAL_IP4_ADDRESS and len(payload.data) == 4:
            found.append(IPv4Address(payload.data))
        elif payload.notify == NotifyType.ADDITIONAL_IP6_ADDRESS and len(payload.data) == 16:
            found.append(IPv6Address(payload.data))
        elif payload.notify == NotifyType.NO_ADDITIONAL_ADDRESSES:
            sa.peer_addresses = ()
    if found:
        sa.peer_addresses = tuple(dict.fromkeys(found))[:ADDRESSES_MAX]


def detection(sa: IkeSa) -> list[Payload]:
    """NAT_DETECTION_*_IP for a message along the IKE_SA's path."""
    return list(natd.payloads(sa.spi_i, sa.spi_r, sa.path, fake=sa.core.fakes_nat(sa.connection)))


def behind_nat(sa: IkeSa, payloads: Sequence[Payload], path: Path) -> tuple[bool, bool] | None:
    """(we, the peer) are behind a NAT, by a message that came along ``path``; None if it says nothing about that."""
    notifies = [p for p in payloads if isinstance(p, NotifyPayload)]
    sources = [p.data for p in notifies if p.notify == NotifyType.NAT_DETECTION_SOURCE_IP]
    destinations = [p.data for p in notifies if p.notify == NotifyType.NAT_DETECTION_DESTINATION_IP]
    if not sources or not destinations:
        return None
    return natd.compare(sources, destinations, sa.spi_i, sa.spi_r, path)


class UpdateAddresses(Request):
    """Tell the peer that our end is where this comes from now (section 3.5)."""

    __slots__ = ("cookie", "path")

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        "None: the address is the same, but a NAT on the way has changed what the peer sees"
        self.cookie = b""

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*_IP), N(COOKIE2)."""
        if not sa.established:
            return None
        if self.path is not None and self.path != sa.path:
            # the SAs follow when the peer has answered; the message itself must leave from the new address
            sa.core.move_ike(sa, self.path, now)
        self.cookie = sa.core.rng(COOKIE2_LEN)
        update = NotifyPayload(NotifyType.UPDATE_SA_ADDRESSES)
        return [update, *detection(sa), NotifyPayload(NotifyType.COOKIE2, self.cookie)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The peer has followed, or does not take the address."""
        for payload in payloads:
            if isinstance(payload, NotifyPayload) and payload.notify == NotifyType.UNACCEPTABLE_ADDRESSES:
                log.warning("%s: the peer does not take our address %s", sa, sa.path.local)
                return
        _check_cookie(payloads, self.cookie)
        nats = behind_nat(sa, payloads, sa.path)
        if nats is not None:
            sa.nat_local, sa.nat_remote = nats
        sa.core.move_children(sa, now)
        log.info("%s: moved to %s", sa, sa.path)


class Routability(Request):
    """Does the new address of the peer answer (section 3.7)?"""

    __slots__ = ("cookie",)

    def __init__(self) -> None:
        self.cookie = b""

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """N(COOKIE2)."""
        if not sa.established:
            return None
        self.cookie = sa.core.rng(COOKIE2_LEN)
        return [NotifyPayload(NotifyType.COOKIE2, self.cookie)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """Whoever answers from there has our request, and the keys."""
        _check_cookie(payloads, self.cookie)


def _check_cookie(payloads: Sequence[Payload], cookie: bytes) -> None:
    found = [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == NotifyType.COOKIE2]
    if len(found) != 1 or not compare_digest(found[0], cookie):
        raise ParseError("COOKIE2 did not come back as it was (RFC 4555 section 3.7)")


def handle_update(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload]:
    """The initiator has moved: what we send goes to where its request came from (section 3.6)."""
    if not sa.mobike or sa.initiator:
        return []
    nats = behind_nat(sa, payloads, path)
    if nats is not None:
        sa.nat_local, sa.nat_remote = nats
    if path != sa.path:
        sa.core.move_ike(sa, path, now)
        sa.core.move_children(sa, now)
        log.info("%s: the peer moved to %s", sa, path)
        sa.ask(Routability(), now)
    return detection(sa)
