"""Which EAP methods there are, and one of them made for an IKE_SA."""

from __future__ import annotations

import logging

from ipsec.crypto.auth import AuthenticationError
from ipsec.crypto.identity import Identity
from ipsec.crypto.mschap import nt_password_hash
from ipsec.ike.config import AuthClass, Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import EapSecret
from ipsec.ike.eap.gtc import GtcPeer, GtcServer
from ipsec.ike.eap.md5 import Md5Peer, Md5Server
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.ike.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from ipsec.ike.eap.names import MUTUAL_METHODS, TlsVersion
from ipsec.ike.eap.tls import TlsIdentity, TlsPeer, TlsServer, Verify, tls_available
from ipsec.ike.eap.tls_session import TLS_1_2, TLS_1_3
from ipsec.ike.eap.trust import tls_authorities, tls_identity, verify_client, verify_server
from ipsec.ike.errors import SaFailedError
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.sa import IkeSa
from ipsec.wire.eap import eap_name
from ipsec.wire.iana import EapType

log = logging.getLogger(__name__)


def taken(sa: IkeSa, local: LocalAuth, user: Identity) -> tuple[int, ...]:
    """EapTypes that we agree to as peer, best first.

    MD5 and GTC make no key, so what they show is not bound to the IKE_SA (RFC 7296 section 2.16): only who names them
    gets them.
    """
    if local.eap_type:
        return (local.eap_type,)
    return (EapType.TLS, EapType.MSCHAPV2) if _has_certificate(sa, local, user) else (EapType.MSCHAPV2,)


def make_peer(sa: IkeSa, connection: Connection, kind: int, user: Identity) -> PeerMethod:
    """Our side of a method, as peer; ``user`` is who we are. SaFailedError if we lack what it takes."""
    local = connection.local
    assert sa.peer_id is not None
    if kind == EapType.TLS:
        try:
            own = _certificate(sa, local, user)
        except EapError as error:
            raise _lacking(str(error)) from None
        if own is None:
            raise _lacking(f"no certificate with a private key for {user}")
        return TlsPeer(own, verify_server(sa, connection, sa.peer_id), newest=_newest_tls(sa))
    whom = local.aaa_id.exact if local.aaa_id is not None else sa.peer_id
    secret = sa.core.credentials.find_eap(user, whom, nt_hashes=kind == EapType.MSCHAPV2)
    if secret is None:
        raise _lacking(f"no EAP secret for {user} that serves {eap_name(kind)} (section secrets)")
    match kind:
        case EapType.MSCHAPV2:
            return Mschapv2Peer(user.data, _nt_hash(secret), sa.core.rng)
        case EapType.MD5:
            return Md5Peer(secret.secret)
        case EapType.GTC:
            return GtcPeer(secret.secret)
    raise _lacking(f"{eap_name(kind)} is not there")


def _lacking(what: str) -> SaFailedError:
    return SaFailedError(Failure(Cause.LOCAL_AUTH, bounded(f"we cannot prove who we are: {what}")))


def is_alone(sa: IkeSa, responder: LocalAuth | RemoteAuth) -> bool:
    """Whether EAP is all that shows who the responder is (RFC 5998): in the first round, if that is how it does it."""
    return responder.method is AuthClass.EAP and not (sa.auth is not None and sa.auth.round)


def offered(sa: IkeSa, connection: Connection) -> tuple[int, ...]:
    """EapTypes that we propose as server, best first."""
    kind = connection.remote.eap_type
    if kind:
        return (kind,)
    if is_alone(sa, connection.local):
        return tuple(MUTUAL_METHODS)
    has = _has_certificate(sa, connection.local, sa.our_id)
    return (EapType.MSCHAPV2, EapType.TLS) if has else (EapType.MSCHAPV2,)


def make_server(sa: IkeSa, connection: Connection, kind: int, user: Identity, refusal: str) -> ServerMethod:
    """Our side of a method, as server, for ``user``. With a ``refusal`` whatever he shows is to be wrong."""
    core, ours = sa.core, sa.our_id
    assert ours is not None
    if kind == EapType.TLS:
        own = _certificate(sa, connection.local, ours)
        if own is None:
            raise EapError(f"EAP-TLS needs a certificate of ours with a private key for {ours}")
        verify = _refusing(refusal) if refusal else verify_client(sa, connection, user)
        return TlsServer(own, verify, tls_authorities(sa, connection.remote), newest=_newest_tls(sa))
    secret = None if refusal else core.credentials.find_eap(user, ours, nt_hashes=kind == EapType.MSCHAPV2)
    if secret is None:
        # nobody learns by this which users there are
        log.warning("%s: no EAP secret for %s that serves %s (section secrets)", sa, user, eap_name(kind))
        secret = EapSecret(core.rng(16), is_nt_hash=True)
    match kind:
        case EapType.MSCHAPV2:
            return Mschapv2Server(_nt_hash(secret), core.rng, ours.data)
        case EapType.MD5:
            return Md5Server(secret.secret, core.rng, ours.data)
        case EapType.GTC:
            return GtcServer(secret.secret)
    raise EapError(f"{eap_name(kind)} is not there")


def _refusing(reason: str) -> Verify:
    def verify(chain: list[bytes]) -> None:
        raise AuthenticationError(reason)

    return verify


def _has_certificate(sa: IkeSa, local: LocalAuth, identity: Identity | None) -> bool:
    try:
        return not tls_available() and tls_identity(sa, local, identity) is not None
    except AuthenticationError as error:
        log.warning("%s: EAP-TLS is left out: our certificate for %s: %s", sa, identity, error)
        return False


def _certificate(sa: IkeSa, local: LocalAuth, identity: Identity) -> TlsIdentity | None:
    """EapError if there is no TLS, or the certificate is malformed."""
    missing = tls_available()
    if missing:
        raise EapError(missing)
    try:
        return tls_identity(sa, local, identity)
    except AuthenticationError as error:
        raise EapError(f"our certificate for {identity}: {error}") from None


def _newest_tls(sa: IkeSa) -> int:
    return TLS_1_2 if sa.core.settings.tls_version_max is TlsVersion.TLS_1_2 else TLS_1_3


def _nt_hash(secret: EapSecret) -> bytes:
    return secret.secret if secret.is_nt_hash else nt_password_hash(secret.secret)
