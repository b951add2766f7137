"""IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4): key exchanges after the one in CREATE_CHILD_SA.

What CREATE_CHILD_SA asks for is there when the last one is done, and not before: until then nothing is in use, and
there is nothing to delete. ``Steps`` is the initiator's side, ``Awaited`` the responder's; a notify, which means
something to the responder alone, ties one exchange to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipsec.crypto.kex import KeyExchange, key_exchange
from ipsec.errors import ParseError
from ipsec.ike.errors import PeerError
from ipsec.ike.find import find_notify
from ipsec.ike.intermediate import the_ke
from ipsec.ike.lifetimes import Timer
from ipsec.wire import additional
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import KePayload, NotifyPayload, Payload
from ipsec.wire.proposal import Proposal

if TYPE_CHECKING:
    from ipsec.ike.child_sa import ChildSa
    from ipsec.ike.events import Path
    from ipsec.ike.sa import IkeSa

#: how long what is begun waits for its initiator to go on; a peer that is only slow may have sent six times by then
AWAITED_S = 60.0
#: things that a peer may have begun in one IKE_SA
AWAITED_MAX = 4
_LINK_LEN = 8
_LINK = NotifyType.ADDITIONAL_KEY_EXCHANGE


class Steps:
    """What the initiator still has to exchange, and the secrets that it has."""

    __slots__ = ("kex", "link", "methods", "secrets")

    def __init__(self, methods: list[int], link: bytes) -> None:
        self.methods = methods
        self.link = link
        self.secrets = b""
        self.kex: KeyExchange | None = None

    def request(self, sa: IkeSa) -> list[Payload]:
        """KEi(n), N(ADDITIONAL_KEY_EXCHANGE)."""
        self.kex = key_exchange(self.methods[0], sa.core.rng)
        return [KePayload(self.kex.method, self.kex.public), NotifyPayload(_LINK, self.link)]

    def take(self, payloads: Sequence[Payload]) -> None:
        """KEr(n), and while there is more to come another N(ADDITIONAL_KEY_EXCHANGE). ParseError."""
        assert self.kex is not None
        self.secrets += self.kex.shared(the_ke(payloads, self.methods[0]).data)
        self.kex = None
        del self.methods[0]
        self.link = _next(self.methods, payloads)


def begin(proposal: Proposal, payloads: Sequence[Payload]) -> Steps | None:
    """What the initiator has to do when CREATE_CHILD_SA is answered. ParseError."""
    methods = additional.methods(proposal)
    link = _next(methods, payloads)
    return Steps(methods, link) if methods else None


def goes_on(payloads: Sequence[Payload]) -> bool:
    """Whether the responder waits for more."""
    return find_notify(payloads, _LINK) is not None


def _next(methods: Sequence[int], payloads: Sequence[Payload]) -> bytes:
    """What leads to the next exchange, if there is one. ParseError if the responder has another idea of that."""
    if methods:
        return _link_of(payloads)
    if goes_on(payloads):
        raise ParseError("the peer waits for a key exchange that was not agreed")
    return b""


def _link_of(payloads: Sequence[Payload]) -> bytes:
    links = [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == _LINK]
    if len(links) != 1:
        raise ParseError(f"{len(links)} notifies ADDITIONAL_KEY_EXCHANGE, one is needed")
    return links[0]


# -- the responder's side


class Awaited:
    """Something that the initiator has begun, and has to go on with."""

    __slots__ = ("methods", "nonces", "replaces", "secrets", "until")

    def __init__(self, proposal: Proposal, nonces: tuple[bytes, ...], replaces: ChildSa | IkeSa | None) -> None:
        self.methods = additional.methods(proposal)
        "key exchanges that are left"
        self.nonces = nonces
        self.replaces = replaces
        self.secrets = b""
        self.until = 0.0

    def finish(self, sa: IkeSa, answer: list[Payload], path: Path, now: float) -> list[Payload] | None:
        """All are done. ``answer`` is to the request that was the last one; None if it has been sent."""
        raise NotImplementedError

    def drop(self, sa: IkeSa, now: float) -> None:
        """It comes to nothing."""
        raise NotImplementedError


def expect(sa: IkeSa, one: Awaited, now: float) -> NotifyPayload:
    """Wait for the next exchange; what goes into our answer."""
    if len(sa.awaited) >= AWAITED_MAX:
        sa.awaited.pop(next(iter(sa.awaited))).drop(sa, now)
    link = sa.core.rng(_LINK_LEN)
    one.until = now + AWAITED_S
    sa.awaited[link] = one
    sa.core.timers.set((Timer.FOLLOWUP, sa.uid), min(other.until for other in sa.awaited.values()))
    return NotifyPayload(_LINK, link)


def awaited_for(sa: IkeSa, replaces: ChildSa | IkeSa) -> Awaited | None:
    """The successor of an SA that the peer has begun to make."""
    return next((one for one in sa.awaited.values() if one.replaces is replaces), None)


def forget(sa: IkeSa, now: float, replaces: ChildSa | IkeSa | None = None) -> None:
    """Nobody will go on with it: with the successor of one SA, or with anything."""
    gone = [link for link, one in sa.awaited.items() if replaces is None or one.replaces is replaces]
    for link in gone:
        sa.awaited.pop(link).drop(sa, now)


def expire(sa: IkeSa, now: float) -> None:
    """The initiator has not gone on in time."""
    for link in [link for link, one in sa.awaited.items() if one.until <= now]:
        sa.awaited.pop(link).drop(sa, now)
    if sa.awaited:
        sa.core.timers.set((Timer.FOLLOWUP, sa.uid), min(one.until for one in sa.awaited.values()))


def handle_followup(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload] | None:
    """The initiator goes on; None if the response is on its way already."""
    one = sa.awaited.pop(_link_of(payloads), None)
    if one is None:
        raise PeerError(NotifyType.STATE_NOT_FOUND, "nothing is known of what this goes on with")
    try:
        if not sa.established:
            raise PeerError(NotifyType.TEMPORARY_FAILURE, f"the IKE_SA is {sa.state.value}")
        method = one.methods[0]
        public, shared = sa.core.join_key_exchange(method, the_ke(payloads, method).data)
        one.secrets += shared
        del one.methods[0]
        answer: list[Payload] = [KePayload(method, public)]
        if one.methods:
            return [*answer, expect(sa, one, now)]
        return one.finish(sa, answer, path, now)
    except (ParseError, PeerError):
        one.drop(sa, now)
        raise
