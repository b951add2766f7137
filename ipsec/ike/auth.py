"""IKE_AUTH (RFC 7296 sections 1.2, 2.15): both ends prove who they are, and the first CHILD_SA comes with it.

The peer learns nothing but AUTHENTICATION_FAILED, whether its identity is unknown or its proof is wrong (section
2.21.2); our log says which. What an initiator gets then is in ``admit``; EAP is in ``eap_auth``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipsec.crypto.auth import AuthenticationError
from ipsec.crypto.chain import CertificateError, UnwantedError
from ipsec.crypto.identity import Identity
from ipsec.errors import ParseError
from ipsec.ike import config_payload, ppk
from ipsec.ike.admit import admit
from ipsec.ike.auth_lifetime import heed_lifetime, parse_lifetime
from ipsec.ike.child import CHILD_ERRORS, ChildRefusedError, in_question, install, new_child, offer, take_answer
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Childless, Connection, Unique
from ipsec.ike.create_child import CreateChild, log_up
from ipsec.ike.delete import DeleteIke, close_unused
from ipsec.ike.eap.relay import EapAnswerNeededError
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.events import AddressesAssigned, ChildUp, Path
from ipsec.ike.failure import Cause, Failure, Terms, bounded, cause_of
from ipsec.ike.find import find, find_config, find_typed
from ipsec.ike.giveway import doubt
from ipsec.ike.init import AuthProgress, note_certreqs
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.mobike import mobike_payloads, take_support
from ipsec.ike.proof import (
    OtherMethodError,
    auth_octets,
    describe_received,
    local_identity,
    make_proof,
    own_fault,
    verify_proof,
)
from ipsec.ike.registry import TRIED_MAX
from ipsec.ike.rounds import (
    announce_rounds,
    another_follows,
    check_may_begin,
    check_rounds,
    next_round,
    says_another,
    this_round,
)
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.status import StatusUnknownError
from ipsec.wire.iana import NOTIFY_STATUS_FIRST, CfgType, ExchangeType, NotifyType, PayloadType, name_of
from ipsec.wire.payloads import (
    AuthPayload,
    CertPayload,
    IdPayload,
    NotifyPayload,
    Payload,
)

if TYPE_CHECKING:
    from ipsec.ike.init import InitProgress

log = logging.getLogger(__name__)

#: errors in the answer to IKE_AUTH with which the responder drops the IKE_SA (RFC 7296 section 2.21.2); with any other
#: it is up, and its CHILD_SA is not
ENDS_IKE = frozenset(
    {NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, NotifyType.INVALID_SYNTAX, NotifyType.AUTHENTICATION_FAILED}
)


def _identity(payload: IdPayload) -> Identity:
    return Identity(payload.id_type, payload.data)


def _id_payload(kind: int, identity: Identity) -> IdPayload:
    return IdPayload(kind, identity.type, identity.data)


# -- initiator


class AuthRequest(Request):
    """IKE_AUTH, as initiator."""

    exchange = ExchangeType.IKE_AUTH
    with_ppk = True
    "whether the PPK, if there is one, is in both AUTHs (RFC 8784 section 3)"
    __slots__ = ()

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """IDi, CERT, CERTREQ, IDr, AUTH, CP, SA, TSi, TSr and notifications."""
        auth, connection, core = sa.auth, sa.connection, sa.core
        assert auth is not None
        check_may_begin(connection)
        identity = sa.our_id = local_identity(sa, connection)
        mine = _id_payload(PayloadType.IDI, identity)
        announced = announce_rounds(sa)
        certificates, proof = self._prove(sa, identity, mine.body())
        payloads: list[Payload] = [mine, *certificates]
        # one that does not say so is there for the others nevertheless
        if core.first_contact(sa) and connection.unique is not Unique.NEVER:
            auth.contact = True
            payloads.append(NotifyPayload(NotifyType.INITIAL_CONTACT))
        payloads += core.certificate_requests([connection])
        wanted = connection.remote.id.exact
        if wanted is not None:
            payloads.append(_id_payload(PayloadType.IDR, wanted))
        payloads += [*proof, *announced]
        if connection.vips:
            # connections inside the tunnel go on only with the address that they began with
            payloads.append(config_payload.build_request(config_payload.again(connection.vips, auth.had)))
        if auth.configs and not self._childless(sa):
            config, reqid = auth.configs.pop(0)
            auth.child = new_child(sa, config, reqid=reqid)
            payloads += offer(sa, auth.child, first=True)
        payloads += mobike_payloads(sa)
        payloads += core.token_payloads(sa)
        return payloads

    def _prove(self, sa: IkeSa, identity: Identity, body: bytes) -> tuple[list[CertPayload], list[Payload]]:
        """Our certificates, and AUTH with what belongs to it; ``body`` is that of IDi. SaFailedError."""
        auth, connection = sa.auth, sa.connection
        assert auth is not None
        try:
            auth.ppk_keys = ppk.chosen(sa)
            octets = auth_octets(sa, body, of_initiator=True, keys=auth.ppk_keys)
            proof = make_proof(sa, connection, identity, octets, auth.certreqs)
            quantum = _name_ppk(sa, identity, body) if auth.ppk_keys is not None else []
        except AuthenticationError as error:
            raise unproved(error) from None
        return proof.certificates, [proof.payload, *quantum, *another_follows(sa)]

    def _childless(self, sa: IkeSa) -> bool:
        """RFC 6023: leave the first CHILD_SA to CREATE_CHILD_SA, if the responder can."""
        wish = sa.connection.childless
        can = sa.init is not None and sa.init.childless
        if wish is Childless.FORCE and not can:
            why = "childless = force, and the peer does not support that (RFC 6023)"
            raise SaFailedError(Failure(Cause.REFUSED, why))
        return can and wish in (Childless.PREFER, Childless.FORCE)

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder proves who it is, or refuses us."""
        proof = find(payloads, AuthPayload)
        identity = find_typed(payloads, IdPayload, PayloadType.IDR)
        complete = identity is not None and (proof is not None or self._goes_without(sa))
        heed_errors(sa, payloads, "" if complete else "IDr and AUTH")
        assert identity is not None
        peer_id = _identity(identity)
        assert sa.auth is not None
        sa.auth.idr = identity.body()
        ppk_keys = agreed_ppk(sa, payloads) if self.with_ppk else None
        octets = auth_octets(sa, identity.body(), of_initiator=False, keys=ppk_keys)
        certificates = [p for p in payloads if isinstance(p, CertPayload)]

        def verify(now: float) -> None:
            try:
                if self.with_ppk:
                    need_ppk(sa, ppk_keys)
                if not sa.connection.remote.id.matches(peer_id):
                    raise AuthenticationError(f"the peer is {peer_id}, we want {sa.connection.remote.id}")
                assert sa.our_id is not None
                if proof is not None:
                    verify_proof(sa, sa.connection, sa.our_id, peer_id, proof, certificates, octets)
            except AuthenticationError as error:
                disbelieve(sa, peer_id, error, certificates, now)
                return
            sa.peer_id = peer_id
            self._believed(sa, payloads, now)

        _verify_or_wait(sa, verify, now)

    def _goes_without(self, sa: IkeSa) -> bool:
        """Whether the responder may prove in another way than by AUTH who it is."""
        return False

    def _believed(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder is who it is to be."""
        settle_ppk(sa, agreed_ppk(sa, payloads))
        go_on(sa, payloads, now)


class RoundRequest(Request):
    """One authentication more (RFC 4739), with a key."""

    exchange = ExchangeType.IKE_AUTH
    __slots__ = ()

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """IDi, CERT, AUTH."""
        connection = this_round(sa)
        assert sa.auth is not None
        identity = local_identity(sa, connection)
        mine = _id_payload(PayloadType.IDI, identity)
        try:
            octets = auth_octets(sa, mine.body(), of_initiator=True)
            proof = make_proof(sa, connection, identity, octets, sa.auth.certreqs)
        except AuthenticationError as error:
            raise unproved(error) from None
        return [mine, *proof.certificates, proof.payload, *another_follows(sa)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder takes it, and if it is the last one all that we asked for is here."""
        heed_errors(sa, payloads, "")
        go_on(sa, payloads, now)


def unproved(error: AuthenticationError) -> SaFailedError:
    """We have nothing to show."""
    return SaFailedError(Failure(Cause.LOCAL_AUTH, bounded(f"we cannot prove who we are: {error}")))


def go_on(sa: IkeSa, payloads: list[Payload], now: float) -> None:
    """The responder has taken our AUTH: the next one, or all is done."""
    auth = sa.auth
    assert auth is not None
    auth.heard += payloads
    if next_round(sa, payloads):
        sa.core.next_round(sa, now)
    else:
        finish(sa, auth.heard, now)


def heed_errors(sa: IkeSa, payloads: list[Payload], missing: str) -> None:
    """SaFailedError if the responder refuses us, or leaves out what has to be there (in words; empty: it does not)."""
    errors = [p.notify for p in payloads if isinstance(p, NotifyPayload) and p.notify < NOTIFY_STATUS_FIRST]
    # first what ends it beside IDr and AUTH as well
    errors.sort(key=lambda error: error not in ENDS_IKE)
    if missing or ENDS_IKE.intersection(errors):
        why = name_of(NotifyType, errors[0]) if errors else f"an answer without {missing}"
        cause = cause_of(errors[0], child=False) if errors else Cause.MALFORMED
        if NotifyType.AUTHENTICATION_FAILED in errors:
            why += own_fault(sa)
        reason = bounded(f"{sa.path.remote} refuses us as {sa.our_id}: {why}")
        raise SaFailedError(Failure(cause, reason, by_peer=True))


def disbelieve(
    sa: IkeSa, peer_id: Identity, error: AuthenticationError, certificates: list[CertPayload], now: float
) -> None:
    """The responder, which takes the IKE_SA to be up, is not who it says: tell it (section 2.21.2)."""
    log.warning("%s: cannot authenticate %s as %s: %s", sa, sa.path.remote, peer_id, error)
    give_up(sa, _distrust(sa.connection, error, peer_id, certificates), f"authentication failed: {error}", now)


def give_up(sa: IkeSa, failure: Failure, reason: str, now: float) -> None:
    """The IKE_SA will not be, and the responder, which waits for what comes next, hears that."""
    sa.core.note(failure, sa)
    sa.queue.clear()
    sa.ask(DeleteIke(reason, NotifyPayload(NotifyType.AUTHENTICATION_FAILED)), now)


def finish(sa: IkeSa, payloads: list[Payload], now: float) -> None:
    """Both ends are authenticated, and the responder says what becomes of the rest."""
    assert sa.auth is not None
    assert sa.init is not None
    child, nonces = sa.auth.child, sa.init
    # what may be malformed comes first: what was asked for goes with the IKE_SA then
    lifetime = parse_lifetime(payloads)
    take_support(sa, payloads)
    sa.core.note_token(sa, payloads)
    if sa.connection.vips:
        _take_addresses(sa, payloads)
    configs = sa.auth.configs
    if sa.auth.contact:
        doubt(sa, now)
    sa.core.established(sa, now)
    heed_lifetime(sa, lifetime, now)
    if child is not None:
        _take_first_child(sa, child, nonces, payloads, now)
    # asked after this, or at the gateway that we are sent to
    sa.queue.extend(CreateChild(config, reqid=reqid) for config, reqid in configs)
    # RFC 5685 section 6: the IKE_SA is up, so it is closed as one that is up
    sa.core.take_redirect(sa, payloads, now)


def _name_ppk(sa: IkeSa, identity: Identity, body: bytes) -> list[Payload]:
    """N(PPK_IDENTITY), and N(NO_PPK_AUTH) if we may go without (RFC 8784 section 3)."""
    connection, auth = sa.connection, sa.auth
    assert auth is not None
    without = None
    if not connection.ppk_required:
        without = make_proof(sa, connection, identity, auth_octets(sa, body, of_initiator=True), auth.certreqs).payload
    return name_ppk(connection, without)


def name_ppk(connection: Connection, without: AuthPayload | None) -> list[Payload]:
    """N(PPK_IDENTITY), and AUTH for who has no such PPK."""
    found: list[Payload] = [ppk.identity(connection)]
    if without is not None:
        found.append(NotifyPayload(NotifyType.NO_PPK_AUTH, without.data))
    return found


def agreed_ppk(sa: IkeSa, payloads: list[Payload]) -> IkeKeys | None:
    """The keys with our PPK in them, if the responder has taken it."""
    assert sa.auth is not None
    return sa.auth.ppk_keys if ppk.accepted(payloads) else None


def need_ppk(sa: IkeSa, keys: IkeKeys | None) -> None:
    """AuthenticationError if there must be a PPK and is none."""
    if keys is None and sa.connection.ppk_required:
        raise AuthenticationError("ppk_required = yes, and the peer has not taken our PPK (RFC 8784)")


def settle_ppk(sa: IkeSa, keys: IkeKeys | None) -> None:
    """The responder is authenticated: with a PPK or without."""
    assert sa.auth is not None
    if keys is not None:
        ppk.use(sa, keys)
        log.info("%s: uses the postquantum preshared key", sa)
    elif sa.auth.ppk_keys is not None:
        log.warning("%s: goes without a postquantum preshared key: the peer did not take ours", sa)


def _take_addresses(sa: IkeSa, payloads: list[Payload]) -> None:
    reply = find_config(payloads, CfgType.REPLY)
    if reply is None:
        log.warning("%s: the peer gives us no virtual address", sa)
        return
    assigned = config_payload.parse_reply(reply)
    sa.addresses = assigned.addresses
    if sa.addresses:
        dns = f", DNS servers {', '.join(map(str, assigned.dns))}" if assigned.dns else ""
        log.info("%s: our virtual addresses are %s%s", sa, ", ".join(map(str, sa.addresses)), dns)
        sa.core.emit(AddressesAssigned(sa, assigned.addresses, assigned.dns))


def _take_first_child(sa: IkeSa, child: ChildSa, nonces: InitProgress, payloads: list[Payload], now: float) -> None:
    core = sa.core
    try:
        # errors that are about something else are not the CHILD_SA's
        about = [p for p in payloads if not (isinstance(p, NotifyPayload) and p.notify not in CHILD_ERRORS)]
        about += [p for p in payloads if isinstance(p, NotifyPayload) and p.notify >= 16384]
        take_answer(sa, child, about, first=True)
    except ChildRefusedError as error:
        name = name_of(NotifyType, error.notify) if error.notify else "our refusal"
        log.warning("%s: child %s: %s (%s)%s", sa, child.name, name, error, in_question(child, error.notify))
        if error.notify:
            core.host.free_spi(child.spi_in)
        else:
            close_unused(sa, child, now)
        core.child_not_made(sa, child.config, error.failure(child), now)
        return
    install(sa, child, nonces.nonce_i, nonces.nonce_r, b"", now, initiator=True)
    log_up(sa, child)
    core.emit(ChildUp(child))


def _verify_or_wait(sa: IkeSa, verify: Callable[[float], None], now: float) -> None:
    """Run ``verify``; if the status of a certificate is not known yet, once more when it is."""
    try:
        verify(now)
    except StatusUnknownError as unknown:
        sa.core.put_off(sa, unknown, lambda later: _verify_or_wait(sa, verify, later))


# -- responder


def handle_auth(sa: IkeSa, payloads: list[Payload], now: float) -> list[Payload] | None:
    """The initiator proves who it is; None if the answer has to wait for something outside."""
    proof = find(payloads, AuthPayload)
    if proof is None:
        raise PeerError(NotifyType.INVALID_SYNTAX, "AUTH is missing", fatal=True)
    identity, peer_id, wanted = begin(sa, payloads)
    body = identity.body()
    certificates = [p for p in payloads if isinstance(p, CertPayload)]
    path = sa.path
    postquantum = ppk.received(proof, payloads)

    another = says_another(payloads)

    def verify(now: float) -> list[Payload]:
        connection, keys = _authenticate(sa, peer_id, wanted, proof, postquantum, certificates, body, another)
        sa.core.rename(sa, connection)
        sa.peer_id = peer_id
        ppk.log_outcome(sa, postquantum, keys)
        if keys is not None:
            ppk.use(sa, keys)
        return accept(sa, our_proof(sa), payloads, now)

    return answer_or_wait(sa, verify, path, now)


def begin(sa: IkeSa, payloads: list[Payload]) -> tuple[IdPayload, Identity, Identity | None]:
    """The first request of IKE_AUTH: IDi, who that is, and who the initiator wants us to be. PeerError."""
    if sa.init is None or sa.init.further.methods:
        # what was agreed is what there will be: the keys must not come from the first key exchange alone
        why = "IKE_AUTH before all key exchanges that were agreed"
        raise PeerError(NotifyType.INVALID_SYNTAX, why, fatal=True, cause=Cause.MALFORMED)
    identity, who = whom(payloads)
    sa.auth = AuthProgress()
    note_certreqs(sa, payloads)
    asked = find_typed(payloads, IdPayload, PayloadType.IDR)
    sa.auth.asked = _identity(asked) if asked is not None else None
    return identity, who, sa.auth.asked


def whom(payloads: list[Payload]) -> tuple[IdPayload, Identity]:
    """IDi, and who that is. PeerError."""
    identity = find_typed(payloads, IdPayload, PayloadType.IDI)
    if identity is None:
        raise PeerError(NotifyType.INVALID_SYNTAX, "IDi is missing", fatal=True)
    return identity, _identity(identity)


def handle_round(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload] | None:
    """The initiator proves once more who it is (RFC 4739), with a key; None if the answer has to wait."""
    connection, auth, proof = this_round(sa), sa.auth, find(payloads, AuthPayload)
    assert auth is not None
    assert proof is not None
    identity, peer_id = whom(payloads)
    certificates = [p for p in payloads if isinstance(p, CertPayload)]
    another = says_another(payloads)
    octets = auth_octets(sa, identity.body(), of_initiator=True)

    def verify(now: float) -> list[Payload]:
        try:
            if not connection.remote.id.matches(peer_id):
                raise AuthenticationError(f"the peer is {peer_id}, we want {connection.remote.id}")
            check_rounds(sa.connection, auth.round, another=another)
            verify_proof(sa, connection, auth.asked, peer_id, proof, certificates, octets)
        except AuthenticationError as error:
            failure = _distrust(connection, error, peer_id, certificates)
            raise PeerError(
                NotifyType.AUTHENTICATION_FAILED, f"{peer_id}: {error}", fatal=True, cause=failure.cause,
                ours=failure.ours, theirs=failure.theirs,
            ) from None  # fmt: skip
        return accept(sa, [], payloads, now)

    return answer_or_wait(sa, verify, path, now)


def answer_or_wait(
    sa: IkeSa, verify: Callable[[float], list[Payload]], path: Path, now: float
) -> list[Payload] | None:
    """The response that ``verify`` makes; None if something outside has to be asked first."""
    try:
        return verify(now)
    except (StatusUnknownError, EapAnswerNeededError) as why:
        sa.core.put_off(sa, why, lambda later: _answer_later(sa, verify, path, later))
        return None


def _answer_later(sa: IkeSa, verify: Callable[[float], list[Payload]], path: Path, now: float) -> None:
    fatal = False
    try:
        reply = verify(now)
    except (StatusUnknownError, EapAnswerNeededError) as why:
        # meanwhile the status of another certificate of the chain has run out
        sa.core.put_off(sa, why, lambda later: _answer_later(sa, verify, path, later))
        return
    except (ParseError, PeerError) as error:
        reply, fatal = sa.refusal(ExchangeType.IKE_AUTH, error, sa.path)
    sa.respond(ExchangeType.IKE_AUTH, reply, sa.path, now)
    if fatal:
        sa.destroy("refused", now)


def _authenticate(
    sa: IkeSa,
    peer_id: Identity,
    asked: Identity | None,
    proof: AuthPayload,
    postquantum: ppk.Received,
    certificates: list[CertPayload],
    body: bytes,
    another: bool,
) -> tuple[Connection, IkeKeys | None]:
    """The connection whose peer this is, and the keys with a PPK if it uses one; ``body`` is that of IDi.
    ``another``: it is going to prove it once more.

    PeerError if there is none, or the proof does not hold for any.
    """
    reasons: list[str] = []
    meant, failure, tried = sa.connection, None, 0
    for connection in sa.core.connections_for(sa, peer_id, asked):
        try:
            check_rounds(connection, 0, another=another)
            quantum = ppk.answer(sa, connection, proof, postquantum)
            octets = auth_octets(sa, body, of_initiator=True, keys=quantum.keys)
            with refusing(quantum.refusal):
                verify_proof(sa, connection, asked, peer_id, quantum.proof, certificates, octets)
        except AuthenticationError as error:
            if len(reasons) < TRIED_MAX:
                reasons.append(f"{connection.name}: {error}")
            if failure is None:
                meant, failure = connection, _distrust(connection, error, peer_id, certificates)
            # nobody whom we do not trust at all makes us look at his proof more often
            tried += not isinstance(error, OtherMethodError | UnwantedError)
            if tried == TRIED_MAX:
                break
            continue
        return connection, quantum.keys
    if failure is None:
        reasons = [f"no connection has a peer {peer_id}" + (f" and is {asked}" if asked else "")]
        failure = _distrust(sa.connection, None, peer_id, certificates)
    else:
        # the best fit is the one that was meant
        sa.core.rename(sa, meant)
    text = "; ".join(dict.fromkeys(reasons))
    raise PeerError(
        NotifyType.AUTHENTICATION_FAILED,
        f"{peer_id}: {text}",
        fatal=True,
        cause=failure.cause,
        ours=failure.ours,
        theirs=failure.theirs,
    )


@contextmanager
def refusing(refusal: str) -> Iterator[None]:
    """The peer is refused for this reason, if there is one, once its AUTH has been looked at as any other."""
    try:
        yield
    except AuthenticationError:
        if not refusal:
            raise
    if refusal:
        raise AuthenticationError(refusal)


def _distrust(
    connection: Connection, error: AuthenticationError | None, peer_id: Identity, certificates: list[CertPayload]
) -> Failure:
    """Why a peer is not believed; without an error, because nobody like that is wanted."""
    if error is None or not connection.remote.id.matches(peer_id):
        cause = Cause.PEER_ID
    else:
        cause = Cause.CERTIFICATE if isinstance(error, CertificateError) else Cause.PEER_AUTH
    return Failure(
        cause,
        bounded(f"{peer_id}: {error}"),
        ours=Terms(identity=bounded(str(connection.remote.id))),
        theirs=Terms(identity=bounded(str(peer_id)), certificates=describe_received(certificates)),
    )


def our_identity(sa: IkeSa) -> IdPayload:
    """IDr: who we are in the connection that was found."""
    assert sa.auth is not None
    sa.our_id = local_identity(sa, sa.connection)
    mine = _id_payload(PayloadType.IDR, sa.our_id)
    sa.auth.idr = mine.body()
    return mine


def our_proof(sa: IkeSa) -> list[Payload]:
    """IDr, CERT and AUTH. PeerError if we cannot prove who we are."""
    mine = our_identity(sa)
    assert sa.auth is not None
    assert sa.our_id is not None
    try:
        octets = auth_octets(sa, mine.body(), of_initiator=False)
        own = make_proof(sa, sa.connection, sa.our_id, octets, sa.auth.certreqs)
    except AuthenticationError as error:
        why = f"we cannot prove who we are: {error}"
        raise PeerError(NotifyType.AUTHENTICATION_FAILED, why, fatal=True, cause=Cause.LOCAL_AUTH) from None
    return [mine, *own.certificates, own.payload]


def accept(sa: IkeSa, own: list[Payload], payloads: list[Payload], now: float) -> list[Payload]:
    """The initiator's AUTH is right: the response, with our proof; if there is another round, with nothing else."""
    auth = sa.auth
    assert auth is not None
    auth.heard += payloads
    auth.eap = None
    if sa.ppk and not auth.round:
        # RFC 8784 section 3: empty, the initiator knows which
        own = [*own, NotifyPayload(NotifyType.PPK_IDENTITY)]
    if auth.round < len(sa.connection.remote_rounds):
        auth.round += 1
        return own
    return admit(sa, own, auth.heard, now)
