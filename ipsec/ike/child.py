"""CHILD_SAs: what is offered and answered in IKE_AUTH and CREATE_CHILD_SA (RFC 7296 sections 1.2, 1.3.1, 2.9, 2.17).

Rekeying one is here too (section 1.3.3); what happens when both ends do so at once is in ``rekey``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ipsec.crypto.kex import KeyExchange
from ipsec.crypto.proposals import esp_suite_of
from ipsec.crypto.suites import with_sha256_96
from ipsec.errors import ParseError
from ipsec.ike import negotiate
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, ChildMode, SelectorTemplate
from ipsec.ike.errors import PeerError
from ipsec.ike.events import ChildKeys, ChildUp, InstallChild, IpAddress, RemoveChild
from ipsec.ike.failure import Cause, Failure, bounded, cause_of, terms
from ipsec.ike.find import find, find_error, find_notify, find_typed
from ipsec.ike.keymat import child_keys
from ipsec.ike.lifetimes import arm_child
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState
from ipsec.wire import additional
from ipsec.wire.iana import NotifyType, PayloadType, Protocol, TransformType, name_of
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload, TsPayload
from ipsec.wire.proposal import Proposal
from ipsec.wire.selector import TrafficSelector

log = logging.getLogger(__name__)

ANY_V4 = (IPv4Address(0), IPv4Address(0xFFFFFFFF))
ANY_V6 = (IPv6Address(0), IPv6Address((1 << 128) - 1))

#: errors that mean this CHILD_SA alone (RFC 7296 section 1.2)
CHILD_ERRORS = frozenset(
    {
        NotifyType.NO_PROPOSAL_CHOSEN,
        NotifyType.TS_UNACCEPTABLE,
        NotifyType.SINGLE_PAIR_REQUIRED,
        NotifyType.INTERNAL_ADDRESS_FAILURE,
        NotifyType.FAILED_CP_REQUIRED,
        NotifyType.NO_ADDITIONAL_SAS,
        NotifyType.INVALID_KE_PAYLOAD,
        NotifyType.TEMPORARY_FAILURE,
        NotifyType.CHILD_SA_NOT_FOUND,
    }
)


class ChildRefusedError(Exception):
    """The peer made no CHILD_SA of our offer, or one that we cannot take; ``notify`` is 0 in the second case."""

    def __init__(self, notify: int, reason: str, data: bytes = b"") -> None:
        self.notify = notify
        self.data = data
        super().__init__(reason)

    def failure(self, child: ChildSa) -> Failure:
        """What to tell of it."""
        cause = cause_of(self.notify, child=True) if self.notify else Cause.MALFORMED
        proposals = child.config.esp_proposals if cause is not Cause.SELECTORS else ()
        selectors = (child.local_ts, child.remote_ts) if cause is not Cause.CHILD_PROPOSALS else ((), ())
        return Failure(
            cause,
            bounded(f"{name_of(NotifyType, self.notify)} from the peer" if self.notify else str(self)),
            child.name,
            by_peer=bool(self.notify),
            ours=terms(proposals, *selectors),
        )


# -- selectors


def resolve(templates: Sequence[SelectorTemplate], dynamic: tuple[IpAddress, ...]) -> list[TrafficSelector]:
    """What a configuration's selectors mean with these addresses; what another one contains is left out."""
    found = [selector for template in templates for selector in template.resolve(dynamic)]
    if len(found) < 2:
        return found
    return [s for i, s in enumerate(found) if not any(_covers(o, s, j < i) for j, o in enumerate(found) if j != i)]


def _covers(other: TrafficSelector, selector: TrafficSelector, earlier: bool) -> bool:
    return other.contains(selector) and (earlier or other != selector)


def local_selectors(sa: IkeSa, config: ChildConfig) -> list[TrafficSelector]:
    """Our side; while we do not know the virtual address that we ask for, all of its family."""
    if not _awaits_address(sa):
        return resolve(config.local_ts, sa.addresses or (sa.path.local,))
    found: list[TrafficSelector] = []
    for template in config.local_ts:
        if template.network is not None:
            found += template.resolve(())
            continue
        for first, last in (ANY_V4, ANY_V6):
            if any(vip.version == first.version for vip in sa.connection.vips):
                found.append(TrafficSelector(first, last, template.protocol, template.ports))
    return found


def _awaits_address(sa: IkeSa) -> bool:
    """Whether IKE_AUTH may bring a virtual address yet, for which the first CHILD_SA is offered with all of them."""
    return bool(sa.connection.vips) and sa.initiator and not sa.authenticated and not sa.addresses


def remote_selectors(sa: IkeSa, config: ChildConfig) -> list[TrafficSelector]:
    """The peer's side."""
    leases = tuple(address for _, address in sa.leases)
    return resolve(config.remote_ts, leases or (sa.path.remote,))


def shown(selectors: Sequence[TrafficSelector]) -> str:
    """For logs."""
    return " ".join(map(str, selectors)) or "nothing"


class Shown:
    """The same, put into words when the line is written: the peer may be waiting."""

    __slots__ = ("_selectors",)

    def __init__(self, selectors: Sequence[TrafficSelector]) -> None:
        self._selectors = selectors

    def __str__(self) -> str:
        return shown(self._selectors)


# -- the initiator's side


def offer(sa: IkeSa, child: ChildSa, *, first: bool) -> list[Payload]:
    """SA, TSi and TSr and what goes with them. ``first``: in IKE_AUTH, where no key is exchanged (section 1.2)."""
    if not child.spi_in:
        child.spi_in = sa.core.host.allocate_spi()
    payloads: list[Payload] = []
    if child.config.mode is ChildMode.TRANSPORT:
        payloads.append(NotifyPayload(NotifyType.USE_TRANSPORT_MODE))
    spi = child.spi_in.to_bytes(4, "big")
    proposals = [
        Proposal(Protocol.ESP, _without_ke(p) if first else p.transforms, number, spi)
        for number, p in enumerate(child.config.esp_proposals, 1)
    ]
    payloads.append(SaPayload(_distinct(proposals) if first else proposals))
    payloads.append(TsPayload(PayloadType.TSI, child.local_ts))
    payloads.append(TsPayload(PayloadType.TSR, child.remote_ts))
    return payloads


def _without_ke(proposal: Proposal) -> list:  # type: ignore[type-arg]
    return [t for t in proposal.transforms if t.type != TransformType.KE and t.type not in additional.TYPES]


def _distinct(proposals: list[Proposal]) -> list[Proposal]:
    found: list[Proposal] = []
    for proposal in proposals:
        if not any(other.transforms == proposal.transforms for other in found):
            found.append(Proposal(proposal.protocol, proposal.transforms, len(found) + 1, proposal.spi))
    return found


def new_child(sa: IkeSa, config: ChildConfig, *, reqid: int = 0) -> ChildSa:
    """A CHILD_SA to negotiate, with the selectors that its configuration means now."""
    child = ChildSa(sa.core.next_uid(), sa, config, reqid or sa.core.reqid_for(sa.connection, config))
    child.local_ts = local_selectors(sa, config)
    child.remote_ts = remote_selectors(sa, config)
    return child


def take_answer(
    sa: IkeSa, child: ChildSa, payloads: Sequence[Payload], *, first: bool, kex: KeyExchange | None = None
) -> bytes:
    """Fill in what the responder chose; the shared secret of a new key exchange, or nothing.

    ChildRefusedError if it refused or chose what we did not offer.
    """
    refuse_errors(payloads)
    answer = find(payloads, SaPayload)
    ours = find_typed(payloads, TsPayload, PayloadType.TSI)
    theirs = find_typed(payloads, TsPayload, PayloadType.TSR)
    if answer is None or ours is None or theirs is None:
        raise ChildRefusedError(0, "the answer lacks SA, TSi or TSr")
    offered = next(p for p in offer(sa, child, first=first) if isinstance(p, SaPayload)).proposals
    try:
        proposal = negotiate.check_answer(offered, answer.proposals)
        shared = _finish_key_exchange(proposal, payloads, kex)
    except ParseError as error:
        raise ChildRefusedError(0, str(error)) from None
    if not _spi_ok(proposal.spi):
        raise ChildRefusedError(0, "the answer has no usable SPI")
    for name, chosen, limits in (
        ("TSi", ours.selectors, child.local_ts),
        ("TSr", theirs.selectors, child.remote_ts),
    ):
        # RFC 7296 section 2.9: a subset of what was offered, and not empty
        if not chosen or not all(any(limit.contains(s) for limit in limits) for s in chosen):
            raise ChildRefusedError(0, f"{name} {shown(chosen)} is not within what we offered, {shown(limits)}")
    if negotiate.too_many_pairs(ours.selectors, theirs.selectors, len(child.local_ts) * len(child.remote_ts)):
        raise ChildRefusedError(0, f"{len(ours.selectors)} TSi and {len(theirs.selectors)} TSr are too many")
    transport = find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
    if transport and child.config.mode is not ChildMode.TRANSPORT:
        raise ChildRefusedError(0, "the peer answers with transport mode, which we did not offer")
    child.mode = ChildMode.TRANSPORT if transport else ChildMode.TUNNEL
    child.local_ts, child.remote_ts = list(ours.selectors), list(theirs.selectors)
    if first and sa.connection.vips:
        child.local_ts = _meant(sa, child, ours.selectors)
    _take(child, proposal, payloads)
    return shared


def refuse_errors(payloads: Sequence[Payload]) -> None:
    """ChildRefusedError for the first error of an answer."""
    error = find_error(payloads)
    if error is not None:
        raise ChildRefusedError(error.notify, "the peer refuses", error.data)


def in_question(child: ChildSa, notify: int) -> str:
    """What of our offer an error is about, for the end of a line in the log; empty where that is neither."""
    if notify in (NotifyType.TS_UNACCEPTABLE, NotifyType.SINGLE_PAIR_REQUIRED):
        return f"; we offered {shown(child.local_ts)} === {shown(child.remote_ts)}"
    if notify in (NotifyType.NO_PROPOSAL_CHOSEN, NotifyType.INVALID_KE_PAYLOAD):
        return f"; we offered {negotiate.describe(child.config.esp_proposals)}"
    return ""


def _meant(sa: IkeSa, child: ChildSa, chosen: Sequence[TrafficSelector]) -> list[TrafficSelector]:
    """What the responder left of our side in IKE_AUTH, without what was only there because our virtual address was not
    known. Elsewhere the offer was exact, and a successor may have selectors of addresses that we do not have any more.
    """
    meant = resolve(child.config.local_ts, sa.addresses or (sa.path.local,))
    left = negotiate.narrow(meant, chosen)
    if not left:
        raise ChildRefusedError(0, f"TSi {shown(chosen)} has nothing of {shown(meant)}")
    return left


def _finish_key_exchange(proposal: Proposal, payloads: Sequence[Payload], kex: KeyExchange | None) -> bytes:
    chosen = proposal.first(TransformType.KE)
    ke = find(payloads, KePayload)
    if chosen is None or not chosen.id:
        return b""
    if kex is None or ke is None or not chosen.id == ke.method == kex.method:
        raise ParseError("the key exchange is not the one that was chosen")
    return kex.shared(ke.data)


def _take(child: ChildSa, proposal: Proposal, payloads: Sequence[Payload]) -> None:
    child.proposal = proposal
    child.spi_out = int.from_bytes(proposal.spi, "big")
    child.suite, child.esn = esp_suite_of(proposal)
    if child.config.sha256_96:
        child.suite = with_sha256_96(child.suite)
    child.tfc = find_notify(payloads, NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED) is None


# -- the responder's side


def answer(
    sa: IkeSa, payloads: Sequence[Payload], *, first: bool, replaces: ChildSa | None = None
) -> tuple[ChildSa, list[Payload], bytes, KePayload | None]:
    """A CHILD_SA as the peer asked for it: (child, SA TSi TSr of our answer, shared secret, our KE payload).

    PeerError says what it hears if nothing comes of it.
    """
    request = find(payloads, SaPayload)
    theirs = find_typed(payloads, TsPayload, PayloadType.TSI)
    ours = find_typed(payloads, TsPayload, PayloadType.TSR)
    if request is None or theirs is None or ours is None:
        raise PeerError(NotifyType.INVALID_SYNTAX, "SA, TSi or TSr is missing", fatal=True)
    transport = find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
    config, local_ts, remote_ts = _match(sa, theirs.selectors, ours.selectors, replaces)
    ke = find(payloads, KePayload)
    proposal = negotiate.choose(
        config.esp_proposals,
        [p for p in request.proposals if p.protocol == Protocol.ESP and _spi_ok(p.spi)],
        ke=ke.method if ke is not None else 0,
        skip_ke=first,
    )
    if proposal is None:
        why = negotiate.explain_mismatch(config.esp_proposals, request.proposals, skip_ke=first)
        raise PeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            f"child {config.name}: {why}",
            child=config.name,
            ours=terms(config.esp_proposals, local_ts, remote_ts),
            theirs=terms(request.proposals, ours.selectors, theirs.selectors),
        )
    shared, ke_answer = _join_key_exchange(sa, proposal, ke)
    child = ChildSa(sa.core.next_uid(), sa, config, replaces.reqid if replaces else 0)
    if not child.reqid:
        child.reqid = sa.core.reqid_for(sa.connection, config)
    child.local_ts, child.remote_ts = local_ts, remote_ts
    if transport and config.mode is ChildMode.TRANSPORT:
        child.mode = ChildMode.TRANSPORT
    _take(child, proposal, payloads)
    child.spi_in = sa.core.host.allocate_spi()
    out: list[Payload] = []
    if child.mode is ChildMode.TRANSPORT:
        out.append(NotifyPayload(NotifyType.USE_TRANSPORT_MODE))
    out.append(
        SaPayload([Proposal(Protocol.ESP, proposal.transforms, proposal.number, child.spi_in.to_bytes(4, "big"))])
    )
    out.append(TsPayload(PayloadType.TSI, remote_ts))
    out.append(TsPayload(PayloadType.TSR, local_ts))
    return child, out, shared, ke_answer


def _spi_ok(spi: bytes) -> bool:
    # RFC 4303 section 2.1: 0..255 are reserved
    return len(spi) == 4 and int.from_bytes(spi, "big") >= 256


def _match(
    sa: IkeSa, theirs: list[TrafficSelector], ours: list[TrafficSelector], replaces: ChildSa | None
) -> tuple[ChildConfig, list[TrafficSelector], list[TrafficSelector]]:
    """The child whose selectors fit best, and both sides narrowed to it (RFC 7296 section 2.9)."""
    if replaces is not None:
        # section 2.9.2: a successor carries at least what the SA carries that it replaces
        local_ts = negotiate.narrow(replaces.local_ts, ours)
        remote_ts = negotiate.narrow(replaces.remote_ts, theirs)
        negotiate.shorten(local_ts, remote_ts, len(replaces.local_ts) * len(replaces.remote_ts))
        if local_ts and remote_ts:
            return replaces.config, local_ts, remote_ts
    found: list[_Match] = []
    for config in sa.connection.children:
        if config.shunt:
            continue
        own_local, own_remote = local_selectors(sa, config), remote_selectors(sa, config)
        local_ts, remote_ts = negotiate.narrow(own_local, ours), negotiate.narrow(own_remote, theirs)
        negotiate.shorten(local_ts, remote_ts, len(own_local) * len(own_remote))
        if local_ts and remote_ts:
            found.append(_Match(config, own_local, own_remote, local_ts, remote_ts))
    if not found:
        raise _no_match(sa, theirs, ours)
    best = max(found, key=lambda match: match.score(theirs, ours)) if len(found) > 1 else found[0]
    return best.config, best.local_ts, best.remote_ts


class _Match(NamedTuple):
    """A child that a peer may mean."""

    config: ChildConfig
    own_local: list[TrafficSelector]
    own_remote: list[TrafficSelector]
    local_ts: list[TrafficSelector]
    "narrowed to what the peer wants, as the other side"
    remote_ts: list[TrafficSelector]

    def score(self, theirs: list[TrafficSelector], ours: list[TrafficSelector]) -> tuple[int, int, int]:
        """The more the better: one for exactly what they want comes before one that is for more and narrowed to it."""
        exact = sum(s in ours for s in self.own_local) + sum(s in theirs for s in self.own_remote)
        kept = sum(s in ours for s in self.local_ts) + sum(s in theirs for s in self.remote_ts)
        return exact, kept, -_unwanted(self.own_local, ours) - _unwanted(self.own_remote, theirs)


def _unwanted(own: list[TrafficSelector], wanted: list[TrafficSelector]) -> int:
    """How many of our selectors are for more than what the peer wants, or for something else."""
    return sum(not any(w.contains(s) for w in wanted) for s in own)


def _no_match(sa: IkeSa, theirs: list[TrafficSelector], ours: list[TrafficSelector]) -> PeerError:
    children = [(c, local_selectors(sa, c), remote_selectors(sa, c)) for c in sa.connection.children]
    have = "; ".join(f"{c.name}: {shown(local)} === {shown(remote)}" for c, local, remote in children)
    return PeerError(
        NotifyType.TS_UNACCEPTABLE,
        f"they want {shown(ours)} === {shown(theirs)}, we have {have or 'no child'}",
        # with one child it can only be that one
        child=children[0][0].name if len(children) == 1 else "",
        cause=Cause.SELECTORS,
        ours=terms((), [s for _, local, _ in children for s in local], [s for *_, r in children for s in r]),
        theirs=terms((), ours, theirs),
    )


def _join_key_exchange(sa: IkeSa, proposal: Proposal, ke: KePayload | None) -> tuple[bytes, KePayload | None]:
    """The responder's half of a key exchange inside CREATE_CHILD_SA, if one was chosen."""
    chosen = proposal.first(TransformType.KE)
    if chosen is None or not chosen.id:
        return b"", None
    if ke is None or ke.method != chosen.id:
        raise PeerError(NotifyType.INVALID_KE_PAYLOAD, f"we take key exchange {chosen}", chosen.id.to_bytes(2, "big"))
    public, shared = sa.core.join_key_exchange(chosen.id, ke.data)
    return shared, KePayload(chosen.id, public)


# -- into the data path


def install(
    sa: IkeSa,
    child: ChildSa,
    ni: bytes,
    nr: bytes,
    shared: bytes,
    now: float,
    *,
    initiator: bool,
    outbound: bool = True,
    further: bytes = b"",
) -> None:
    """Derive keys (RFC 7296 section 2.17) and put the SAs in place; without ``outbound`` that one waits.

    ``further``: secrets of additional key exchanges (RFC 9370).
    """
    assert sa.prf is not None
    assert sa.keys is not None
    assert child.suite is not None
    keys = child_keys(sa.prf, sa.keys.sk_d, child.suite, ni, nr, shared, further)
    to_responder = ChildKeys(keys.encr_i, keys.integ_i)
    to_initiator = ChildKeys(keys.encr_r, keys.integ_r)
    inbound, out = (to_initiator, to_responder) if initiator else (to_responder, to_initiator)
    child.encap = sa.core.encapsulates(sa)
    child.installed_at = now
    sa.core.problems.came_up(sa.name, child.name)
    sa.children[child.uid] = child
    child.has_in = True
    child.has_out = outbound
    child.outbound = None if outbound else out
    child.change(ChildState.INSTALLED if outbound else ChildState.INSTALLING)
    sa.core.emit(InstallChild(child, child.suite, child.esn, inbound, out if outbound else None, sa.path, child.encap))
    arm_child(sa.core, child, now)


def install_outbound(child: ChildSa, now: float) -> None:
    """The initiator of the rekeying uses the new SA: so do we."""
    out = child.outbound
    if out is None or child.suite is None:
        return
    child.outbound = None
    child.has_out = True
    child.change(ChildState.INSTALLED)
    child.ike.core.emit(InstallChild(child, child.suite, child.esn, None, out, child.ike.path, child.encap))


def nonce_of(payloads: Sequence[Payload], minimum: int) -> bytes:
    """The nonce of an exchange; ParseError if there is not exactly one of sufficient size (section 2.10)."""
    found = [p for p in payloads if isinstance(p, NoncePayload)]
    if len(found) != 1 or len(found[0].data) < minimum:
        raise ParseError("the nonce is missing, double or too short")
    return found[0].data


def log_up(sa: IkeSa, child: ChildSa, old: ChildSa | None = None) -> None:
    """Say that a CHILD_SA carries traffic, in place of the one that it replaces."""
    log.info(
        "%s: CHILD_SA %s up, SPIs %08x_i %08x_o, %s, %s === %s%s",
        sa,
        child,
        child.spi_in,
        child.spi_out,
        child.proposal,
        Shown(child.local_ts),
        Shown(child.remote_ts),
        f", in place of {old}" if old is not None else "",
    )


def superseded(old: ChildSa, now: float) -> ChildSa | None:
    """The peer deletes an SA that it had replaced: its successor takes over. None if there is no successor."""
    child = old.peer_rekey
    if child is None or child.state is not ChildState.INSTALLING:
        return None
    install_outbound(child, now)
    child.rekey_of = None
    log_up(child.ike, child, old)
    child.ike.core.counters.add("child-rekey", child.ike.name)
    child.ike.core.emit(ChildUp(child, replaces=old))
    return child


def stop_sending(child: ChildSa) -> None:
    """The peer may drop what we send through an SA that is closed: not even if nothing else is left (section 1.4.1)."""
    if child.has_out:
        child.has_out = False
        child.ike.core.emit(RemoveChild(child, False, True))
