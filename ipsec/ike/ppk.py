"""Postquantum preshared keys (RFC 8784): a secret that is mixed into SK_d, SK_pi and SK_pr before AUTH is made.

Whoever has recorded everything and breaks the key exchange in the future still lacks the PPK, and with it the keys of
all CHILD_SAs and of every IKE_SA made by rekeying. The first IKE_SA itself, identities among it, is not protected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ipsec.ike.config import Connection
from ipsec.ike.credentials import PPK_ID_MAX, Credentials, matches_ppk
from ipsec.ike.errors import SaFailedError
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.find import find_notify
from ipsec.ike.keymat import IkeKeys, with_ppk
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import AuthPayload, NotifyPayload, Payload

log = logging.getLogger(__name__)

#: PPK_ID type (RFC 8784 section 5.1). An opaque one means something only to whom it was agreed with
_PPK_ID_FIXED = 2


class Received(NamedTuple):
    """What an initiator says of PPKs in IKE_AUTH."""

    asks: bool
    "it names a PPK"
    ppk_id: bytes | None
    "which; None if it is named in a way that we do not know"
    without: AuthPayload | None
    "AUTH for who has no such PPK; None: there is no going without"


class Answer(NamedTuple):
    """What a connection makes of it."""

    proof: AuthPayload
    "the AUTH to verify"
    keys: IkeKeys | None = None
    "with the PPK, None for those without one"
    refusal: str = ""
    "why AUTH is not enough, however good it is"


# -- IKE_SA_INIT (section 3)


def announcement(connection: Connection) -> list[Payload]:
    """N(USE_PPK) of an initiator that is to use one."""
    return [NotifyPayload(NotifyType.USE_PPK)] if _named_by(connection) is not None else []


def agreement(credentials: Credentials, notifies: dict[int, NotifyPayload]) -> list[Payload]:
    """The responder's N(USE_PPK), if the initiator has sent one and we have any PPK."""
    wanted = NotifyType.USE_PPK in notifies and credentials.ppks
    return [NotifyPayload(NotifyType.USE_PPK)] if wanted else []


# -- IKE_AUTH, initiator


def chosen(sa: IkeSa) -> IkeKeys | None:
    """The keys with the PPK of the connection in them; None to go without. SaFailedError if that must not be.

    Then nothing has been said yet: neither who we are, nor that older IKE_SAs are to go.
    """
    connection = sa.connection
    ppk_id = _named_by(connection)
    assert sa.init is not None
    ppk = sa.core.credentials.find_ppk(ppk_id) if ppk_id is not None else None
    if ppk_id is None:
        if not connection.ppk_required:
            return None
        cause, why = Cause.LOCAL_AUTH, "no ppk_id says which postquantum preshared key"
    elif ppk is None:
        cause, why = Cause.LOCAL_AUTH, _missing(ppk_id)
    elif not sa.init.ppk:
        cause, why = Cause.REFUSED, "the peer has no postquantum preshared keys (RFC 8784)"
    else:
        return _mixed(sa, ppk.secret)
    if connection.ppk_required:
        raise SaFailedError(Failure(cause, f"{why}, and ppk_required = yes"))
    log.warning("%s: goes without a postquantum preshared key: %s", sa, why)
    return None


def identity(connection: Connection) -> NotifyPayload:
    """N(PPK_IDENTITY) of the initiator."""
    return NotifyPayload(NotifyType.PPK_IDENTITY, bytes((_PPK_ID_FIXED,)) + (_named_by(connection) or b""))


def _named_by(connection: Connection) -> bytes | None:
    """The PPK_ID to ask for. A pattern is for responders."""
    wanted = connection.ppk_id
    return wanted.exact.data if wanted is not None and wanted.exact is not None else None


def accepted(payloads: Sequence[Payload]) -> bool:
    """Whether the responder has used the PPK that we named."""
    return find_notify(payloads, NotifyType.PPK_IDENTITY) is not None


# -- IKE_AUTH, responder


def received(proof: AuthPayload, payloads: Sequence[Payload]) -> Received:
    """What the initiator says."""
    notifies = {p.notify: p.data for p in payloads if isinstance(p, NotifyPayload)}
    named, without = notifies.get(NotifyType.PPK_IDENTITY), notifies.get(NotifyType.NO_PPK_AUTH)
    if named is None:
        return Received(False, None, None)
    known = named[0] == _PPK_ID_FIXED and 0 < len(named) - 1 <= PPK_ID_MAX if named else False
    return Received(True, named[1:] if known else None, AuthPayload(proof.method, without) if without else None)


def answer(sa: IkeSa, connection: Connection, proof: AuthPayload, peer: Received) -> Answer:
    """What to verify, with which keys, and what speaks against the peer anyway (section 3, table 1).

    OB-62: what is refused takes as long as what is not, so that nobody learns which PPK_IDs there are.
    """
    assert sa.init is not None
    if not peer.asks or not sa.init.ppk:
        none = "ppk_required = yes, and the peer uses no postquantum preshared key (RFC 8784)"
        return Answer(proof, refusal=none if connection.ppk_required else "")
    known, wanted = peer.ppk_id, connection.ppk_id
    ppk = sa.core.credentials.find_ppk(known) if known is not None else None
    secret = ppk.secret if ppk is not None else sa.core.rng(32)
    if known is not None and wanted is not None and not matches_ppk(wanted, known):
        # it may be another peer's: who has this one's other key as well could take its place
        why = f"the peer uses the postquantum preshared key {shown(known)}, and ppk_id is {wanted}"
    elif ppk is not None:
        why = ""
    elif connection.ppk_required:
        why = f"{_missing(known)}, and ppk_required = yes"
    elif peer.without is not None:
        return Answer(peer.without)
    else:
        why = f"{_missing(known)}, and the peer does not go without"
    return Answer(proof, _mixed(sa, secret), why)


def log_outcome(sa: IkeSa, peer: Received, keys: IkeKeys | None) -> None:
    """Say whether an initiator that asked for a PPK has got it."""
    if keys is not None and peer.ppk_id is not None:
        log.info("%s: uses the postquantum preshared key %s", sa, shown(peer.ppk_id))
    elif peer.without is not None:
        log.warning("%s: goes without a postquantum preshared key: %s", sa, _missing(peer.ppk_id))


def use(sa: IkeSa, keys: IkeKeys) -> None:
    """``keys`` have the PPK in what was not in use yet; what messages are protected with stays."""
    sa.keys = keys
    sa.ppk = True


def _mixed(sa: IkeSa, secret: bytes) -> IkeKeys:
    assert sa.prf is not None
    assert sa.keys is not None
    return with_ppk(sa.prf, sa.keys, secret)


def _missing(ppk_id: bytes | None) -> str:
    which = shown(ppk_id) if ppk_id is not None else "of that kind of identity"
    return f"there is no postquantum preshared key {which} (section secrets)"


def shown(ppk_id: bytes) -> str:
    """A PPK_ID in words."""
    return bounded(repr(ppk_id.decode("ascii", "backslashreplace")))
