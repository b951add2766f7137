"""Which EAP methods there are, and one of them made for an IKE_SA."""

from __future__ import annotations

import logging

from ipsec.crypto.identity import Identity
from ipsec.crypto.mschap import nt_password_hash
from ipsec.ike.config import LocalAuth, RemoteAuth
from ipsec.ike.credentials import EapSecret
from ipsec.ike.eap.gtc import GtcPeer, GtcServer
from ipsec.ike.eap.md5 import Md5Peer, Md5Server
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.ike.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from ipsec.ike.errors import SaFailedError
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.sa import IkeSa
from ipsec.wire.eap import eap_name
from ipsec.wire.iana import EapType

log = logging.getLogger(__name__)

#: with a password; MD5 and GTC make no key, so what they show is not bound to the IKE_SA (RFC 7296 section 2.16): only
#: who names them gets them
_WITH_KEY = (EapType.MSCHAPV2,)


def taken(local: LocalAuth) -> tuple[int, ...]:
    """EapTypes that we agree to as peer, best first."""
    return (local.eap_type,) if local.eap_type else _WITH_KEY


def make_peer(sa: IkeSa, local: LocalAuth, kind: int, user: Identity) -> PeerMethod:
    """Our side of a method, as peer; ``user`` is who we are. SaFailedError if we lack what it takes."""
    server = local.aaa_id
    whom = server.exact if server is not None else sa.peer_id
    secret = sa.core.credentials.find_eap(user, whom, nt_hashes=kind == EapType.MSCHAPV2)
    if secret is None:
        why = f"we cannot prove who we are: no EAP secret for {user} that serves {eap_name(kind)} (section secrets)"
        raise SaFailedError(Failure(Cause.LOCAL_AUTH, bounded(why)))
    match kind:
        case EapType.MSCHAPV2:
            return Mschapv2Peer(user.data, _nt_hash(secret), sa.core.rng)
        case EapType.MD5:
            return Md5Peer(secret.secret)
        case EapType.GTC:
            return GtcPeer(secret.secret)
    raise EapError(f"{eap_name(kind)} is not there")


def offered(remote: RemoteAuth) -> tuple[int, ...]:
    """EapTypes that we propose as server, best first."""
    return (remote.eap_type,) if remote.eap_type else _WITH_KEY


def make_server(sa: IkeSa, kind: int, user: Identity, *, known: bool) -> ServerMethod:
    """Our side of a method, as server, for ``user``; not ``known``: whatever he shows is to be wrong."""
    core, ours = sa.core, sa.our_id
    assert ours is not None
    secret = core.credentials.find_eap(user, ours, nt_hashes=kind == EapType.MSCHAPV2) if known else None
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


def _nt_hash(secret: EapSecret) -> bytes:
    return secret.secret if secret.is_nt_hash else nt_password_hash(secret.secret)
