"""INFORMATIONAL exchanges that close SAs or ask whether the peer lives (RFC 7296 sections 1.4, 2.4)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ipsec.ike.child import stop_sending, superseded
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import ChildDown
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.wire.iana import Protocol
from ipsec.wire.payloads import DeletePayload, NotifyPayload, Payload

log = logging.getLogger(__name__)

#: why a CHILD_SA goes that nobody wants to be without
EXPIRED = "expired"


class DeleteChild(Request):
    """Close one CHILD_SA at both ends."""

    __slots__ = ("again", "child", "reason", "was_up")

    def __init__(self, child: ChildSa, reason: str = "", *, again: bool = False) -> None:
        self.again = again
        "through the successor of the IKE_SA that we have asked it in"
        self.child = child
        self.reason = reason
        "for an SA that is not replaced: why it goes"
        self.was_up = False

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """D with the SPI of our inbound SA, by which the peer knows it."""
        ended = (ChildState.DELETED, ChildState.DESTROYING)
        if self.child.state in (ended if self.again else (ChildState.DELETING, *ended)):
            return None
        self.was_up = self.was_up or self.child.state in CHILD_UP
        if self.child.state is ChildState.REKEYED:
            # its successor is in use, and the peer may stop taking this one when it has our Delete
            stop_sending(self.child)
        if not self.again:
            self.child.change(ChildState.DELETING)
        return [DeletePayload(Protocol.ESP, [self.child.spi_in.to_bytes(4, "big")])]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The peer sends no more through it; what is on its way is still taken for a while."""
        if self.child.state is ChildState.DELETING:
            # section 2.25.1: the peer had replaced it meanwhile, and its own Delete, if any, counts for nothing
            replaced = superseded(self.child, now) if self.reason else None
            sa.core.child_deleted(self.child, "" if replaced else self.reason, now)
            stop_sending(self.child)
        elif self.child.ike is not sa and self.child.state is ChildState.DESTROYING and self.was_up and self.reason:
            # a successor of the IKE_SA had it by then, and has ended with it
            sa.core.emit(ChildDown(self.child, self.reason))

    def lost(self, sa: IkeSa, now: float) -> None:
        """The IKE_SA ended first, and the CHILD_SA with it, unless that has gone to a successor (section 2.8)."""
        if self.child.ike is not sa and self.child.state is ChildState.DELETING:
            again = DeleteChild(self.child, self.reason, again=True)
            again.was_up = self.was_up
            self.child.ike.ask(again, now)
            return
        if self.was_up and self.reason:
            sa.core.emit(ChildDown(self.child, self.reason))


def close_unused(sa: IkeSa, child: ChildSa, now: float) -> None:
    """The peer has made a CHILD_SA that we do not put in place: it is closed before it was ever used."""
    sa.children[child.uid] = child
    child.change(ChildState.INSTALLING)
    sa.ask(DeleteChild(child), now, first=True)


class DeleteIke(Request):
    """Close the IKE_SA. ``notify`` says what was wrong, in place of a Delete payload, before it was established."""

    __slots__ = ("expired", "notify", "reason")

    def __init__(self, reason: str, notify: NotifyPayload | None = None, *, expired: bool = False) -> None:
        self.expired = expired
        "nobody wanted it to go: if the peer is dead, ``dpd_action`` counts"
        self.reason = reason
        self.notify = notify

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """D for the IKE_SA itself."""
        if sa.state is IkeState.DELETING:
            return None
        if sa.rekey is not None and sa.rekey.peers is not None and sa.rekey.peers.established and sa.established:
            # section 2.8.2: the peer has moved everything to its successor, so that is what is to be closed
            successor = sa.rekey.peers
            sa.core.hand_over(sa, successor, now)
            successor.ask(self, now)
            return None
        sa.change(IkeState.DELETING)
        return [self.notify if self.notify is not None else DeletePayload(Protocol.IKE, [])]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The peer knows."""
        sa.destroy(self.reason, now)

    def lost(self, sa: IkeSa, now: float) -> None:
        """The peer may not know; its liveness check will tell it."""


def is_to_go(sa: IkeSa) -> bool:
    """Whether we are closing an IKE_SA, or will when what is under way is answered."""
    return sa.state is IkeState.DELETING or any(isinstance(request, DeleteIke) for request in sa.queue)


def missed(sa: IkeSa) -> list[ChildSa]:
    """CHILD_SAs of an IKE_SA that the peer ends, or the peer's silence, that we have not wanted to end ourselves."""
    if is_to_go(sa) and not any(isinstance(request, DeleteIke) and request.expired for request in sa.queue):
        return []
    return [child for child in sa.children.values() if child.serves and not waits_to_go(child)]


def staying(sa: IkeSa) -> list[ChildSa]:
    """CHILD_SAs that are up, and that we are not about to close."""
    return [] if is_to_go(sa) else [child for child in sa.children_up() if not waits_to_go(child)]


def waits_to_go(child: ChildSa) -> bool:
    """Whether we will close a CHILD_SA when what is under way is answered."""
    return any(isinstance(request, DeleteChild) and request.child is child for request in child.ike.queue)


def unwanted(child: ChildSa) -> str:
    """Why we will close a CHILD_SA, and a successor that we have asked for, when what is under way is answered; empty
    if we will not."""
    waiting = (one for one in child.ike.queue if isinstance(one, DeleteChild) and one.child is child)
    return next((one.reason for one in waiting if one.reason != EXPIRED), "")


def close_later(sa: IkeSa, now: float, reason: str) -> bool:
    """Use an IKE_SA that is to be closed for nothing new; False if it is not up, and goes at once."""
    if not sa.authenticated:
        sa.core.terminate_ike(sa, now, reason)
        return False
    sa.queue.clear()
    sa.queue.append(DeleteIke(reason))
    return True


def close_children_later(children: Iterable[ChildSa], reason: str) -> list[IkeSa]:
    """Count CHILD_SAs that are to be closed as up no more; the IKE_SAs whose turn it is to do it."""
    doomed = [child for child in children if child.state in CHILD_UP and not waits_to_go(child)]
    for child in doomed:
        log.info("%s: closing CHILD_SA %s: %s", child.ike, child, reason)
        child.ike.queue.append(DeleteChild(child, reason))
    return list(dict.fromkeys(child.ike for child in doomed))


class Liveness(Request):
    """An empty request: does the peer still have this IKE_SA (RFC 7296 section 2.4)?"""

    __slots__ = ("payloads",)

    def __init__(self, payloads: list[Payload] | None = None) -> None:
        self.payloads = payloads or []

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """Nothing, or what MOBIKE adds."""
        return self.payloads

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """It does."""
        sa.core.alive(sa, payloads, now)


def crossed(sa: IkeSa, child: ChildSa, now: float) -> None:
    """The peer deletes what our own Delete in flight names: a successor that it has made counts from now on."""
    if superseded(child, now) is not None and sa.pending is not None and isinstance(sa.pending.request, DeleteChild):
        sa.pending.request.reason = ""
