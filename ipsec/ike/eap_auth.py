"""IKE_AUTH with EAP (RFC 7296 sections 2.16 and 3.16): the initiator proves who it is by an EAP method.

    IDi ... SA TSi TSr      IDr CERT AUTH EAP     the responder with a key, as ever; then as many rounds as EAP takes
    EAP                     EAP
    AUTH                    AUTH SA TSi TSr       both with the key that the method has made

What the initiator has asked for in its first request is done with the last response. The responder proves itself first,
so that no password, nor anything made from one, goes to somebody else (CVE-2015-4171); a method that shows safely who
both are may stand for that (RFC 5998). Secrets of users that we do not know, and of those whom no connection is for,
are random, so that neither is told from a wrong password.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Sequence
from functools import partial

from ipsec.crypto.auth import AuthenticationError, psk_auth
from ipsec.crypto.identity import Identity
from ipsec.ike import ppk
from ipsec.ike.admit import check_wishes
from ipsec.ike.auth import (
    AuthRequest,
    RoundRequest,
    accept,
    agreed_ppk,
    answer_or_wait,
    begin,
    disbelieve,
    give_up,
    go_on,
    handle_auth,
    handle_round,
    heed_errors,
    name_ppk,
    need_ppk,
    our_identity,
    our_proof,
    refusing,
    settle_ppk,
    whom,
)
from ipsec.ike.config import AuthClass, Connection
from ipsec.ike.credentials import identity_of_octets
from ipsec.ike.eap.method import EapError, EapRefusedError, EapSilentError, PeerMethod
from ipsec.ike.eap.methods import is_alone, make_peer, make_server, offered, taken
from ipsec.ike.eap.names import MUTUAL_METHODS
from ipsec.ike.eap.peer import EapPeer
from ipsec.ike.eap.relay import EapRelay, Granted
from ipsec.ike.eap.server import EapServer
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.events import Path
from ipsec.ike.failure import Cause, Failure, Terms, bounded
from ipsec.ike.find import find, find_notify
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.proof import auth_octets, local_identity
from ipsec.ike.rounds import another_follows, check_rounds, says_another, this_round
from ipsec.ike.sa import IkeSa, Request
from ipsec.ike.state import IkeState
from ipsec.ike.status import StatusUnknownError
from ipsec.text import printable
from ipsec.wire.eap import eap_name
from ipsec.wire.iana import AuthMethod, ExchangeType, NotifyType, PayloadType, Protocol
from ipsec.wire.payloads import (
    AuthPayload,
    CertPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    NotifyPayload,
    Payload,
)

log = logging.getLogger(__name__)


# -- initiator


class EapPeerProgress:
    """What an initiator keeps between its requests."""

    __slots__ = ("idi", "peer", "user")

    def __init__(self, peer: EapPeer, user: Identity, idi: bytes) -> None:
        self.peer = peer
        self.user = user
        "who we are for EAP"
        self.idi = idi
        "body of IDi"


def auth_request(connection: Connection) -> AuthRequest:
    """The first request of IKE_AUTH, as the connection has us prove who we are."""
    return EapAuthRequest() if connection.local.method is AuthClass.EAP else AuthRequest()


def round_request(sa: IkeSa) -> Request:
    """The first request of another round (RFC 4739)."""
    return EapRoundRequest() if this_round(sa).local.method is AuthClass.EAP else RoundRequest()


class EapAuthRequest(AuthRequest):
    """The first request: without AUTH, so that the responder begins with EAP."""

    # we have named none yet
    with_ppk = False
    __slots__ = ()

    def _prove(self, sa: IkeSa, identity: Identity, body: bytes) -> tuple[list[CertPayload], list[Payload]]:
        assert sa.auth is not None
        sa.auth.ppk_keys = ppk.chosen(sa)
        _begin_as_peer(sa, identity, body)
        # RFC 5998 section 3
        alone = is_alone(sa, sa.connection.remote)
        return [], [NotifyPayload(NotifyType.EAP_ONLY_AUTHENTICATION)] if alone else []

    def _goes_without(self, sa: IkeSa) -> bool:
        return is_alone(sa, sa.connection.remote)

    def _believed(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        assert sa.auth is not None
        sa.auth.heard += payloads
        if not self._goes_without(sa) and find(payloads, EapPayload) is None:
            # RFC 5685 section 6: who has proved himself may send us elsewhere before EAP begins
            sa.core.take_redirect(sa, payloads, now)
        if sa.state is IkeState.CONNECTING:
            _go_on(sa, payloads, now)


class EapRoundRequest(Request):
    """The same in another round."""

    exchange = ExchangeType.IKE_AUTH
    __slots__ = ()

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """IDi."""
        identity = local_identity(sa, this_round(sa))
        mine = IdPayload(PayloadType.IDI, identity.type, identity.data)
        _begin_as_peer(sa, identity, mine.body())
        return [mine]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """EAP begins."""
        _go_on(sa, payloads, now)


def _begin_as_peer(sa: IkeSa, identity: Identity, body: bytes) -> None:
    connection = this_round(sa)
    user = connection.local.eap_id or identity
    alone = is_alone(sa, connection.remote)
    kinds = taken(sa, connection.local, user)
    if alone:
        kinds = tuple(kind for kind in kinds if kind in MUTUAL_METHODS) or kinds

    def make(kind: int) -> PeerMethod:
        method = make_peer(sa, connection, kind, user)
        if alone and not method.mutual:
            # RFC 5998 section 4: nothing else says who hears what we show
            raise EapError(f"remote.auth = eap, and {eap_name(kind)} does not show safely who the responder is")
        return method

    assert sa.auth is not None
    sa.auth.eap = EapPeerProgress(EapPeer(user.data, kinds, make), user, body)


class EapRequest(Request):
    """One response of EAP, which is a request of IKE_AUTH."""

    exchange = ExchangeType.IKE_AUTH
    __slots__ = ("packet",)

    def __init__(self, packet: bytes) -> None:
        self.packet = packet

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """EAP."""
        return [EapPayload(self.packet)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The next round of EAP, or its end."""
        _go_on(sa, payloads, now)


class EapProof(Request):
    """AUTH of both ends, once EAP has succeeded."""

    exchange = ExchangeType.IKE_AUTH
    __slots__ = ()

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """AUTH, and what PPK is in it."""
        eap, msk = _progress_of_peer(sa), _progress_of_peer(sa).peer.msk
        keys = sa.auth.ppk_keys if sa.auth is not None and not sa.auth.round else None
        named: list[Payload] = []
        if keys is not None:
            without = None if sa.connection.ppk_required else _our_auth(sa, msk, eap.idi)
            named = name_ppk(sa.connection, without)
        return [_our_auth(sa, msk, eap.idi, keys), *named, *another_follows(sa)]

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The responder has seen the same."""
        eap = _progress_of_peer(sa)
        proof = find(payloads, AuthPayload)
        heed_errors(sa, payloads, "" if proof is not None else "AUTH")
        assert proof is not None
        assert sa.auth is not None
        assert sa.peer_id is not None
        first = not sa.auth.round
        keys = agreed_ppk(sa, payloads) if first else None
        try:
            if not _holds(sa, proof, eap.peer.msk, sa.auth.idr, keys):
                raise AuthenticationError("its AUTH after EAP is not made with the key of the EAP method")
            if first:
                need_ppk(sa, keys)
        except AuthenticationError as error:
            disbelieve(sa, sa.peer_id, error, [], now)
            return
        if first:
            settle_ppk(sa, keys)
        sa.auth.eap = None
        go_on(sa, payloads, now)


def _progress_of_peer(sa: IkeSa) -> EapPeerProgress:
    eap = sa.auth.eap if sa.auth is not None else None
    assert isinstance(eap, EapPeerProgress)
    return eap


def _go_on(sa: IkeSa, payloads: list[Payload], now: float) -> None:
    eap = _progress_of_peer(sa)
    packet = find(payloads, EapPayload)
    heed_errors(sa, payloads, "" if packet is not None else "EAP")
    assert packet is not None
    try:
        response = eap.peer.receive(packet.data)
    except StatusUnknownError as unknown:
        sa.core.put_off(sa, unknown, lambda later: _go_on(sa, payloads, later))
        return
    except EapRefusedError as error:
        reason = bounded(f"{sa.path.remote} refuses us as {eap.user}: {error}")
        raise SaFailedError(Failure(Cause.LOCAL_AUTH, reason, by_peer=True)) from None
    except SaFailedError as error:
        give_up(sa, error.failure, error.failure.reason, now)
        return
    except AuthenticationError as error:
        reason = bounded(f"EAP with {sa.peer_id}: {error}")
        give_up(sa, Failure(Cause.PEER_AUTH, reason), reason, now)
        return
    sa.ask(EapProof() if response is None else EapRequest(response), now, first=True)


# -- responder


class EapServerProgress:
    """What a responder keeps between the requests of one round."""

    __slots__ = ("candidates", "done", "idi", "refusal", "server", "user")

    def __init__(self, user: Identity, idi: bytes, candidates: Sequence[Connection]) -> None:
        self.user = user
        "whose secret the initiator has to show: who it is by IDi, until it is asked"
        self.idi = idi
        "body of IDi"
        self.candidates = candidates
        "connections that it may mean, the best first"
        self.refusal = ""
        "why EAP is not to succeed, however it ends"
        self.done = False
        "EAP has succeeded; AUTH is still to come"
        self.server: EapServer | EapRelay | None = None


class EapFailedError(PeerError):
    """EAP has not succeeded: the peer hears that in an EAP packet."""

    def __init__(self, packet: bytes, reason: str, cause: Cause, theirs: Terms) -> None:
        super().__init__(NotifyType.AUTHENTICATION_FAILED, reason, fatal=True, cause=cause, theirs=theirs)
        self.packet = packet

    def payload(self) -> EapPayload:
        """RFC 7296 section 2.16."""
        return EapPayload(self.packet)


def handle_ike_auth(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload] | None:
    """A request of IKE_AUTH, with EAP or without; None if the answer has to wait for something outside."""
    eap = sa.auth.eap if sa.auth is not None else None
    if isinstance(eap, EapServerProgress):
        if eap.done:
            return _conclude(sa, eap, payloads, now)
        return answer_or_wait(sa, partial(_advance, sa, eap, payloads), path, now)
    with_key = find(payloads, AuthPayload) is not None
    if sa.auth is not None and sa.auth.round:
        if with_key:
            return handle_round(sa, payloads, path, now)
        return answer_or_wait(sa, partial(_first, sa, _start_round(sa, payloads), []), path, now)
    if with_key:
        return handle_auth(sa, payloads, now)
    eap, own = _start(sa, payloads)
    return answer_or_wait(sa, partial(_first, sa, eap, own), path, now)


def _start(sa: IkeSa, payloads: list[Payload]) -> tuple[EapServerProgress, list[Payload]]:
    """The initiator leaves AUTH out: it wants EAP. How far that is, and our proof. PeerError."""
    identity, claimed, wanted = begin(sa, payloads)
    assert sa.auth is not None
    alone = find_notify(payloads, NotifyType.EAP_ONLY_AUTHENTICATION) is not None
    fitting = sa.core.connections_for(sa, claimed, wanted)
    reasons = dict.fromkeys(filter(None, (_why_not(connection, alone) for connection in fitting)))
    candidates = [connection for connection in fitting if not _why_not(connection, alone)]
    if not candidates:
        if fitting:
            # the best fit is the one that was meant
            sa.core.rename(sa, fitting[0])
        text = "; ".join(reasons) or "no connection has such a peer" + (f" and is {wanted}" if wanted else "")
        raise _refused(claimed, f"{claimed} wants EAP: {text}", Cause.PEER_AUTH if fitting else Cause.PEER_ID)
    connection = candidates[0]
    sa.core.rename(sa, connection)
    sa.auth.claimed = claimed
    sa.auth.heard += payloads
    check_wishes(sa, payloads)
    own: list[Payload] = [our_identity(sa)] if connection.local.method is AuthClass.EAP else our_proof(sa)
    eap = sa.auth.eap = EapServerProgress(claimed, identity.body(), candidates)
    eap.server = _make_server(sa, eap)
    return eap, own


def _start_round(sa: IkeSa, payloads: list[Payload]) -> EapServerProgress:
    """The same in another round (RFC 4739), where we have shown already who we are. PeerError."""
    connection = this_round(sa)
    identity, claimed = whom(payloads)
    if connection.remote.method is not AuthClass.EAP:
        raise _refused(claimed, f"{claimed} wants EAP: remote.auth of this round is not eap", Cause.PEER_AUTH)
    if not connection.remote.id.matches(claimed):
        raise _refused(claimed, f"the peer is {claimed}, we want {connection.remote.id}", Cause.PEER_ID)
    assert sa.auth is not None
    eap = sa.auth.eap = EapServerProgress(claimed, identity.body(), [sa.connection])
    eap.server = _make_server(sa, eap)
    return eap


def _refused(who: Identity, why: str, cause: Cause) -> PeerError:
    theirs = Terms(identity=bounded(str(who)))
    return PeerError(NotifyType.AUTHENTICATION_FAILED, why, fatal=True, cause=cause, theirs=theirs)


def _why_not(connection: Connection, alone: bool) -> str:
    """Why a connection is not for an initiator that wants EAP, empty if it is."""
    if connection.remote.method is not AuthClass.EAP:
        return f"{connection.name}: remote.auth is not eap"
    if connection.local.method is AuthClass.EAP and not alone:
        return f"{connection.name}: local.auth = eap, and the peer does not do without our AUTH (RFC 5998)"
    return ""


def _make_server(sa: IkeSa, eap: EapServerProgress) -> EapServer | EapRelay:
    remote, identifier = this_round(sa).remote, sa.core.rng(1)[0]
    asks = remote.eap_id is not None
    if remote.eap_radius:
        return EapRelay(asks, lambda user: _identified_there(sa, eap, user), eap.user.data, identifier)
    return EapServer(
        asks,
        lambda user: _identified(sa, eap, user),
        lambda: offered(sa, this_round(sa)),
        lambda kind: make_server(sa, this_round(sa), kind, eap.user, eap.refusal),
        identifier,
    )


def _first(sa: IkeSa, eap: EapServerProgress, own: list[Payload], now: float) -> list[Payload]:
    """Our proof, and the first request of EAP."""
    assert eap.server is not None
    try:
        return [*own, EapPayload(eap.server.begin())]
    except AuthenticationError as error:
        failed = _failed(sa, eap, error)
        # RFC 7296 section 2.16: EAP comes with who we are, Failure as well; else it is an answer that makes no sense
        failed.beside = own
        raise failed from None


def _identified(sa: IkeSa, eap: EapServerProgress, user: bytes) -> None:
    """The peer has said who it is for EAP: the first connection that wants somebody like that is the one.

    We are the same in all of them, or our AUTH would be of somebody else.
    """
    assert sa.auth is not None
    eap.user = sa.eap_id = identity_of_octets(user)
    if not _choose(sa, eap):
        eap.refusal = f"no connection has eap_id {eap.user}"


def _choose(sa: IkeSa, eap: EapServerProgress, groups: Collection[bytes] | None = None) -> bool:
    """Take the first connection that is for such a user; ``groups`` are his, None: they are not known yet."""
    assert sa.auth is not None
    ours, asked = sa.connection.local, this_round(sa).remote
    for connection in eap.candidates:
        remote = connection.in_round(sa.auth.round, initiator=False).remote
        alike = remote.eap_radius is asked.eap_radius and (remote.eap_id is None) is (asked.eap_id is None)
        his = remote.eap_id is None or remote.eap_id.matches(eap.user)
        member = groups is None or not remote.groups or any(one.encode() in groups for one in remote.groups)
        # and nothing that went meanwhile
        if connection.local == ours and alike and his and member and sa.core.is_loaded(connection):
            sa.core.rename(sa, connection)
            return True
    return False


def _take_grants(sa: IkeSa, eap: EapServerProgress, granted: Granted) -> None:
    """The server elsewhere accepts the peer, and says who it is and what it may.

    That name counts from now on, also for ``eap_id``: what the peer has called itself, outside of the method, may be
    anything (RFC 2865 section 5.1).
    """
    sa.granted = granted
    user = identity_of_octets(granted.user_name) if granted.user_name else eap.user
    if user != eap.user:
        log.info("%s: the server knows %s as %s", sa, eap.user, user)
        eap.user = sa.eap_id = user
    if not _choose(sa, eap, granted.groups):
        groups = ", ".join(map(printable, granted.groups)) or "none"
        eap.refusal = f"no connection is for {user} with groups {groups}"


def _identified_there(sa: IkeSa, eap: EapServerProgress, user: bytes) -> None:
    """The same, where somebody else is the server: whom no connection is for is not asked about."""
    _identified(sa, eap, user)
    if eap.refusal:
        raise EapError(eap.refusal)


def _advance(sa: IkeSa, eap: EapServerProgress, payloads: list[Payload], now: float) -> list[Payload]:
    """One step of EAP. Again after StatusUnknownError and EapAnswerNeededError, when that is known."""
    packet = find(payloads, EapPayload)
    if packet is None:
        raise PeerError(NotifyType.INVALID_SYNTAX, "EAP is missing", fatal=True, cause=Cause.MALFORMED)
    assert eap.server is not None
    try:
        request = eap.server.receive(packet.data)
        if request is None and isinstance(eap.server, EapRelay):
            _take_grants(sa, eap, eap.server.granted)
        if request is None and eap.refusal:
            raise AuthenticationError(eap.refusal)
        if request is None and eap.server.msk is None and is_alone(sa, sa.connection.local):
            # RFC 5998 section 4: our AUTH would show nothing
            raise AuthenticationError(f"local.auth = eap, and {eap_name(eap.server.method)} makes no key")
    except AuthenticationError as error:
        raise _failed(sa, eap, error) from None
    if request is not None:
        _note_end(sa, eap)
        return [EapPayload(request)]
    log.info("%s: %s has shown by EAP (%s) who it is", sa, eap.user, eap_name(eap.server.method))
    _count(sa, eap, good=True)
    eap.done = True
    return [EapPayload(eap.server.success())]


def _note_end(sa: IkeSa, eap: EapServerProgress) -> None:
    """The method tells the peer that it has failed, and peers do not always answer to that."""
    assert sa.auth is not None
    assert eap.server is not None
    if eap.server.gave_up is not None and sa.auth.failure is None:
        sa.auth.failure = _failure(eap, eap.server.gave_up)
        _count(sa, eap, good=False)
        log.info("%s: %s; it is told", sa, sa.auth.failure)


def _count(sa: IkeSa, eap: EapServerProgress, *, good: bool) -> None:
    assert eap.server is not None
    sa.core.eap_results[eap_name(eap.server.method) if eap.server.method else "none", good] += 1


def _failure(eap: EapServerProgress, error: AuthenticationError) -> Failure:
    reason = bounded(f"EAP of {eap.user}: {eap.refusal or error}")
    cause = Cause.PEER_ID if eap.refusal else Cause.RADIUS if isinstance(error, EapSilentError) else Cause.PEER_AUTH
    return Failure(cause, reason, theirs=Terms(identity=bounded(str(eap.user))))


def _failed(sa: IkeSa, eap: EapServerProgress, error: AuthenticationError) -> EapFailedError:
    assert sa.auth is not None
    assert eap.server is not None
    if sa.auth.failure is None:
        _count(sa, eap, good=False)
    failure = _failure(eap, error)
    return EapFailedError(eap.server.failure(), failure.reason, failure.cause, failure.theirs)


def handle_giving_up(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> None:
    """The initiator does not go on with EAP: it does not believe us, or has heard from the method that it failed."""
    notify = find_notify(payloads, NotifyType.AUTHENTICATION_FAILED)
    deletes = any(isinstance(p, DeletePayload) and p.protocol == Protocol.IKE for p in payloads)
    if notify is None and not deletes:
        # RFC 7296 section 1.4: nothing else is to be said before IKE_AUTH is through
        why = "INFORMATIONAL before the end of IKE_AUTH"
        raise PeerError(NotifyType.INVALID_SYNTAX, why, fatal=True, cause=Cause.MALFORMED)
    assert sa.auth is not None
    failure = sa.auth.failure
    if failure is None:
        said = "could not authenticate us" if notify is not None else "closed the IKE_SA"
        failure = Failure(Cause.LOCAL_AUTH, f"the peer {said} in the midst of IKE_AUTH", by_peer=True)
        log.warning("%s: %s, who may be %s: %s", sa, sa.path.remote, sa.auth.claimed, failure)
    sa.respond(ExchangeType.INFORMATIONAL, [], path, now)
    sa.destroy(failure, now)


def _conclude(sa: IkeSa, eap: EapServerProgress, payloads: list[Payload], now: float) -> list[Payload]:
    """The initiator shows that it has seen what we have seen."""
    auth, proof = sa.auth, find(payloads, AuthPayload)
    assert auth is not None
    assert eap.server is not None
    if proof is None:
        raise PeerError(NotifyType.INVALID_SYNTAX, "AUTH is missing", fatal=True, cause=Cause.MALFORMED)
    another = says_another(payloads)
    postquantum = ppk.received(proof, payloads)
    quantum = ppk.Answer(proof) if auth.round else ppk.answer(sa, sa.connection, proof, postquantum)
    try:
        with refusing(quantum.refusal):
            if not _holds(sa, quantum.proof, eap.server.msk, eap.idi, quantum.keys):
                raise AuthenticationError("AUTH after EAP is not made with the key of the EAP method")
        check_rounds(sa.connection, auth.round, another=another)
    except AuthenticationError as error:
        raise _refused(eap.user, f"{eap.user}: {error}", Cause.PEER_AUTH) from None
    if not auth.round:
        sa.peer_id = auth.claimed
        ppk.log_outcome(sa, postquantum, quantum.keys)
        if quantum.keys is not None:
            ppk.use(sa, quantum.keys)
    return accept(sa, [_our_auth(sa, eap.server.msk, auth.idr)], payloads, now)


# -- both


def _our_auth(sa: IkeSa, msk: bytes | None, body: bytes, keys: IkeKeys | None = None) -> AuthPayload:
    return AuthPayload(AuthMethod.SHARED_KEY, _auth(sa, msk, body, keys, of_initiator=sa.initiator))


def _holds(sa: IkeSa, proof: AuthPayload, msk: bytes | None, body: bytes, keys: IkeKeys | None = None) -> bool:
    right = _auth(sa, msk, body, keys, of_initiator=not sa.initiator)
    return proof.method == AuthMethod.SHARED_KEY and hmac.compare_digest(right, proof.data)


def _auth(sa: IkeSa, msk: bytes | None, body: bytes, keys: IkeKeys | None, *, of_initiator: bool) -> bytes:
    """AUTH of one side, by the IKE_SA's keys or by these."""
    keys = keys or sa.keys
    assert sa.prf is not None
    assert keys is not None
    # RFC 7296 section 2.16: without a key of the method, SK_pi and SK_pr
    secret = msk if msk is not None else keys.sk_pi if of_initiator else keys.sk_pr
    return psk_auth(sa.prf, secret, auth_octets(sa, body, of_initiator=of_initiator, keys=keys))
