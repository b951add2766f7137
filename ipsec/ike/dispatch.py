"""The one place where requests of an IKE_SA are told apart; ``state.ACCEPTED_REQUESTS`` has been heeded."""

from __future__ import annotations

from ipsec.errors import ParseError
from ipsec.ike.create_child import handle_create_child
from ipsec.ike.eap_auth import handle_giving_up, handle_ike_auth
from ipsec.ike.events import Path
from ipsec.ike.find import find
from ipsec.ike.followup import handle_followup
from ipsec.ike.informational import handle_informational
from ipsec.ike.intermediate import handle_intermediate
from ipsec.ike.rekey import handle_rekey
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import ExchangeType, Protocol
from ipsec.wire.payloads import Payload, SaPayload


def handle_request(
    sa: IkeSa, exchange: int, payloads: list[Payload], path: Path, now: float
) -> list[Payload] | None:
    """Our response; None if it is on its way already, or has to wait."""
    match exchange:
        case ExchangeType.IKE_INTERMEDIATE:
            handle_intermediate(sa, payloads, path, now)
            return None
        case ExchangeType.IKE_AUTH:
            return handle_ike_auth(sa, payloads, path, now)
        case ExchangeType.INFORMATIONAL if sa.state is IkeState.CONNECTING:
            handle_giving_up(sa, payloads, path, now)
            return None
        case ExchangeType.INFORMATIONAL:
            return handle_informational(sa, payloads, path, now)
        case ExchangeType.IKE_FOLLOWUP_KE:
            return handle_followup(sa, payloads, path, now)
    offer = find(payloads, SaPayload)
    if offer is None:
        raise ParseError("CREATE_CHILD_SA without SA")
    if any(p.protocol == Protocol.IKE for p in offer.proposals):
        return handle_rekey(sa, payloads, path, now)
    return handle_create_child(sa, payloads, now)
