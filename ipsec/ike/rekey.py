"""Rekeying an IKE_SA (RFC 7296 sections 1.3.2, 2.8.2, 2.18): a new one with new keys takes over the CHILD_SAs.

When both ends do it at once there are two successors for a moment, neither with CHILD_SAs. The one made with the lowest
of the four nonces is deleted by whoever asked for it; the other end deletes the IKE_SA that both replace.
"""

from __future__ import annotations

import logging

from ipsec.crypto.kex import KeyExchange, key_exchange
from ipsec.errors import ParseError
from ipsec.ike import followup, negotiate
from ipsec.ike.child import nonce_of
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.create_child import BUSY
from ipsec.ike.delete import DeleteIke
from ipsec.ike.errors import PeerError
from ipsec.ike.events import IkeRekeyed, Path
from ipsec.ike.find import find, find_error
from ipsec.ike.followup import Awaited, Steps
from ipsec.ike.init import NONCE_LEN, algorithms
from ipsec.ike.keymat import ike_keys, rekeyed_skeyseed
from ipsec.ike.lifetimes import REAUTHENTICATED_S, REPLACED_S, Timer, disarm
from ipsec.ike.sa import QUEUE_MAX, IkeSa, Request
from ipsec.ike.state import ChildState, IkeState
from ipsec.wire.iana import ExchangeType, NotifyType, Protocol, TransformType, name_of
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec.wire.proposal import Proposal

log = logging.getLogger(__name__)

#: IKE_SAs of one line that a peer may have without deleting those that it has replaced
LINEAGE_MAX = 8
RETRY_S = 2.0
#: how much later than a Delete what was sent before it may come
OVERTAKEN_S = 5.0
RETRY_FAILED_S = 30.0


class IkeRekey:
    """What goes on about the successor of an IKE_SA."""

    __slots__ = ("going", "ours", "ours_nonce", "peer_nonce", "peers", "postponed")

    def __init__(self) -> None:
        self.ours: IkeSa | None = None
        "the successor that we asked for, once the peer has answered"
        self.ours_nonce = b""
        self.peers: IkeSa | None = None
        "the successor that the peer asked for"
        self.peer_nonce = b""
        "the lower nonce of the exchange that made it, or that has begun to (RFC 9370)"
        self.postponed: list[Request] = []
        "what was to be asked meanwhile; the successor asks it"
        self.going: bool | None = None
        "once we wait for the peer to delete the IKE_SA: whether it was to be closed before (``unique = replace``)"

    def postpone(self, request: Request) -> None:
        """Leave something to the successor."""
        if len(self.postponed) < QUEUE_MAX:
            self.postponed.append(request)
        else:
            log.warning("too many requests wait for an IKE_SA's successor, %s is left out", type(request).__name__)


class RekeyIke(Request):
    """Ask for a successor of the IKE_SA."""

    __slots__ = ("any_prf", "closed", "kex", "made", "methods", "nonce", "spi", "steps")

    def __init__(self) -> None:
        self.closed = False
        "the peer has closed the IKE_SA, which is there for the answer alone"
        self.any_prf = False
        "the peer takes nothing with the PRF in use"
        self.kex: KeyExchange | None = None
        self.nonce = b""
        self.spi = b""
        self.methods: list[int] = []
        self.made: tuple[Proposal, bytes, bytes] | None = None
        "what CREATE_CHILD_SA was answered with: proposal, nonce, shared secret"
        self.steps: Steps | None = None
        "additional key exchanges (RFC 9370)"

    @property
    def exchange(self) -> ExchangeType:
        """CREATE_CHILD_SA, then one for each additional key exchange."""
        return ExchangeType.CREATE_CHILD_SA if self.steps is None else ExchangeType.IKE_FOLLOWUP_KE

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """SA with our new SPI, Ni, KEi."""
        if self.steps is not None:
            return self.steps.request(sa)
        if sa.state is not IkeState.ESTABLISHED or sa.rekey is not None:
            return None
        if sa.awaited or any(_is_under_way(child, now) for child in sa.children.values()):
            sa.core.timers.set((Timer.REKEY, sa.uid), now + RETRY_S)
            return None
        sa.change(IkeState.REKEYING)
        sa.rekey = IkeRekey()
        self.nonce = sa.core.rng(NONCE_LEN)
        self.spi = self.spi or sa.core.new_spi()
        if not self.methods:
            self.methods.append(_method(sa))
        self.kex = key_exchange(self.methods[-1], sa.core.rng)
        return [SaPayload(self._offered(sa)), NoncePayload(self.nonce), KePayload(self.kex.method, self.kex.public)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder made it, or says why not."""
        error = find_error(payloads)
        if error is not None:
            self._refused(sa, error, now)
            return
        if self.steps is not None:
            self.steps.take(payloads)
        else:
            self._take(sa, payloads)
        if self.steps is not None and self.steps.methods:
            self._go_on(sa, now)
        else:
            self._finish(sa, now)

    def _take(self, sa: IkeSa, payloads: list[Payload]) -> None:
        """The answer to CREATE_CHILD_SA. ParseError."""
        assert self.kex is not None
        offer = find(payloads, SaPayload)
        ke = find(payloads, KePayload)
        if offer is None or ke is None:
            raise ParseError("the answer to rekeying lacks SA or KE")
        nonce = nonce_of(payloads, 16)
        proposal = negotiate.check_answer(self._offered(sa), offer.proposals)
        transform = proposal.first(TransformType.KE)
        if transform is None or not transform.id == ke.method == self.kex.method:
            raise ParseError("the key exchange is not the one that was chosen")
        if len(proposal.spi) != 8 or proposal.spi == bytes(8):
            raise ParseError("the successor has no usable SPI")
        self.made = proposal, nonce, self.kex.shared(ke.data)
        self.steps = followup.begin(proposal, payloads)
        if sa.rekey is not None:
            sa.rekey.ours_nonce = min(self.nonce, nonce)

    def _go_on(self, sa: IkeSa, now: float) -> None:
        """Additional key exchanges are left. Nothing is made before the last one, and there is nothing to delete."""
        rekey = sa.rekey
        if rekey is None:
            if self.closed:
                sa.destroy("rekeyed", now)
            return
        if rekey.ours_nonce < rekey.peer_nonce:
            _give_way(sa, rekey, now)
            return
        # the peer will not go on with its own
        followup.forget(sa, now, sa)
        sa.ask(self, now, first=True)

    def _finish(self, sa: IkeSa, now: float) -> None:
        assert self.made is not None
        proposal, nonce, shared = self.made
        further = self.steps.secrets if self.steps is not None else b""
        new = sa.core.new_successor(sa, initiator=True, spi_i=self.spi, spi_r=proposal.spi)
        _key(sa, new, proposal, self.nonce, nonce, shared, further)
        rekey = sa.rekey
        if rekey is None:
            # section 2.8.2: the peer's successor is in use already, which makes ours the redundant one
            new.change(IkeState.ESTABLISHED)
            new.ask(DeleteIke("redundant"), now)
            if self.closed:
                sa.destroy("rekeyed", now)
            return
        rekey.ours = new
        if rekey.ours_nonce < rekey.peer_nonce:
            # section 2.8.2: ours is the redundant one; the peer deletes the IKE_SA that both replace
            new.change(IkeState.ESTABLISHED)
            new.ask(DeleteIke("redundant"), now)
            _give_way(sa, rekey, now)
            return
        take_over(sa, new, now)
        sa.ask(DeleteIke("rekeyed"), now, first=True)

    def _offer(self, sa: IkeSa) -> list[Proposal]:
        return _offer(sa) if self.any_prf else _with_same_prf(sa)

    def _offered(self, sa: IkeSa) -> list[Proposal]:
        return [Proposal(Protocol.IKE, p.transforms, n, self.spi) for n, p in enumerate(self._offer(sa), 1)]

    def _refused(self, sa: IkeSa, error: NotifyPayload, now: float) -> None:
        name = name_of(NotifyType, error.notify)
        rekey = sa.rekey
        begun, self.steps = self.steps is not None, None
        if self.closed:
            sa.destroy("rekeyed", now)
            return
        if rekey is not None and rekey.peer_nonce:
            log.info("%s: rekeying: %s, which the peer does itself", sa, name)
            # section 2.8.2: its Delete makes the successor take over; should that never come, we do it ourselves
            _give_way(sa, rekey, now)
            return
        if rekey is None or sa.state is not IkeState.REKEYING:
            return
        sa.rekey = None
        sa.change(IkeState.ESTABLISHED)
        for request in rekey.postponed:
            sa.queue.append(request)
        if error.notify == NotifyType.INVALID_KE_PAYLOAD and len(error.data) == 2 and not begun:
            method = int.from_bytes(error.data, "big")
            offered = {t.id for p in self._offer(sa) for t in p.of_type(TransformType.KE)}
            if method in offered and method not in self.methods:
                self.methods.append(method)
                sa.ask(self, now, first=True)
                return
        if error.notify == NotifyType.NO_PROPOSAL_CHOSEN and self._offer(sa) != _offer(sa):
            self.any_prf = True
            sa.ask(self, now, first=True)
            return
        if error.notify in BUSY:
            sa.core.timers.set((Timer.REKEY, sa.uid), now + RETRY_S * (1 + sa.core.fraction()))
            return
        log.warning("%s: rekeying failed: %s; we offered %s", sa, name, negotiate.describe(self._offer(sa)))
        sa.core.timers.set((Timer.REKEY, sa.uid), now + RETRY_FAILED_S * (1 + sa.core.fraction()))


def _offer(sa: IkeSa) -> list[Proposal]:
    """What is in use first, then whatever else the connection allows."""
    assert sa.proposal is not None
    return [sa.proposal, *sa.connection.proposals]


def _with_same_prf(sa: IkeSa) -> list[Proposal]:
    """The same without other PRFs than the one in use.

    Section 2.18 derives SKEYSEED with the old PRF and the keys with the new one. strongSwan 5.9.8 takes the old one for
    both, so that nothing that one end sends in a successor with another PRF could be read by the other.
    """
    assert sa.proposal is not None
    prf = sa.proposal.first(TransformType.PRF)
    found = []
    for proposal in _offer(sa):
        if prf in proposal.transforms:
            kept = [t for t in proposal.transforms if t.type != TransformType.PRF or t == prf]
            found.append(Proposal(proposal.protocol, kept, proposal.number, proposal.spi))
    return found


def _method(sa: IkeSa) -> int:
    assert sa.proposal is not None
    transform = sa.proposal.first(TransformType.KE)
    assert transform is not None
    return transform.id


def _key(
    sa: IkeSa, new: IkeSa, proposal: Proposal, ni: bytes, nr: bytes, shared: bytes, further: bytes = b""
) -> None:
    """Keys of the successor, from the old SK_d with the old PRF (section 2.18)."""
    assert sa.prf is not None
    assert sa.keys is not None
    prf, suite = algorithms(proposal)
    seed = rekeyed_skeyseed(sa.prf, sa.keys.sk_d, shared, ni, nr, further)
    new.proposal = proposal
    new.install_keys(prf, suite, ike_keys(prf, suite, seed, ni, nr, new.spi_i, new.spi_r))


def take_over(sa: IkeSa, new: IkeSa, now: float) -> None:
    """CHILD_SAs, addresses and what is left to do go to the successor (section 2.8)."""
    core = sa.core
    followup.forget(sa, now)
    if new.state is IkeState.CREATED:
        new.change(IkeState.ESTABLISHED)
    sa.change(IkeState.REKEYED)
    going = _is_going(sa)
    # one that another IKE_SA stands for already, by re-authentication, hands that down
    replaced, sa.quiet = sa.quiet, True
    new.quiet = replaced
    for child in sa.children.values():
        child.ike = new
        new.children[child.uid] = child
    sa.children = {}
    if (new.path, new.nat_local, new.nat_remote) != (sa.path, sa.nat_local, sa.nat_remote):
        # the peer, for whom it took over before, has moved since
        core.move_children(new, now)
    peers = sa.rekey.peers if sa.rekey is not None else None
    if peers is not None and peers is not new and peers.established:
        # section 2.8.2: the redundant one is the peer's to delete, should it ever do so
        core.timers.set((Timer.REPLACED, peers.uid), now + REPLACED_S)
    for other in core.sas.values():
        # a re-authentication under way is to take the place of what there is now
        if other.replaces == sa.uid:
            other.replaces = new.uid
    new.addresses, sa.addresses = sa.addresses, ()
    new.leases, sa.leases = sa.leases, []
    sa.successor = new
    under_way = sa.pending.request.in_successor() if sa.pending is not None else None
    again = [under_way] if under_way is not None else []
    waiting = [*again, *sa.queue, *(sa.rekey.postponed if sa.rekey else []), *core.retries(sa)]
    sa.queue.clear()
    sa.rekey = None
    core.succeeded(sa, new, now)
    if going:
        disarm(core, new)
        core.timers.set((Timer.REPLACED, new.uid), now + REAUTHENTICATED_S)
    core.counters.add("ike-rekey-init" if new.initiator else "ike-rekey-resp", new.name)
    core.emit(IkeRekeyed(sa, new))
    log.info("%s: rekeyed, %s takes over", sa, new)
    for request in waiting:
        new.ask(request, now)
    if replaced:
        new.ask(DeleteIke("replaced"), now)


def _is_under_way(child: ChildSa, now: float) -> bool:
    """Whether a CHILD_SA is just being replaced or closed (section 2.25.2).

    By the peer, too: if our answer is lost it asks again, but in this IKE_SA alone. charon, which does not refuse our
    rekeying where both ends have rekeyed the CHILD_SA, would neither have its own successor then nor take another one.
    """
    if child.state in (ChildState.REKEYING, ChildState.DELETING):
        return True
    return child.unsettled and child.peer_rekey is not None and now < child.peer_rekey.installed_at + REPLACED_S


def _give_way(sa: IkeSa, rekey: IkeRekey, now: float) -> None:
    """Both ends have begun to rekey an IKE_SA, and the peer's successor is the one that stays (section 2.8.2)."""
    log.info("%s: rekeyed by both ends at once, the peer's successor stays", sa)
    if rekey.peers is not None:
        _wait_for_delete(sa, rekey, now)
    else:
        # it is not there yet (RFC 9370): when it is, it takes over as if we had asked for none
        sa.change(IkeState.ESTABLISHED)


def _wait_for_delete(sa: IkeSa, rekey: IkeRekey, now: float) -> None:
    """Both ends have rekeyed an IKE_SA, which is the peer's to delete."""
    rekey.going = _is_going(sa)
    sa.core.timers.set((Timer.REPLACED, sa.uid), now + REPLACED_S)


def _is_going(sa: IkeSa) -> bool:
    """Whether an IKE_SA was to be closed, as the peer has another one (``unique = replace``)."""
    if sa.rekey is not None and sa.rekey.going is not None:
        return sa.rekey.going
    return (Timer.REPLACED, sa.uid) in sa.core.timers and not sa.quiet


# -- the responder's side


def handle_rekey(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload] | None:
    """A CREATE_CHILD_SA request whose SA payload is for IKE; None if the response is on its way already."""
    # one that the peer has begun before, without additional key exchanges that it has not done, leads nowhere any more
    followup.forget(sa, now, sa)
    # section 2.25.2
    if sa.state not in (IkeState.ESTABLISHED, IkeState.REKEYING) or (sa.rekey and sa.rekey.peers):
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"the IKE_SA is {sa.state.value}")
    if sa.quiet:
        # section 2.8.2: whether it stays is not settled here yet, or another IKE_SA stands for it
        raise PeerError(NotifyType.TEMPORARY_FAILURE, "the IKE_SA is not in use yet, or no longer")
    if len(sa.lineage) >= LINEAGE_MAX:
        raise PeerError(NotifyType.TEMPORARY_FAILURE, f"{len(sa.lineage) - 1} that it has replaced are not deleted")
    if sa.core.busy_with_children(sa):
        raise PeerError(NotifyType.TEMPORARY_FAILURE, "a CHILD_SA is being created, rekeyed or closed")
    offer = find(payloads, SaPayload)
    assert offer is not None
    theirs = [p for p in offer.proposals if p.protocol == Protocol.IKE and len(p.spi) == 8 and p.spi != bytes(8)]
    ke = find(payloads, KePayload)
    assert sa.prf is not None
    nonce_i = nonce_of(payloads, max(16, sa.prf.key_len // 2))
    sent = ke.method if ke else None
    proposal = negotiate.choose(_with_same_prf(sa), theirs, ke=sent) or negotiate.choose(_offer(sa), theirs, ke=sent)
    if proposal is None:
        why = negotiate.explain_mismatch(_offer(sa), theirs)
        raise PeerError(NotifyType.NO_PROPOSAL_CHOSEN, f"rekeying: {why}")
    transform = proposal.first(TransformType.KE)
    if transform is None or ke is None or ke.method != transform.id:
        method = transform.id if transform is not None else 0
        raise PeerError(NotifyType.INVALID_KE_PAYLOAD, f"we take {transform}", method.to_bytes(2, "big"))
    public, shared = sa.core.join_key_exchange(transform.id, ke.data)
    nonce_r = sa.core.rng(NONCE_LEN)
    spi_r = sa.core.new_spi()
    chosen = Proposal(Protocol.IKE, proposal.transforms, proposal.number, spi_r)
    answer: list[Payload] = [SaPayload([chosen]), NoncePayload(nonce_r), KePayload(transform.id, public)]
    if sa.rekey is not None:
        sa.core.counters.add("ike-collision", sa.name)
    one = _AwaitedIke(sa, proposal, spi_r, (nonce_i, nonce_r), shared)
    if not one.methods:
        return one.finish(sa, answer, path, now)
    if sa.rekey is None:
        sa.rekey = IkeRekey()
    sa.rekey.peer_nonce = min(one.nonces)
    return [*answer, followup.expect(sa, one, now)]


class _AwaitedIke(Awaited):
    """A successor that the peer has asked for. Until it is there nothing is asked that would have to go to it."""

    __slots__ = ("proposal", "shared", "spi_r")

    def __init__(
        self, sa: IkeSa, proposal: Proposal, spi_r: bytes, nonces: tuple[bytes, bytes], shared: bytes
    ) -> None:
        super().__init__(proposal, nonces, sa)
        self.proposal = proposal
        "with the peer's SPI"
        self.spi_r = spi_r
        self.shared = shared

    def finish(self, sa: IkeSa, answer: list[Payload], path: Path, now: float) -> list[Payload] | None:
        """The key exchanges are done: make it."""
        new = sa.core.new_successor(sa, initiator=False, spi_i=self.proposal.spi, spi_r=self.spi_r)
        nonce_i, nonce_r = self.nonces
        _key(sa, new, self.proposal, nonce_i, nonce_r, self.shared, self.secrets)
        if sa.state is IkeState.REKEYING:
            assert sa.rekey is not None
            new.change(IkeState.ESTABLISHED)
            sa.rekey.peers = new
            sa.rekey.peer_nonce = min(self.nonces)
            return answer
        # nobody else's successor is in question: this one takes over at once. The peer has it when it has our response,
        # and not before: what the successor asks goes after that
        exchange = ExchangeType.IKE_FOLLOWUP_KE if self.secrets else ExchangeType.CREATE_CHILD_SA
        sa.respond(exchange, answer, path, now)
        take_over(sa, new, now)
        return None

    def drop(self, sa: IkeSa, now: float) -> None:
        """Go on as if there had been nothing."""
        rekey = sa.rekey
        if rekey is None or rekey.peers is not None:
            return
        rekey.peer_nonce = b""
        if sa.state is not IkeState.ESTABLISHED:
            return  # ours goes on
        sa.rekey = None
        sa.queue.extend(rekey.postponed)
        if 0 < sa.rekey_at <= now:
            sa.core.timers.set((Timer.REKEY, sa.uid), now + RETRY_S)
        sa.ask_next(now)


def closed_by_peer(sa: IkeSa, now: float) -> None:
    """The peer deletes an IKE_SA that both ends were replacing: its successor is the one that stays."""
    rekey = sa.rekey
    if rekey is not None and rekey.peers is not None and rekey.peers.established and sa.established:
        take_over(sa, rekey.peers, now)


def awaits_answer(sa: IkeSa, now: float) -> bool:
    """Whether an IKE_SA that the peer closes stays for a while.

    The peer's successor has taken over, and the answer to our own rekeying, which the Delete may have overtaken, brings
    another one that is ours to delete (section 2.8.2).
    """
    pending = sa.pending
    if sa.state is not IkeState.REKEYED or pending is None or not isinstance(pending.request, RekeyIke):
        return False
    pending.request.closed = True
    # nobody is there to answer if it is sent again
    pending.tries = sa.core.settings.retransmit_tries
    sa.core.timers.set((Timer.RETRANSMIT, sa.uid), now + OVERTAKEN_S)
    return True


def settled_by_peer(new: IkeSa, now: float) -> None:
    """The peer closes CHILD_SAs through a successor that it has made: it knows of no other one, or ours has lost.

    Section 2.8.2 lets it, as soon as it has our response; it has not got our own request, and will refuse that.
    """
    old = next((sa for sa in new.core.sas.values() if sa.rekey is not None and sa.rekey.peers is new), None)
    if old is not None:
        closed_by_peer(old, now)
