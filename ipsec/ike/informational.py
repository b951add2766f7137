"""INFORMATIONAL requests of the peer: deletes, liveness, MOBIKE, redirection (RFC 7296 section 1.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ipsec.ike import again
from ipsec.ike.auth_lifetime import heed_lifetime, parse_lifetime
from ipsec.ike.child import stop_sending, superseded
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.create_child import CreateChild
from ipsec.ike.delete import crossed, waits_to_go
from ipsec.ike.events import ChildDown, Path
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.find import find_notify
from ipsec.ike.giveway import agree, stays_for
from ipsec.ike.mobike import behind_nat, detection, handle_addresses, handle_update
from ipsec.ike.proof import own_fault
from ipsec.ike.rekey import awaits_answer, closed_by_peer, settled_by_peer
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import CHILD_UP, ChildState
from ipsec.wire.iana import NOTIFY_STATUS_FIRST, ExchangeType, NotifyType, Protocol, name_of
from ipsec.wire.payloads import DeletePayload, NotifyPayload, Payload, VendorPayload

log = logging.getLogger(__name__)

#: SPIs in Deletes that are remembered while an answer may bring one of them
CLOSED_MAX = 16


def handle_informational(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload] | None:
    """Do what the peer says; None if the response is on its way already."""
    deletes = [p for p in payloads if isinstance(p, DeletePayload)]
    if any(p.protocol == Protocol.IKE for p in deletes):
        _close_ike(sa, path, now)
        return None
    reply: list[Payload] = []
    heed_lifetime(sa, parse_lifetime(payloads), now)
    for payload in payloads:
        if isinstance(payload, NotifyPayload):
            answer = _heed(sa, payload, payloads, path, now)
            if answer is None:
                return None
            reply += answer
        elif isinstance(payload, VendorPayload):
            reply += agree(sa, payload)
    spis = [spi for p in deletes if p.protocol == Protocol.ESP for spi in p.spis]
    if spis and sa.quiet:
        settled_by_peer(sa, now)
    gone = close_children(sa, spis, now)
    if gone:
        # section 1.4.1: the paired SAs, except those that our own Delete in flight names
        reply.append(DeletePayload(Protocol.ESP, gone))
    handle_addresses(sa, payloads, path, now)
    return reply


def _close_ike(sa: IkeSa, path: Path, now: float) -> None:
    """The response to a Delete of the IKE_SA is empty, and the last message under its keys (section 1.4.1)."""
    closed_by_peer(sa, now)
    sa.respond(ExchangeType.INFORMATIONAL, [], path, now)
    if awaits_answer(sa, now):
        return
    if not sa.quiet:
        log.info("%s: closed by the peer", sa)
        stays = stays_for(sa)
        if stays is not None:
            # nothing is lost: no failure, and nothing to bring back
            sa.destroy(f"begun by both ends, {stays} stays", now)
            return
        sa.core.closed_by_peer(sa, now)
    sa.destroy(Failure(Cause.CLOSED, "closed by the peer", by_peer=True), now)


def _heed(
    sa: IkeSa, notify: NotifyPayload, payloads: Sequence[Payload], path: Path, now: float
) -> list[Payload] | None:
    number = notify.notify
    if number == NotifyType.UPDATE_SA_ADDRESSES:
        return handle_update(sa, list(payloads), path, now)
    if number == NotifyType.COOKIE2:
        return [NotifyPayload(NotifyType.COOKIE2, notify.data)] if len(notify.data) <= 64 else []
    if number == NotifyType.NAT_DETECTION_SOURCE_IP and sa.mobike:
        updates = find_notify(payloads, NotifyType.UPDATE_SA_ADDRESSES) is not None
        # RFC 4555 section 3.8: a liveness check that also looks for changes of a NAT
        return [] if updates or behind_nat(sa, payloads, path) is None else detection(sa, path)
    if number == NotifyType.REDIRECT and sa.original_initiator:
        sa.core.take_redirect(sa, [notify], now)
        return []
    if number == NotifyType.AUTHENTICATION_FAILED:
        # section 2.21.2: the initiator could not authenticate us, and has dropped its end
        why = own_fault(sa)
        log.warning("%s: the peer does not believe that we are %s%s", sa, sa.our_id, why)
        sa.respond(ExchangeType.INFORMATIONAL, [], path, now)
        sa.destroy(Failure(Cause.LOCAL_AUTH, f"the peer could not authenticate us{why}", by_peer=True), now)
        return None
    if number < NOTIFY_STATUS_FIRST:
        log.warning("%s: the peer reports %s", sa, name_of(NotifyType, number))
    return []


def close_children(sa: IkeSa, spis: Sequence[bytes], now: float) -> list[bytes]:
    """Close CHILD_SAs by the SPIs of the peer's inbound SAs; the SPIs of ours."""
    gone: list[bytes] = []
    for spi in spis:
        child = _named_by_peer(sa, spi)
        if child is None or child.state in (ChildState.DELETING, ChildState.DELETED):
            # section 1.4.1, 2.25.1: unknown, or we have sent a Delete for it ourselves
            request = sa.pending.request if sa.pending is not None else None
            if child is None and isinstance(request, CreateChild) and len(request.closed) < CLOSED_MAX:
                request.closed.add(int.from_bytes(spi, "big"))
            if child is not None and child.state is ChildState.DELETING:
                crossed(child.ike, child, now)
            continue
        gone.append(child.spi_in.to_bytes(4, "big"))
        _close_child(child.ike, child, now)
    return gone


def _named_by_peer(sa: IkeSa, spi: bytes) -> ChildSa | None:
    """The CHILD_SA of an SPI in a Delete; it may have gone to a successor while the message was on its way (2.8)."""
    number = int.from_bytes(spi, "big") if len(spi) == 4 else 0
    child = sa.child_by_spi_out(number)
    return child if child is not None or sa.successor is None else sa.successor.child_by_spi_out(number)


def _close_child(sa: IkeSa, child: ChildSa, now: float) -> None:
    up, wanted = child.state in CHILD_UP, not waits_to_go(child)
    if superseded(child, now) is not None or child.state is ChildState.REKEYED:
        # replaced: packets that are on their way are still taken for a while
        sa.core.linger(child, now)
        stop_sending(child)
        return
    if not up:
        # the redundant successor of a collision, or one that the peer could not put in place: never used
        if child.rekey_of is not None and child.rekey_of.peer_rekey is child:
            child.rekey_of.peer_rekey = None
        sa.core.forget_child(child)
        sa.remove_child(child)
        return
    log.info("%s: CHILD_SA %s closed by the peer", sa, child)
    sa.core.forget_child(child)
    sa.core.note(Failure(Cause.CLOSED, "closed by the peer", child.name, by_peer=True), sa)
    sa.core.emit(ChildDown(child, "closed by the peer"))
    sa.remove_child(child)
    if wanted:
        again.act(sa.core, sa, child.config, closed=True, leased=bool(sa.leases))
