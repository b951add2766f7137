"""Several authentications of the initiator (RFC 4739), and what of that an initiator and a responder do not do.

A responder proves once who it is. An initiator that is to see more than that does not begin: no proof that the
connection asks for is ever left out. A responder that could show more shows the first, which is for the peer to judge.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ipsec.ike.config import AuthClass, Connection
from ipsec.ike.errors import SaFailedError
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.find import find_notify
from ipsec.ike.proof import OtherMethodError
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload

if TYPE_CHECKING:
    from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)


def this_round(sa: IkeSa) -> Connection:
    """The connection as it is in the round of authentication that goes on."""
    assert sa.auth is not None
    return sa.connection.in_round(sa.auth.round, initiator=sa.initiator)


# -- initiator


def check_may_begin(connection: Connection) -> None:
    """SaFailedError if the peer is to prove who it is as responders do not."""
    if connection.remote_rounds:
        many = len(connection.all_remote)
        why = f"{many} rounds of remote.auth are for a peer that begins: as responder it would prove it once (RFC 4739)"
    elif connection.remote.method is AuthClass.EAP and connection.local.method is not AuthClass.EAP:
        # RFC 5998 section 3: the responder leaves AUTH out for who begins with EAP itself
        why = "remote.auth = eap makes the peer the user, who has to begin (RFC 7296 section 2.16)"
    else:
        return
    raise SaFailedError(Failure(Cause.REFUSED, why))


def announce_rounds(sa: IkeSa) -> list[Payload]:
    """N(MULTIPLE_AUTH_SUPPORTED) if we need it. SaFailedError if the peer does not have it."""
    if not sa.connection.local_rounds:
        return []
    if sa.init is None or not sa.init.multiple:
        why = "there are several rounds of local.auth, and the peer takes one (RFC 4739)"
        raise SaFailedError(Failure(Cause.REFUSED, why))
    return [NotifyPayload(NotifyType.MULTIPLE_AUTH_SUPPORTED)]


def another_follows(sa: IkeSa) -> list[Payload]:
    """N(ANOTHER_AUTH_FOLLOWS) beside an AUTH of ours that is not the last (RFC 4739 section 2.3)."""
    return [NotifyPayload(NotifyType.ANOTHER_AUTH_FOLLOWS)] if _more(sa) else []


def next_round(sa: IkeSa, payloads: list[Payload]) -> bool:
    """The responder has taken our AUTH: whether we go on to another round. SaFailedError if it goes on alone."""
    assert sa.auth is not None
    if _more(sa):
        sa.auth.round += 1
        return True
    if says_another(payloads):
        # what we have asked for would come with an answer that we do not wait for
        why = "the peer goes on proving who it is (RFC 4739), where we take one proof"
        raise SaFailedError(Failure(Cause.REFUSED, why))
    return False


def _more(sa: IkeSa) -> bool:
    assert sa.auth is not None
    return sa.auth.round < len(sa.connection.local_rounds)


# -- responder


def says_another(payloads: list[Payload]) -> bool:
    """Whether the peer is going to prove once more who it is."""
    return find_notify(payloads, NotifyType.ANOTHER_AUTH_FOLLOWS) is not None


def check_rounds(connection: Connection, done: int, *, another: bool) -> None:
    """OtherMethodError if the initiator, whose AUTH in round ``done`` (0 is the first) is here, is to prove itself more
    often than it does, or does so more often than anybody asks."""
    if another is not (done < len(connection.remote_rounds)):
        does, many = "goes on" if another else "ends", len(connection.all_remote)
        raise OtherMethodError(f"the peer {does} after {done + 1} of {many} authentications")


def log_what_is_left_out(sa: IkeSa) -> None:
    """Say where a responder has shown less than the connection has."""
    many = len(sa.connection.all_local)
    if many > 1:
        log.info("%s: we show the first of %d rounds of local.auth: the others are for who begins (RFC 4739)", sa, many)
