"""IKE_SA_INIT (RFC 7296 section 1.2): algorithms, nonces, key exchange, NAT detection; nobody is authenticated yet.

What the responder answers with an error here costs it no state, and what the initiator hears here without keys is a
hint at most (section 2.21.1): COOKIE and INVALID_KE_PAYLOAD make it ask again, a bounded number of times.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from ipsec.crypto.auth import our_hashes, parse_hashes
from ipsec.crypto.chain import Signatures
from ipsec.crypto.identity import Identity
from ipsec.crypto.kex import KeyExchange, join_key_exchange
from ipsec.crypto.prf import PrfAlgorithm, prf_algorithm
from ipsec.crypto.sk import SkSuite, sk_suite
from ipsec.errors import ParseError, SuiteError
from ipsec.ike import natd, negotiate, ppk, redirect
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, Childless, Connection, Fragmentation
from ipsec.ike.errors import SaFailedError
from ipsec.ike.events import IpAddress, Path
from ipsec.ike.failure import Cause, Failure, bounded, cause_of, terms
from ipsec.ike.intermediate import Further
from ipsec.ike.keymat import IkeKeys, ike_keys, skeyseed
from ipsec.ike.lifetimes import Timer
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.state import IkeState
from ipsec.wire import additional
from ipsec.wire.iana import NOTIFY_STATUS_FIRST, ExchangeType, KeMethod, NotifyType, Protocol, TransformType, name_of
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    Header,
    UnsupportedCriticalPayload,
    emit_header,
    emit_payloads,
    parse_payloads,
    skim_init,
)
from ipsec.wire.payloads import CertReqPayload, KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec.wire.proposal import Proposal

if TYPE_CHECKING:
    from ipsec.ike.eap_auth import EapPeerProgress, EapServerProgress
    from ipsec.ike.engine import IkeEngine

log = logging.getLogger(__name__)

NONCE_LEN = 32
#: how often COOKIE and INVALID_KE_PAYLOAD together may send an initiator back to the start
RESTARTS_MAX = 6
#: after an error that nobody vouches for, how long a better answer may take to come
HINT_PATIENCE_S = 10.0
#: octets of a request. RFC 7296 section 2 wants 3000 to be taken; what is read of one costs as much as it is long
REQUEST_MAX = 8192
#: shorter than any request; what asks for a cookie is shorter still
REQUEST_MIN = 80
#: octets of both NAT_DETECTION notifies
NAT_DETECTION_LEN = 2 * (8 + 20)


class InitProgress:
    """What both ends need until they are authenticated."""

    __slots__ = (
        "childless", "cookie", "further", "kex", "message_1", "message_2", "methods", "multiple", "nonce_i", "nonce_r",
        "ppk", "redirected_from", "restarts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.nonce_i = b""
        self.nonce_r = b""
        self.message_1 = b""
        "IKE_SA_INIT request as it went over the wire, for AUTH (RFC 7296 section 2.15)"
        self.message_2 = b""
        self.kex: KeyExchange | None = None
        self.further = Further()
        self.cookie = b""
        self.methods: list[int] = []
        "key exchange methods that we have tried"
        self.restarts = 0
        self.redirected_from: IpAddress | None = None
        self.childless = False
        "the responder can do without a first CHILD_SA (RFC 6023)"
        self.multiple = False
        "the responder takes several authentications (RFC 4739)"
        self.ppk = False
        "both ends have postquantum preshared keys (RFC 8784)"


class AuthProgress:
    """What IKE_AUTH needs, and what came of it."""

    __slots__ = (
        "asked", "certreqs", "child", "claimed", "configs", "contact", "eap", "failure", "had", "heard", "idr",
        "ppk_keys", "psk", "round", "signatures",
    )  # fmt: skip

    def __init__(self) -> None:
        self.child: ChildSa | None = None
        "initiator: the CHILD_SA that goes with it"
        self.configs: list[tuple[ChildConfig, int]] = []
        "initiator: children to make, with the reqid of a trap or 0; the first one in IKE_AUTH, the others later"
        self.contact = False
        "initiator: INITIAL_CONTACT has been said"
        self.had: tuple[IpAddress, ...] = ()
        "initiator: virtual addresses of the IKE_SA before this one, to ask for again"
        self.certreqs: frozenset[bytes] | None = None
        "hashes of CAs whose certificates the peer wants; None: it has not asked for any"
        self.ppk_keys: IkeKeys | None = None
        "initiator: the keys if the responder takes the PPK that we named"
        self.asked: Identity | None = None
        "responder: who the initiator wants us to be"
        self.psk: bytes | None = None
        "responder: the pre-shared key that the initiator has shown"
        self.claimed: Identity | None = None
        "responder: who the initiator says it is, while EAP has still to show it"
        self.eap: EapPeerProgress | EapServerProgress | None = None
        "how far EAP is"
        self.failure: Failure | None = None
        "responder: what EAP has come to, while the peer has still to answer to that"
        self.round = 0
        "which of its rounds of authentication the initiator is in (RFC 4739)"
        self.heard: list[Payload] = []
        "what the peer has said in those that are done, and at the beginning of EAP"
        self.idr = b""
        "body of IDr, which is the same in all of them"
        self.signatures = Signatures()
        "of the certificates in the peer's message"

    def names(self) -> list[str]:
        """Initiator: of all children to make."""
        first = [self.child.name] if self.child is not None else []
        return [*first, *(config.name for config, _ in self.configs)]

    def anew(self) -> AuthProgress:
        """For another IKE_SA_INIT: what is wanted, and no round of authentication done."""
        found = AuthProgress()
        # the peer may have taken INITIAL_CONTACT, whatever became of its answer
        found.configs, found.had, found.contact = self.configs, self.had, self.contact
        return found


def note_certreqs(sa: IkeSa, payloads: list[Payload]) -> None:
    """Remember which CAs the peer trusts. A hint for our choice and nothing more (RFC 7296 section 3.7)."""
    assert sa.auth is not None
    requests = [p.data for p in payloads if isinstance(p, CertReqPayload)]
    if requests:
        found = {data[i : i + 20] for data in requests for i in range(0, len(data) - 19, 20)}
        sa.auth.certreqs = frozenset(found)


class InitRequest(Request):
    """IKE_SA_INIT under way; its response comes unprotected, to ``handle_init_response``."""

    exchange = ExchangeType.IKE_SA_INIT
    __slots__ = ()


# -- initiator


def start_init(sa: IkeSa, now: float, *, redirected_from: IpAddress | None = None) -> None:
    """Send the first message of an IKE_SA."""
    progress = sa.init = InitProgress()
    progress.redirected_from = redirected_from
    progress.nonce_i = sa.core.rng(NONCE_LEN)
    sa.change(IkeState.CONNECTING)
    _new_key_exchange(sa, progress, first_method(sa.connection))
    _send_init(sa, progress, now)


def first_method(connection: Connection) -> int:
    """The key exchange that the first message of a connection tries."""
    for proposal in connection.proposals:
        transform = proposal.first(TransformType.KE)
        if transform is not None:
            return transform.id
    return KeMethod.CURVE_25519


def _new_key_exchange(sa: IkeSa, progress: InitProgress, method: int) -> None:
    progress.methods.append(method)
    try:
        progress.kex = sa.core.key_pair(method)
    except SuiteError as error:
        raise SaFailedError(Failure(Cause.REFUSED, str(error))) from None


def _send_init(sa: IkeSa, progress: InitProgress, now: float) -> None:
    assert progress.kex is not None
    payloads: list[Payload] = []
    if progress.cookie:
        payloads.append(NotifyPayload(NotifyType.COOKIE, progress.cookie))
    payloads += [
        SaPayload(_numbered(sa.connection.proposals)),
        KePayload(progress.kex.method, progress.kex.public),
        NoncePayload(progress.nonce_i),
        *natd.payloads(sa.spi_i, bytes(8), sa.path, fake=sa.core.fakes_nat(sa.connection)),
        *_announcements(sa.connection, sa.connection.remote.constraints.hashes),
        *ppk.announcement(sa.connection),
    ]
    if additional.wanted(sa.connection.proposals):
        payloads.append(NotifyPayload(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))
    if progress.redirected_from is not None:
        payloads.append(redirect.redirected_from(progress.redirected_from))
    elif sa.core.settings.follow_redirects:
        payloads.append(NotifyPayload(NotifyType.REDIRECT_SUPPORTED))
    progress.message_1 = _emit(sa.spi_i, bytes(8), FLAG_INITIATOR, payloads)
    sa.message_id_out = 0
    sa.pending = None
    sa.start(InitRequest(), [progress.message_1], now)


def _numbered(proposals: tuple[Proposal, ...]) -> list[Proposal]:
    return [Proposal(p.protocol, p.transforms, number) for number, p in enumerate(proposals, 1)]


def _announcements(connection: Connection, hashes: Collection[int] = ()) -> list[Payload]:
    """``hashes``: those that the peer may sign with, if it is known who that is to be."""
    found: list[Payload] = []
    if connection.fragmentation is not Fragmentation.NO:
        found.append(NotifyPayload(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED))
    found.append(NotifyPayload(NotifyType.SIGNATURE_HASH_ALGORITHMS, our_hashes(hashes)))
    return found


def _emit(spi_i: bytes, spi_r: bytes, flags: int, payloads: list[Payload]) -> bytes:
    first, content = emit_payloads(payloads)
    size = HEADER_LEN + len(content)
    return emit_header(spi_i, spi_r, first, ExchangeType.IKE_SA_INIT, flags, 0, size) + content


def handle_init_response(sa: IkeSa, header: Header, data: bytes, path: Path, now: float) -> None:
    """An unprotected response to our IKE_SA_INIT. Whatever is wrong with it, the right one may still come."""
    progress = sa.init
    if progress is None or sa.pending is None or sa.pending.exchange != ExchangeType.IKE_SA_INIT:
        return
    if header.message_id != 0 or header.initiator or path.remote != sa.path.remote:
        return
    sa.core.counters.message(ExchangeType.IKE_SA_INIT, sa.name, incoming=True, response=True)
    payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
    notifies = {p.notify: p for p in payloads if isinstance(p, NotifyPayload)}
    offer = [p for p in payloads if isinstance(p, SaPayload)]
    if not offer:
        _heed(sa, progress, notifies, now)
        return
    if header.spi_r == bytes(8):
        raise ParseError("the responder's SPI is zero")
    _accept_init(sa, progress, header, data, payloads, notifies, path, now)


def _heed(sa: IkeSa, progress: InitProgress, notifies: dict[int, NotifyPayload], now: float) -> None:
    """What a responder says that keeps no state for us yet."""
    cookie = notifies.get(NotifyType.COOKIE)
    if cookie is not None:
        if not 1 <= len(cookie.data) <= 64:
            raise ParseError(f"a cookie of {len(cookie.data)} octets (RFC 7296 section 2.6)")
        if _may_restart(sa, progress):
            progress.cookie = cookie.data
            _send_init(sa, progress, now)
        return
    wrong = notifies.get(NotifyType.INVALID_KE_PAYLOAD)
    if wrong is not None:
        _change_method(sa, progress, wrong, now)
        return
    moved = notifies.get(NotifyType.REDIRECT)
    if moved is not None:
        gateway = redirect.parse_redirect(moved.data, progress.nonce_i)
        sa.core.redirected(sa, gateway, now)
        return
    for number in notifies:
        if number < NOTIFY_STATUS_FIRST:
            _hint(sa, number, now)
            return


def _may_restart(sa: IkeSa, progress: InitProgress) -> bool:
    progress.restarts += 1
    if progress.restarts > RESTARTS_MAX:
        log.warning("%s: %s sends us back to the start again and again, not heeded", sa, sa.path.remote)
        return False
    return True


def _change_method(sa: IkeSa, progress: InitProgress, notify: NotifyPayload, now: float) -> None:
    """RFC 7296 section 1.2: only a method that we have offered, and only once each."""
    if len(notify.data) != 2:
        raise ParseError("INVALID_KE_PAYLOAD without a method")
    method = int.from_bytes(notify.data, "big")
    name = name_of(KeMethod, method)
    offered = {t.id for proposal in sa.connection.proposals for t in proposal.of_type(TransformType.KE)}
    if method == progress.methods[-1]:
        # the answer that made us change comes twice, most likely
        log.info("%s: %s wants key exchange %s, which it has been sent", sa, sa.path.remote, name)
        return
    if method not in offered or method in progress.methods:
        log.warning("%s: %s wants key exchange %s, which we do not offer or had tried", sa, sa.path.remote, name)
        return
    if _may_restart(sa, progress):
        log.info("%s: %s prefers key exchange %s", sa, sa.path.remote, name)
        _new_key_exchange(sa, progress, method)
        _send_init(sa, progress, now)


def _hint(sa: IkeSa, number: int, now: float) -> None:
    """An error that anybody could have sent: say it, and wait a while for something better (section 2.21.1)."""
    if sa.unauthenticated_error:
        return
    why = f"{sa.path.remote} answers {name_of(NotifyType, number)}"
    ours, offered = terms(sa.connection.proposals), ""
    if number == NotifyType.NO_PROPOSAL_CHOSEN:
        # long, so it comes last, and once
        offered = f"; we offered {negotiate.describe(sa.connection.proposals)}"
    sa.unauthenticated_error = Failure(cause_of(number, child=False), why, by_peer=True, ours=ours)
    log.warning("%s: %s; waiting %d s, for anybody could have sent that%s", sa, why, HINT_PATIENCE_S, offered)
    sa.core.timers.set((Timer.GIVE_UP, sa.uid), now + HINT_PATIENCE_S)


def _accept_init(
    sa: IkeSa,
    progress: InitProgress,
    header: Header,
    data: bytes,
    payloads: list[Payload],
    notifies: dict[int, NotifyPayload],
    path: Path,
    now: float,
) -> None:
    assert progress.kex is not None
    offer, ke, nonce = _mandatory(payloads)
    proposal = negotiate.check_answer(_numbered(sa.connection.proposals), offer.proposals)
    transform = proposal.first(TransformType.KE)
    if transform is None or not transform.id == ke.method == progress.kex.method:
        raise ParseError("the key exchange is not the one that was chosen")
    methods = additional.methods(proposal)
    if methods and NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED not in notifies:
        raise ParseError("additional key exchanges without IKE_INTERMEDIATE")
    prf, suite = algorithms(proposal)
    _check_nonce(nonce, prf, other=progress.nonce_i)
    shared = progress.kex.shared(ke.data)
    assert sa.pending is not None
    sa.answered_by(sa.pending, header, sa.path, now)
    progress.kex = None
    progress.further.methods = methods
    progress.nonce_r = nonce.data
    progress.message_2 = data
    progress.childless = NotifyType.CHILDLESS_IKEV2_SUPPORTED in notifies
    progress.multiple = NotifyType.MULTIPLE_AUTH_SUPPORTED in notifies
    progress.ppk = NotifyType.USE_PPK in notifies
    sa.spi_r = header.spi_r
    sa.proposal = proposal
    _install_keys(sa, prf, suite, shared)
    _take_announcements(sa, payloads, notifies, path, initiator=True)
    note_certreqs(sa, payloads)
    log.info("%s: %s takes %s", sa, path.remote, proposal)
    sa.core.init_done(sa, now)


def _mandatory(payloads: list[Payload]) -> tuple[SaPayload, KePayload, NoncePayload]:
    found: list[Payload] = []
    for kind in (SaPayload, KePayload, NoncePayload):
        of_kind = [payload for payload in payloads if isinstance(payload, kind)]
        if len(of_kind) != 1:
            raise ParseError(f"{len(of_kind)} payloads {kind.__name__}, one is needed")
        found += of_kind
    offer, ke, nonce = found
    assert isinstance(offer, SaPayload)
    assert isinstance(ke, KePayload)
    assert isinstance(nonce, NoncePayload)
    return offer, ke, nonce


def _check_nonce(nonce: NoncePayload, prf: PrfAlgorithm, *, other: bytes) -> None:
    # RFC 7296 section 2.10
    if len(nonce.data) < prf.key_len // 2:
        raise ParseError(f"a nonce of {len(nonce.data)} octets is too short for {prf.name}")
    if nonce.data == other:
        raise ParseError("our own nonce came back")


def algorithms(proposal: Proposal) -> tuple[PrfAlgorithm, SkSuite]:
    """PRF and protection that a chosen proposal means. SuiteError if we lack one, which we then had not offered."""
    encr, prf, integ = (proposal.first(kind) for kind in (TransformType.ENCR, TransformType.PRF, TransformType.INTEG))
    if encr is None or prf is None:
        raise ParseError("the proposal lacks encryption or PRF")
    return prf_algorithm(prf.id), sk_suite(encr.id, encr.key_bits, integ.id if integ is not None else 0)


def _take_announcements(
    sa: IkeSa, payloads: list[Payload], notifies: dict[int, NotifyPayload], path: Path, *, initiator: bool
) -> None:
    sa.fragmentation = (
        NotifyType.IKEV2_FRAGMENTATION_SUPPORTED in notifies and sa.connection.fragmentation is not Fragmentation.NO
    )
    hashes = notifies.get(NotifyType.SIGNATURE_HASH_ALGORITHMS)
    if hashes is not None:
        sa.peer_hashes = parse_hashes(hashes.data)
    spi_r = sa.spi_r if initiator else bytes(8)
    all_notifies = [p for p in payloads if isinstance(p, NotifyPayload)]
    sources = [p.data for p in all_notifies if p.notify == NotifyType.NAT_DETECTION_SOURCE_IP]
    destinations = [p.data for p in all_notifies if p.notify == NotifyType.NAT_DETECTION_DESTINATION_IP]
    if sources and destinations:
        sa.nat_local, sa.nat_remote = natd.compare(sources, destinations, sa.spi_i, spi_r, path)


# -- responder


def handle_init_request(core: IkeEngine, header: Header, data: bytes, path: Path, now: float) -> None:
    """Somebody wants an IKE_SA. Errors are answered without keeping anything (RFC 7296 section 2.6)."""
    if header.message_id != 0 or not header.initiator or header.spi_r != bytes(8) or header.spi_i == bytes(8):
        return
    if not REQUEST_MIN <= len(data) <= REQUEST_MAX:
        return
    digest = blake2b(data + path.remote.packed + path.remote_port.to_bytes(2, "big"), digest_size=16).digest()
    known = core.init_requests.get(digest)
    if known is not None:
        # OB-44: the same message, not merely the same SPI; who has gone on since has had our answer
        if known.message_id_in == 1:
            known.transmit(known.response, path, now)
        return
    core.counters.message(ExchangeType.IKE_SA_INIT, incoming=True, response=False)
    # the cookie first: all else in the request costs twenty times as much to read
    cookie, ni = skim_init(header, data)
    proved = cookie is not None and core.cookies.verify(now, cookie, ni, path.remote, header.spi_i)
    if cookie is not None:
        core.counters.add("cookie-good" if proved else "cookie-wrong")
    if not proved:
        if core.half_open.needs_cookie(path.remote, now):
            _ask_cookie(core, header, ni, path, now)
            return
        core.half_open.read_in_full(now)
    if not core.half_open.admits(path.remote):
        core.counters.add("half-open-refused")
        return
    payloads = _payloads(core, header, data, path)
    offer, ke, nonce = _mandatory(payloads)
    notifies = {p.notify: p for p in payloads if isinstance(p, NotifyPayload)}
    gateway = core.redirect_to(path)
    if gateway is not None and _redirectable(notifies):
        _reply(core, header, redirect.redirect(gateway, nonce.data), path)
        return
    candidates = core.candidates(path)
    found = _choose(core, candidates, offer, ke, notifies, path, news=digest not in core.refused)
    if found is None:
        core.refused.append(digest)
        _reply(core, header, NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN), path)
        return
    connection, proposal = found
    method = proposal.first(TransformType.KE)
    if method is None:
        raise ParseError("a proposal without key exchange")
    if method.id != ke.method:
        _reply(core, header, NotifyPayload(NotifyType.INVALID_KE_PAYLOAD, method.id.to_bytes(2, "big")), path)
        return
    prf, _ = algorithms(proposal)
    _check_nonce(nonce, prf, other=b"")
    further = additional.methods(proposal)
    extras = _extras(core, connection, candidates, notifies)
    if further:
        extras = [*extras, NotifyPayload(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)]
    if not proved and _answer_size(proposal, ke, extras) > len(data):
        # section 2.6: an address that nobody vouches for gets no more octets from us than came in its name
        _ask_cookie(core, header, ni, path, now)
        return
    # the costly part comes last, and fails before there is any state
    public, shared = join_key_exchange(method.id, ke.data, core.key_pair)
    sa = core.new_responder(connection, header.spi_i, path, digest, now)
    progress = sa.init = InitProgress()
    progress.further.methods = further
    progress.nonce_i = nonce.data
    progress.message_1 = data
    progress.ppk = bool(ppk.agreement(core.credentials, notifies))
    sa.proposal = proposal
    _answer_init(sa, progress, KePayload(method.id, public), shared, payloads, notifies, extras, path, now)


def _payloads(core: IkeEngine, header: Header, data: bytes, path: Path) -> list[Payload]:
    """Of a request; what is critical in it and not known is named (RFC 7296 section 2.5)."""
    try:
        return parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
    except UnsupportedCriticalPayload as error:
        notify = NotifyPayload(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.payload_type,)))
        _reply(core, header, notify, path)
        raise


def _redirectable(notifies: dict[int, NotifyPayload]) -> bool:
    """RFC 5685 section 3: who was sent here says so instead of that it can be sent elsewhere."""
    return bool({NotifyType.REDIRECT_SUPPORTED, NotifyType.REDIRECTED_FROM} & notifies.keys())


def _ask_cookie(core: IkeEngine, header: Header, nonce: bytes, path: Path, now: float) -> None:
    core.counters.add("cookie-asked")
    fresh = core.cookies.make(now, nonce, path.remote, header.spi_i)
    _reply(core, header, NotifyPayload(NotifyType.COOKIE, fresh), path)


def _reply(core: IkeEngine, header: Header, notify: NotifyPayload, path: Path) -> None:
    core.send(_emit(header.spi_i, bytes(8), FLAG_RESPONSE, [notify]), path)
    core.counters.message(ExchangeType.IKE_SA_INIT, incoming=False, response=True)


def _choose(
    core: IkeEngine,
    candidates: list[Connection],
    offer: SaPayload,
    ke: KePayload,
    notifies: dict[int, NotifyPayload],
    path: Path,
    *,
    news: bool,
) -> tuple[Connection, Proposal] | None:
    theirs = [p for p in offer.proposals if p.protocol == Protocol.IKE and not p.spi]
    # RFC 9370 section 2.2.1: without IKE_INTERMEDIATE there is no place for additional key exchanges
    able = theirs if NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED in notifies else additional.left_out(theirs)
    for connection in candidates:
        proposal = negotiate.choose(connection.proposals, able, ke=ke.method)
        if proposal is not None:
            return connection, proposal
    if not news or not core.may_speak(core.now):
        return None
    name = ""
    if not candidates:
        why = f"no connection has {path.local} and {path.remote}"
        failure = Failure(Cause.NO_CONNECTION, why, theirs=terms(theirs))
    else:
        name = candidates[0].name
        why = negotiate.explain_mismatch(candidates[0].proposals, able or theirs)
        if theirs and not able:
            why = "the peer wants additional key exchanges without IKE_INTERMEDIATE (RFC 9242)"
        why = f"NO_PROPOSAL_CHOSEN for {name}: {why}"
        failure = Failure(Cause.IKE_PROPOSALS, bounded(why), ours=terms(candidates[0].proposals), theirs=terms(theirs))
    log.warning("IKE_SA_INIT from %s: %s", path.remote, why)
    core.note_without(failure, name, path.remote, initiator=False)
    return None


def _extras(
    core: IkeEngine, connection: Connection, candidates: list[Connection], notifies: dict[int, NotifyPayload]
) -> list[Payload]:
    """What comes last in our answer. Which of the candidates it is shows when we know who the peer is."""
    extras = core.certificate_requests(candidates)
    if NotifyType.IKEV2_FRAGMENTATION_SUPPORTED in notifies or NotifyType.SIGNATURE_HASH_ALGORITHMS in notifies:
        extras = extras + _announcements(connection)
    if connection.childless is not Childless.NEVER:
        extras = [*extras, NotifyPayload(NotifyType.CHILDLESS_IKEV2_SUPPORTED)]
    if any(one.remote_rounds for one in candidates):
        extras = [*extras, NotifyPayload(NotifyType.MULTIPLE_AUTH_SUPPORTED)]
    return extras + ppk.agreement(core.credentials, notifies)


def _answer_size(proposal: Proposal, ke: KePayload, extras: list[Payload]) -> int:
    """Octets of our answer. Our KE payload is not longer than theirs, with any key exchange method."""
    # headers of payload and proposal, and transforms with or without a key length (RFC 7296 section 3.3)
    offer = 4 + 8 + sum([12 if transform.key_bits else 8 for transform in proposal.transforms])
    others = sum([4 + len(payload.emit()) for payload in extras])
    return HEADER_LEN + offer + 8 + len(ke.data) + 4 + NONCE_LEN + NAT_DETECTION_LEN + others


def _answer_init(
    sa: IkeSa,
    progress: InitProgress,
    ke: KePayload,
    shared: bytes,
    payloads: list[Payload],
    notifies: dict[int, NotifyPayload],
    extras: list[Payload],
    path: Path,
    now: float,
) -> None:
    core = sa.core
    assert sa.proposal is not None
    prf, suite = algorithms(sa.proposal)
    progress.nonce_r = core.rng(NONCE_LEN)
    answer: list[Payload] = [
        SaPayload([sa.proposal]),
        ke,
        NoncePayload(progress.nonce_r),
        *natd.payloads(sa.spi_i, sa.spi_r, path, fake=core.fakes_nat(sa.connection)),
        *extras,
    ]
    _take_announcements(sa, payloads, notifies, path, initiator=False)
    sa.redirectable = _redirectable(notifies)
    progress.message_2 = _emit(sa.spi_i, sa.spi_r, FLAG_RESPONSE, answer)
    sa.message_id_in = 1
    sa.change(IkeState.CONNECTING)
    sa.response = [progress.message_2]
    sa.transmit(sa.response, path, now)
    # the peer makes the same keys when it has our answer, and ours are not needed before its next message
    core.later(partial(_install_keys, sa, prf, suite, shared))
    core.counters.message(ExchangeType.IKE_SA_INIT, sa.name, incoming=False, response=True)


def _install_keys(sa: IkeSa, prf: PrfAlgorithm, suite: SkSuite, shared: bytes) -> None:
    progress = sa.init
    if progress is None or sa.state is not IkeState.CONNECTING:
        return
    seed = skeyseed(prf, progress.nonce_i, progress.nonce_r, shared)
    sa.install_keys(prf, suite, ike_keys(prf, suite, seed, progress.nonce_i, progress.nonce_r, sa.spi_i, sa.spi_r))
