"""CREATE_CHILD_SA for CHILD_SAs: another one, or a successor (RFC 7296 sections 1.3.1, 1.3.3, 2.8).

When both ends replace the same CHILD_SA at once there are two successors for a moment. Each end finds that out by
itself; the one that was made with the lowest of the four nonces is deleted by whoever asked for it, and the other end
deletes the SA that was to be replaced (section 2.8.1). Collisions with deletes are as section 2.25.1 says.
"""

from __future__ import annotations

import logging

from ipsec.crypto.kex import KeyExchange, key_exchange
from ipsec.errors import ParseError
from ipsec.ike.child import (
    ChildRefusedError,
    answer,
    install,
    new_child,
    nonce_of,
    offer,
    shown,
    take_answer,
)
from ipsec.ike.child import (
    log_up as log_up,
)
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig
from ipsec.ike.delete import DeleteChild, close_unused, waits_to_go
from ipsec.ike.errors import PeerError
from ipsec.ike.events import ChildUp
from ipsec.ike.init import NONCE_LEN
from ipsec.ike.lifetimes import Timer
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.wire.iana import ExchangeType, KeMethod, NotifyType, Protocol, TransformType, name_of
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload

log = logging.getLogger(__name__)

#: a peer that is busy is asked again after this long, with up to as much again at random (RFC 7296 section 2.25)
RETRY_S = 2.0
#: a rekeying that failed otherwise
RETRY_FAILED_S = 30.0
#: CHILD_SAs of one IKE_SA that a peer may ask for, where the configuration does not have a quarter as many itself
CHILDREN_MAX = 256


class CreateChild(Request):
    """Ask for a CHILD_SA, or for the successor of one."""

    exchange = ExchangeType.CREATE_CHILD_SA
    __slots__ = ("child", "closed", "config", "kex", "methods", "nonce", "replaces", "reqid")

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

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """SA, Ni, KEi, TSi, TSr; for a successor with N(REKEY_SA) in front."""
        old = self.replaces
        if not sa.established:
            return None
        if sa.rekey is not None:
            # section 2.25.2: not while the IKE_SA is replaced; the successor gets what is left to do
            sa.rekey.postponed.append(self)
            return None
        payloads: list[Payload] = []
        if old is not None:
            if old.state is not ChildState.INSTALLED:
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
        method = self.methods[-1] if self.methods else _first_method(self.config)
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
        try:
            shared = take_answer(sa, child, payloads, first=False, kex=self.kex)
            nonce = nonce_of(payloads, 16)
            if child.spi_out in self.closed:
                # its Delete was faster than the answer
                raise ChildRefusedError(0, "the peer has closed it again")
        except ChildRefusedError as error:
            self._refused(sa, error, now)
            return
        except ParseError as error:
            self._refused(sa, ChildRefusedError(0, str(error)), now)
            return
        if old is None:
            install(sa, child, self.nonce, nonce, shared, now, initiator=True)
            log_up(sa, child)
            sa.core.emit(ChildUp(child))
            return
        if old.peer_rekey is not None and min(self.nonce, nonce) < min(old.peer_rekey.nonces):
            self._lost_collision(sa, old, now)
            return
        install(sa, child, self.nonce, nonce, shared, now, initiator=True)
        log_up(sa, child, old)
        sa.core.counters.add("child-rekey", child.ike.name)
        sa.core.emit(ChildUp(child, replaces=old))
        if old.state is ChildState.REKEYING:
            old.change(ChildState.REKEYED)
            sa.ask(DeleteChild(old), now, first=True)

    def _lost_collision(self, sa: IkeSa, old: ChildSa, now: float) -> None:
        """Ours is the redundant one: it is deleted before it was ever used, and the peer deletes the old SA."""
        child = self.child
        assert child is not None
        log.info("%s: %s was rekeyed by both ends at once, the peer's successor stays", sa, old)
        if old.state is ChildState.REKEYING:
            old.change(ChildState.REKEYED)
        close_unused(sa, child, now)

    def _refused(self, sa: IkeSa, error: ChildRefusedError, now: float) -> None:
        child, old = self.child, self.replaces
        assert child is not None
        name = name_of(NotifyType, error.notify) if error.notify else "our refusal"
        if error.notify == NotifyType.INVALID_KE_PAYLOAD and self._other_method(sa, error.data):
            if old is not None and old.state is ChildState.REKEYING:
                old.change(ChildState.INSTALLED)
            sa.ask(self, now, first=True)
            return
        if error.notify:
            sa.core.host.free_spi(child.spi_in)
        else:
            close_unused(sa, child, now)
        self.child = None
        what = f"rekeying {old}" if old is not None else f"child {self.config.name}"
        if old is None:
            if error.notify == NotifyType.TEMPORARY_FAILURE:
                log.info("%s: %s: the peer is busy, asking again later", sa, what)
                sa.core.retry_child(sa, self, now + RETRY_S * (1 + sa.core.fraction()))
                return
            log.warning("%s: %s failed: %s (%s); %s", sa, what, error, name, _offered(child))
            sa.core.child_not_made(sa, self.config, error.failure(child), now)
            return
        if old.peer_rekey is not None or old.state not in CHILD_UP:
            # section 2.25.1: the peer's successor is the only one, or the old one was deleted meanwhile
            log.info("%s: %s: %s, which the peer has done itself", sa, what, name)
            return
        old.change(ChildState.INSTALLED)
        if error.notify == NotifyType.TEMPORARY_FAILURE:
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
            log.warning("%s: %s failed: %s (%s); %s", sa, what, error, name, _offered(child))
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


def _rekey_later(sa: IkeSa, old: ChildSa, at: float) -> None:
    sa.core.timers.set((Timer.CHILD_REKEY, old.uid), at)


def _first_method(config: ChildConfig) -> int:
    for proposal in config.esp_proposals:
        transform = proposal.first(TransformType.KE)
        if transform is not None:
            return transform.id
    return KeMethod.NONE


def _offered(child: ChildSa) -> str:
    proposals = ", ".join(map(str, child.config.esp_proposals))
    return f"we offered {proposals} for {shown(child.local_ts)} === {shown(child.remote_ts)}"


# -- the responder's side


def handle_create_child(sa: IkeSa, payloads: list[Payload], now: float) -> list[Payload]:
    """A CREATE_CHILD_SA request for a CHILD_SA."""
    # section 2.25.2: not while the IKE_SA is replaced or closed
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
    # as long as the initiator may not have our answer it sends through the old SA, and so do we (section 2.8)
    install(sa, child, nonce_i, nonce_r, shared, now, initiator=False, outbound=old is None)
    if old is not None:
        if old.state is ChildState.REKEYING:
            sa.core.counters.add("child-collision", sa.name)
        old.peer_rekey = child
        child.rekey_of = old
    if old is None:
        log_up(sa, child)
        sa.core.emit(ChildUp(child))
    at = next(i for i, p in enumerate(out) if isinstance(p, SaPayload)) + 1
    fresh: list[Payload] = [NoncePayload(nonce_r)]
    if ke is not None:
        fresh.append(ke)
    return out[:at] + fresh + out[at:]


def _replaced(sa: IkeSa, payloads: list[Payload]) -> ChildSa | None:
    """The CHILD_SA that N(REKEY_SA) names, None if there is no such notify."""
    notify = next((p for p in payloads if isinstance(p, NotifyPayload) and p.notify == NotifyType.REKEY_SA), None)
    if notify is None:
        return None
    spi = int.from_bytes(notify.spi, "big") if len(notify.spi) == 4 else 0
    old = sa.child_by_spi_out(spi) if notify.protocol == Protocol.ESP else None
    asked = sa.pending.request if sa.pending is not None else None
    if old is None and isinstance(asked, CreateChild):
        # section 2.25.1: it may be the one that our request has made, whose response is still on its way. Were it
        # called unknown, the peer would drop it, and we would send into nothing when the response comes
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"we wait for a CHILD_SA, which may be {spi:08x}")
    if old is None or old.state in (ChildState.DELETED, ChildState.DESTROYING):
        raise PeerError(NotifyType.CHILD_SA_NOT_FOUND, f"there is no SA {spi:08x} to rekey")
    if old.state not in CHILD_UP or old.peer_rekey is not None or waits_to_go(old):
        # section 2.25.1: being closed, or soon, or a second rekeying of what the peer has replaced already
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"{old} is {old.state.value}")
    return old
