"""CREATE_CHILD_SA for CHILD_SAs: another one, or a successor (RFC 7296 sections 1.3.1, 1.3.3, 2.8).

When both ends replace the same CHILD_SA at once there are two successors for a moment. Each end finds that out by
itself; the one that was made with the lowest of the four nonces is deleted by whoever asked for it, and the other end
deletes the SA that was to be replaced (section 2.8.1). Collisions with deletes are as section 2.25.1 says.
"""

from __future__ import annotations

import logging

from ipsec.crypto.kex import KeyExchange, key_exchange
from ipsec.errors import ParseError
from ipsec.ike import followup
from ipsec.ike.child import (
    ChildRefusedError,
    answer,
    in_question,
    install,
    new_child,
    nonce_of,
    offer,
    refuse_errors,
    take_answer,
)
from ipsec.ike.child import (
    log_up as log_up,
)
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig
from ipsec.ike.delete import DeleteChild, close_unused, unwanted, waits_to_go
from ipsec.ike.errors import PeerError
from ipsec.ike.events import ChildUp, Path
from ipsec.ike.find import find_notify
from ipsec.ike.followup import Awaited, Steps
from ipsec.ike.init import NONCE_LEN
from ipsec.ike.lifetimes import Timer
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.wire import additional
from ipsec.wire.iana import ExchangeType, KeMethod, NotifyType, Protocol, TransformType, name_of
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload

log = logging.getLogger(__name__)

#: a peer that is busy is asked again after this long, with up to as much again at random (RFC 7296 section 2.25)
RETRY_S = 2.0
#: a rekeying that failed otherwise
RETRY_FAILED_S = 30.0
#: with which it is asked again soon; the second one if it has forgotten what we were about (RFC 9370)
BUSY = (NotifyType.TEMPORARY_FAILURE, NotifyType.STATE_NOT_FOUND)
#: CHILD_SAs of one IKE_SA that a peer may ask for, where the configuration does not have a quarter as many itself
CHILDREN_MAX = 256


class CreateChild(Request):
    """Ask for a CHILD_SA, or for the successor of one."""

    __slots__ = (
        "child", "closed", "config", "kex", "methods", "nonce", "nonces", "replaces", "reqid", "shared", "steps",
    )  # fmt: skip

    def __init__(self, config: ChildConfig, *, replaces: ChildSa | None = None, reqid: int = 0) -> None:
        self.config = config
        self.replaces = replaces
        self.reqid = reqid
        self.child: ChildSa | None = None
        self.closed: set[int] = set()
        "SPIs that we do not know, and that the peer has closed since we asked"
        self.kex: KeyExchange | None = None
        self.nonce = b""
        self.methods: list[int] = []
        self.nonces = (b"", b"")
        "both, once CREATE_CHILD_SA is answered"
        self.shared = b""
        self.steps: Steps | None = None
        "additional key exchanges (RFC 9370)"

    @property
    def exchange(self) -> ExchangeType:
        """CREATE_CHILD_SA, then one for each additional key exchange."""
        return ExchangeType.CREATE_CHILD_SA if self.steps is None else ExchangeType.IKE_FOLLOWUP_KE

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """SA, Ni, KEi, TSi, TSr; for a successor with N(REKEY_SA) in front."""
        if self.steps is not None:
            return self.steps.request(sa)
        old = self.replaces
        if not sa.established:
            return None
        if sa.rekey is not None:
            # section 2.25.2: not while the IKE_SA is replaced; the successor gets what is left to do
            sa.rekey.postpone(self)
            return None
        payloads: list[Payload] = []
        if old is not None:
            if old.state is not ChildState.INSTALLED:
                return None
            if followup.awaited_for(sa, old) is not None:
                # the peer is about it; should it not go on
                _rekey_later(sa, old, now + RETRY_S * (1 + sa.core.fraction()))
                return None
            old.change(ChildState.REKEYING)
            spi = old.spi_in.to_bytes(4, "big")
            payloads.append(NotifyPayload(NotifyType.REKEY_SA, b"", Protocol.ESP, spi))
        if self.child is None:
            self.child = new_child(sa, self.config, reqid=old.reqid if old else self.reqid)
            if old is not None:
                # section 2.9.2: not less than what the SA carries now
                self.child.local_ts, self.child.remote_ts = list(old.local_ts), list(old.remote_ts)
        self.nonce = sa.core.rng(NONCE_LEN)
        offered = offer(sa, self.child, first=False)
        selectors = [p for p in offered if not isinstance(p, SaPayload | NotifyPayload)]
        payloads += [p for p in offered if isinstance(p, NotifyPayload)]
        payloads += [p for p in offered if isinstance(p, SaPayload)]
        payloads.append(NoncePayload(self.nonce))
        method = self.methods[-1] if self.methods else _first_method(sa, self.config)
        if method:
            if not self.methods:
                self.methods.append(method)
            self.kex = key_exchange(method, sa.core.rng)
            payloads.append(KePayload(method, self.kex.public))
        return payloads + selectors

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder made it, or says why not."""
        child, old = self.child, self.replaces
        assert child is not None
        made = not followup.goes_on(payloads)
        try:
            self._take(sa, child, payloads)
            if child.spi_out in self.closed:
                # its Delete was faster than the answer
                raise ChildRefusedError(0, "the peer has closed it again")
        except ChildRefusedError as error:
            self._refused(sa, error, now, made=made)
            return
        except ParseError as error:
            self._refused(sa, ChildRefusedError(0, str(error)), now, made=made)
            return
        if old is not None:
            theirs = _rival_nonces(sa, old)
            if theirs and min(self.nonces) < min(theirs):
                self._lost_collision(sa, old, now, made=made)
                return
            followup.forget(sa, now, old)
        if self.steps is not None and self.steps.methods:
            sa.ask(self, now, first=True)
            return
        further = self.steps.secrets if self.steps is not None else b""
        install(sa, child, *self.nonces, self.shared, now, initiator=True, further=further)
        log_up(sa, child, old)
        if old is None:
            sa.core.emit(ChildUp(child))
            return
        sa.core.counters.add("child-rekey", child.ike.name)
        # the peer may have closed the old one meanwhile, and whoever heard that it is down hears that this one is up
        sa.core.emit(ChildUp(child, replaces=old if old.serves else None))
        closed = unwanted(old)
        if old.state is ChildState.REKEYING:
            old.change(ChildState.REKEYED)
            sa.ask(DeleteChild(old), now, first=True)
        if closed:
            child.ike.ask(DeleteChild(child, closed), now)

    def _take(self, sa: IkeSa, child: ChildSa, payloads: list[Payload]) -> None:
        """An answer in which all is well. ChildRefusedError, ParseError."""
        if self.steps is None:
            self.shared = take_answer(sa, child, payloads, first=False, kex=self.kex)
            self.nonces = self.nonce, nonce_of(payloads, 16)
            assert child.proposal is not None
            self.steps = followup.begin(child.proposal, payloads)
            return
        refuse_errors(payloads)
        self.steps.take(payloads)

    def _lost_collision(self, sa: IkeSa, old: ChildSa, now: float, *, made: bool) -> None:
        """Ours is the redundant one: it is deleted before it was ever used, and the peer deletes the old SA. Where
        additional key exchanges are left we do not go on, and there is nothing to delete."""
        child = self.child
        assert child is not None
        log.info("%s: %s was rekeyed by both ends at once, the peer's successor stays", sa, old)
        if old.state is ChildState.REKEYING:
            # the peer's may need more exchanges until it is there
            old.change(ChildState.REKEYED if old.peer_rekey is not None else ChildState.INSTALLED)
        if made:
            close_unused(sa, child, now)
        else:
            sa.core.host.free_spi(child.spi_in)

    def _refused(self, sa: IkeSa, error: ChildRefusedError, now: float, *, made: bool) -> None:
        """``made``: the peer has it, unless it has answered with an error."""
        child, old = self.child, self.replaces
        assert child is not None
        name = name_of(NotifyType, error.notify) if error.notify else "our refusal"
        begun, self.steps = self.steps is not None, None
        if error.notify == NotifyType.INVALID_KE_PAYLOAD and not begun and self._other_method(sa, error.data):
            if old is not None and old.state is ChildState.REKEYING:
                old.change(ChildState.INSTALLED)
            sa.ask(self, now, first=True)
            return
        if error.notify or not made:
            sa.core.host.free_spi(child.spi_in)
        else:
            close_unused(sa, child, now)
        self.child = None
        what = f"rekeying {old}" if old is not None else f"child {self.config.name}"
        if old is None:
            if error.notify in BUSY:
                log.info("%s: %s: the peer is busy, asking again later", sa, what)
                sa.core.retry_child(sa, self, now + RETRY_S * (1 + sa.core.fraction()))
                return
            log.warning("%s: %s failed: %s (%s)%s", sa, what, error, name, in_question(child, error.notify))
            sa.core.child_not_made(sa, self.config, error.failure(child), now)
            return
        if _rival_nonces(sa, old) or old.state not in CHILD_UP:
            if old.peer_rekey is None and old.state is ChildState.REKEYING:
                old.change(ChildState.INSTALLED)
            # section 2.25.1: the peer's successor is the only one, or the old one was deleted meanwhile
            log.info("%s: %s: %s, which the peer has done itself", sa, what, name)
            return
        old.change(ChildState.INSTALLED)
        if error.notify in BUSY:
            _rekey_later(sa, old, now + RETRY_S * (1 + sa.core.fraction()))
        elif error.notify == NotifyType.CHILD_SA_NOT_FOUND:
            log.warning("%s: the peer does not know %s, making another", sa, old)
            sa.core.child_deleted(old, "the peer does not know it", now)
            sa.ask(CreateChild(self.config, reqid=old.reqid), now)
        elif error.notify == NotifyType.NO_ADDITIONAL_SAS:
            log.info("%s: the peer makes no more SAs (RFC 7296 section 1.3), authenticating anew", sa)
            # should that fail as well
            _rekey_later(sa, old, now + RETRY_FAILED_S * (1 + sa.core.fraction()))
            sa.core.reauthenticate(sa, now)
        else:
            log.warning("%s: %s failed: %s (%s)%s", sa, what, error, name, in_question(child, error.notify))
            sa.core.note(error.failure(child), sa)
            _rekey_later(sa, old, now + RETRY_FAILED_S * (1 + sa.core.fraction()))

    def _other_method(self, sa: IkeSa, data: bytes) -> bool:
        if len(data) != 2:
            return False
        method = int.from_bytes(data, "big")
        offered = {t.id for p in self.config.esp_proposals for t in p.of_type(TransformType.KE)}
        if method not in offered or method in self.methods:
            name = name_of(KeMethod, method)
            log.warning("%s: the peer wants key exchange %s, which we do not offer or had tried", sa, name)
            return False
        self.methods.append(method)
        return True

    def lost(self, sa: IkeSa, now: float) -> None:
        """The SPI is free again."""
        if self.child is not None and self.child.state is ChildState.CREATED:
            sa.core.host.free_spi(self.child.spi_in)


def _rival_nonces(sa: IkeSa, old: ChildSa) -> tuple[bytes, ...]:
    """Both nonces of the exchange in which the peer replaces the same CHILD_SA, whether all of it is done or not."""
    if old.peer_rekey is not None:
        return old.peer_rekey.nonces
    awaited = followup.awaited_for(sa, old)
    return awaited.nonces if awaited is not None else ()


def _rekey_later(sa: IkeSa, old: ChildSa, at: float) -> None:
    sa.core.timers.set((Timer.CHILD_REKEY, old.uid), at)


def _first_method(sa: IkeSa, config: ChildConfig) -> int:
    """Of which method KEi is: the one that the peer is expected to accept (RFC 7296 section 1.3).

    That is the IKE_SA's, if we offer it. libreswan 4.10 wants it, and answers another with INVALID_SYNTAX instead of
    INVALID_KE_PAYLOAD.
    """
    offered = [t.id for proposal in config.esp_proposals for t in proposal.of_type(TransformType.KE)]
    used = sa.proposal.first(TransformType.KE) if sa.proposal else None
    if used is not None and used.id in offered and offered[0] != KeMethod.NONE:
        return used.id
    return offered[0] if offered else KeMethod.NONE


# -- the responder's side


def handle_create_child(sa: IkeSa, payloads: list[Payload], now: float) -> list[Payload]:
    """A CREATE_CHILD_SA request for a CHILD_SA."""
    # section 2.25.2: not while the IKE_SA is replaced or closed
    # and if the peer has begun to replace it, it has thought better of that
    followup.forget(sa, now, sa)
    if sa.state is not IkeState.ESTABLISHED or sa.rekey is not None or sa.quiet:
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"the IKE_SA is {sa.state.value}")
    old = _replaced(sa, payloads)
    if old is None and len(sa.children) >= max(CHILDREN_MAX, 4 * len(sa.connection.children)):
        raise PeerError(NotifyType.NO_ADDITIONAL_SAS, f"there are {len(sa.children)} CHILD_SAs already")
    assert sa.prf is not None
    nonce_i = nonce_of(payloads, max(16, sa.prf.key_len // 2))
    child, out, shared, ke = answer(sa, payloads, first=False, replaces=old)
    nonce_r = sa.core.rng(NONCE_LEN)
    child.nonces = (nonce_i, nonce_r)
    at = next(i for i, p in enumerate(out) if isinstance(p, SaPayload)) + 1
    fresh: list[Payload] = [NoncePayload(nonce_r)]
    if ke is not None:
        fresh.append(ke)
    assert child.proposal is not None
    if additional.methods(child.proposal):
        if old is not None:
            # one that the peer has begun before leads nowhere any more
            followup.forget(sa, now, old)
        out.append(followup.expect(sa, _AwaitedChild(child, old, shared), now))
    else:
        _make(sa, child, old, shared, b"", now)
    return out[:at] + fresh + out[at:]


class _AwaitedChild(Awaited):
    """A CHILD_SA that needs additional key exchanges."""

    __slots__ = ("child", "old", "shared")

    def __init__(self, child: ChildSa, old: ChildSa | None, shared: bytes) -> None:
        assert child.proposal is not None
        super().__init__(child.proposal, child.nonces, old)
        self.child = child
        self.old = old
        self.shared = shared

    def finish(self, sa: IkeSa, answer: list[Payload], path: Path, now: float) -> list[Payload] | None:
        """Put it in place, unless what it is to replace is gone meanwhile: PeerError then."""
        if self.old is not None:
            _check_replaced(self.old)
        _make(sa, self.child, self.old, self.shared, self.secrets, now)
        return answer

    def drop(self, sa: IkeSa, now: float) -> None:
        """The SPI is free again."""
        old = self.old
        sa.core.host.free_spi(self.child.spi_in)
        if old is not None and old.state is ChildState.INSTALLED and old.peer_rekey is None and 0 < old.rekey_at <= now:
            # it was time for us as well
            _rekey_later(sa, old, now + RETRY_S)


def _make(sa: IkeSa, child: ChildSa, old: ChildSa | None, shared: bytes, further: bytes, now: float) -> None:
    """The key exchanges are done: put it in place."""
    # as long as the initiator may not have our answer it sends through the old SA, and so do we (section 2.8)
    ni, nr = child.nonces
    install(sa, child, ni, nr, shared, now, initiator=False, outbound=old is None, further=further)
    if old is None:
        log_up(sa, child)
        sa.core.emit(ChildUp(child))
        return
    if old.state is ChildState.REKEYING:
        sa.core.counters.add("child-collision", sa.name)
    old.peer_rekey = child
    child.rekey_of = old


def _replaced(sa: IkeSa, payloads: list[Payload]) -> ChildSa | None:
    """The CHILD_SA that N(REKEY_SA) names, None if there is no such notify."""
    notify = find_notify(payloads, NotifyType.REKEY_SA)
    if notify is None:
        return None
    spi = int.from_bytes(notify.spi, "big") if len(notify.spi) == 4 else 0
    old = sa.child_by_spi_out(spi) if notify.protocol == Protocol.ESP else None
    asked = sa.pending.request if sa.pending is not None else None
    if old is None and isinstance(asked, CreateChild):
        # section 2.25.1: it may be the one that our request has made, whose response is still on its way. Were it
        # called unknown, the peer would drop it, and we would send into nothing when the response comes
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"we wait for a CHILD_SA, which may be {spi:08x}")
    if old is None:
        raise PeerError(NotifyType.CHILD_SA_NOT_FOUND, f"there is no SA {spi:08x} to rekey")
    _check_replaced(old)
    return old


def _check_replaced(old: ChildSa) -> None:
    """Raise PeerError unless the peer may replace it."""
    if old.state in (ChildState.DELETED, ChildState.DESTROYING):
        raise PeerError(NotifyType.CHILD_SA_NOT_FOUND, f"{old} is {old.state.value}")
    if old.state not in CHILD_UP or old.peer_rekey is not None or waits_to_go(old):
        # section 2.25.1: being closed, or soon, or a second rekeying of what the peer has replaced already
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"{old} is {old.state.value}")
