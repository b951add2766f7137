"""Postquantum preshared keys (RFC 8784): a secret that is mixed into SK_d, SK_pi and SK_pr before AUTH is made.

Whoever has recorded everything and breaks the key exchange in the future still lacks the PPK, and with it the keys of
all CHILD_SAs and of every IKE_SA made by rekeying. The first IKE_SA itself, identities among it, is not protected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ipsec.crypto.auth import AuthenticationError
from ipsec.ike.config import Connection
from ipsec.ike.credentials import Credentials, Ppk
from ipsec.ike.errors import SaFailedError
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.keymat import IkeKeys, with_ppk
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import AuthPayload, NotifyPayload, Payload

log = logging.getLogger(__name__)

#: PPK_ID types (RFC 8784 section 5.1). An opaque one means something only to whom it was agreed with
_PPK_ID_FIXED = 2
#: octets of a PPK_ID that we look for
ID_MAX = 1024


@dataclass(frozen=True)
class Received:
    """What an initiator says of PPKs in IKE_AUTH."""

    ppk_id: bytes | None
    "None: it does not want one"
    without: AuthPayload | None
    "AUTH for who has no such PPK; None: there is no going without"


# -- IKE_SA_INIT (section 3)


def announcement(connection: Connection) -> list[Payload]:
    """N(USE_PPK) of an initiator that is to use one."""
    return [NotifyPayload(NotifyType.USE_PPK)] if connection.ppk_id is not None else []


def agreement(credentials: Credentials, notifies: dict[int, NotifyPayload]) -> list[Payload]:
    """The responder's N(USE_PPK), if the initiator has sent one and we have any PPK."""
    wanted = NotifyType.USE_PPK in notifies and credentials.ppks
    return [NotifyPayload(NotifyType.USE_PPK)] if wanted else []


# -- IKE_AUTH, initiator


def chosen(sa: IkeSa) -> IkeKeys | None:
    """The keys with the PPK of the connection in them; None to go without. SaFailedError if that must not be."""
    connection = sa.connection
    if connection.ppk_id is None:
        return None
    assert sa.init is not None
    ppk = sa.core.credentials.find_ppk(connection.ppk_id)
    if ppk is None:
        cause, why = Cause.LOCAL_AUTH, _missing(connection.ppk_id)
    elif not sa.init.ppk:
        cause, why = Cause.REFUSED, "the peer has no postquantum preshared keys (RFC 8784)"
    else:
        return _mixed(sa, ppk)
    if connection.ppk_required:
        raise SaFailedError(Failure(cause, f"{why}, and ppk_required = yes"))
    log.warning("%s: goes without a postquantum preshared key: %s", sa, why)
    return None


def identity(ppk_id: bytes) -> NotifyPayload:
    """N(PPK_IDENTITY) of the initiator."""
    return NotifyPayload(NotifyType.PPK_IDENTITY, bytes((_PPK_ID_FIXED,)) + ppk_id)


def accepted(payloads: Sequence[Payload]) -> bool:
    """Whether the responder has used the PPK that we named."""
    return any(isinstance(p, NotifyPayload) and p.notify == NotifyType.PPK_IDENTITY for p in payloads)


# -- IKE_AUTH, responder


def received(proof: AuthPayload, payloads: Sequence[Payload]) -> Received:
    """What the initiator says."""
    notifies = {p.notify: p.data for p in payloads if isinstance(p, NotifyPayload)}
    named, without = notifies.get(NotifyType.PPK_IDENTITY), notifies.get(NotifyType.NO_PPK_AUTH)
    if named is None:
        return Received(None, None)
    # an id of another type is one that we do not know
    known = named[1:] if named[:1] == bytes((_PPK_ID_FIXED,)) and len(named) <= ID_MAX else b""
    return Received(known, AuthPayload(proof.method, without) if without is not None else None)


def answer(sa: IkeSa, connection: Connection, proof: AuthPayload, peer: Received) -> tuple[AuthPayload, IkeKeys | None]:
    """Which AUTH of the initiator to verify, and the keys with the PPK, None for those without one.

    AuthenticationError if connection or peer want a PPK that there is not (section 3, table 1).
    """
    assert sa.init is not None
    if peer.ppk_id is None or not sa.init.ppk:
        if connection.ppk_required:
            raise AuthenticationError("ppk_required = yes, and the peer uses no postquantum preshared key (RFC 8784)")
        return proof, None
    ppk = sa.core.credentials.find_ppk(peer.ppk_id)
    if ppk is not None:
        return proof, _mixed(sa, ppk)
    why = _missing(peer.ppk_id)
    if connection.ppk_required:
        raise AuthenticationError(f"{why}, and ppk_required = yes")
    if peer.without is None:
        raise AuthenticationError(f"{why}, and the peer does not go without")
    return peer.without, None


def log_outcome(sa: IkeSa, peer: Received, keys: IkeKeys | None) -> None:
    """Say whether an initiator that asked for a PPK has got it."""
    if keys is not None:
        log.info("%s: uses the postquantum preshared key %s", sa, _shown(peer.ppk_id or b""))
    elif peer.without is not None:
        log.warning("%s: goes without the postquantum preshared key %s, which we do not have", sa,
                    _shown(peer.ppk_id or b""))  # fmt: skip


def use(sa: IkeSa, keys: IkeKeys) -> None:
    """``keys`` have the PPK in what was not in use yet; what messages are protected with stays."""
    sa.keys = keys
    sa.ppk = True


def _mixed(sa: IkeSa, ppk: Ppk) -> IkeKeys:
    assert sa.prf is not None
    assert sa.keys is not None
    return with_ppk(sa.prf, sa.keys, ppk.secret)


def _missing(ppk_id: bytes) -> str:
    return f"there is no postquantum preshared key {_shown(ppk_id)} (section secrets)"


def _shown(ppk_id: bytes) -> str:
    text = ppk_id.decode("ascii", "backslashreplace")
    return bounded(repr(text))
