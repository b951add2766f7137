"""AUTH_LIFETIME (RFC 4478): a responder that cannot have the initiator authenticate anew says until when it has to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ipsec.errors import ParseError
from ipsec.ike.again import only_peer_can
from ipsec.ike.find import find_notify
from ipsec.ike.lifetimes import RESPONDER_LATER_S, arm_reauth
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload

log = logging.getLogger(__name__)

_LEN = 4
_MOST_S = (1 << 8 * _LEN) - 1
#: we begin earlier than we have to: by a tenth of the time to twice that, which is no more than this
AHEAD_S = 60.0
#: nor sooner than this: a peer that says 0 would have us do nothing else
LEAST_S = 10.0


def lifetime_payloads(sa: IkeSa, now: float) -> list[Payload]:
    """As responder, in the last response of IKE_AUTH."""
    ends = [sa.session_end] if sa.session_end else []
    if sa.connection.reauth_time and only_peer_can(sa):
        ends.append(sa.reauth_at - RESPONDER_LATER_S)
    if not ends:
        return []
    seconds = min(max(int(min(ends) - now), 1), _MOST_S)
    return [NotifyPayload(NotifyType.AUTH_LIFETIME, seconds.to_bytes(_LEN, "big"))]


def parse_lifetime(payloads: Sequence[Payload]) -> int | None:
    """What a message says of it, in seconds; None: nothing. ParseError."""
    notify = find_notify(payloads, NotifyType.AUTH_LIFETIME)
    if notify is None:
        return None
    if len(notify.data) != _LEN:
        raise ParseError(f"AUTH_LIFETIME of {len(notify.data)} octets")
    return int.from_bytes(notify.data, "big")


def heed_lifetime(sa: IkeSa, seconds: int | None, now: float) -> None:
    """As initiator, whenever the responder says it."""
    if seconds is None or not sa.original_initiator:
        return
    ahead = min(seconds / 10, AHEAD_S / 2) * (1 + sa.core.fraction())
    sa.reauth_by = now + max(seconds - ahead, LEAST_S)
    log.info("%s: the peer wants us to re-authenticate within %d s", sa, seconds)
    arm_reauth(sa.core, sa)
