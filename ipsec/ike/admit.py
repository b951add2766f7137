"""What an initiator gets that has shown in IKE_AUTH who it is: the IKE_SA, addresses, and the first CHILD_SA.

A CHILD_SA that fails leaves the IKE_SA up (RFC 7296 section 1.3).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ipsec.ike import config_payload, grants
from ipsec.ike.auth_lifetime import lifetime_payloads
from ipsec.ike.child import answer, install
from ipsec.ike.config import RADIUS, Childless, Connection, Unique
from ipsec.ike.create_child import log_up
from ipsec.ike.errors import PeerError
from ipsec.ike.events import ChildUp
from ipsec.ike.failure import Cause
from ipsec.ike.find import find, find_config, find_notify
from ipsec.ike.giveway import GIVE_WAY_S, doubt_silent, knocks_of
from ipsec.ike.lifetimes import REAUTHENTICATING_S, Timer, disarm
from ipsec.ike.mobike import mobike_payloads, refuse_nat, take_support
from ipsec.ike.rounds import log_what_is_left_out
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import CfgType, NotifyType
from ipsec.wire.payloads import Payload, SaPayload

if TYPE_CHECKING:
    from ipsec.ike.init import InitProgress

log = logging.getLogger(__name__)


def check_wishes(sa: IkeSa, payloads: list[Payload]) -> None:
    """PeerError if the connection does not allow what the peer asks for besides, or is not there any more: between the
    first request of IKE_AUTH and the last is as much time as EAP takes."""
    if not sa.core.is_loaded(sa.connection):
        why = f"connection {sa.name} was unloaded or changed meanwhile"
        raise PeerError(NotifyType.AUTHENTICATION_FAILED, why, fatal=True, cause=Cause.PEER_ID)
    refuse_nat(sa, payloads)
    _check_childless(sa.connection, find(payloads, SaPayload) is not None)


def admit(sa: IkeSa, own: list[Payload], payloads: list[Payload], now: float) -> list[Payload]:
    """The initiator is authenticated: the last response, with our proof, and what becomes of all that was asked."""
    core = sa.core
    assert sa.peer_id is not None
    check_wishes(sa, payloads)
    log_what_is_left_out(sa)
    wants_child = find(payloads, SaPayload) is not None
    contact = find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None
    _check_unique(sa, contact, now)
    nonces = sa.init
    assert nonces is not None
    reply = list(own)
    no_address: PeerError | None = None
    try:
        reply += _assign(sa, payloads, now)
    except PeerError as error:
        no_address = error
    grants.limit(sa, now)
    core.established(sa, now)
    doubt_silent(sa, now)
    take_support(sa, payloads)
    core.note_token(sa, payloads)
    try:
        if no_address is not None:
            raise no_address
        if wants_child:
            reply += _first_child(sa, nonces, payloads, now)
            if knocks_of(sa):
                core.timers.set((Timer.GIVE_WAY, sa.uid), now + GIVE_WAY_S)
    except PeerError as error:
        if error.fatal:
            raise
        # section 1.3: the IKE_SA stays up without it
        log.warning("%s: no first CHILD_SA: %s", sa, error)
        if error.failure is not None:
            core.note(error.failure, sa)
        reply.append(error.payload())
    reply += lifetime_payloads(sa, now)
    reply += mobike_payloads(sa, payloads)
    reply += core.token_payloads(sa)
    return reply


def _check_childless(connection: Connection, wants_child: bool) -> None:
    """RFC 6023 has no error for that; this is charon's, and both ends drop the IKE_SA with it."""
    if wants_child and connection.childless is Childless.FORCE:
        why = "childless = force, and the peer asks for a CHILD_SA (RFC 6023)"
    elif not wants_child and connection.childless is Childless.NEVER:
        why = "childless = never, and the peer asks for no CHILD_SA"
    else:
        return
    raise PeerError(NotifyType.INVALID_SYNTAX, why, fatal=True, cause=Cause.REFUSED)


def _check_unique(sa: IkeSa, contact: bool, now: float) -> None:
    """What becomes of other IKE_SAs of the same, authenticated, identities (RFC 7296 section 2.4)."""
    core, policy = sa.core, sa.connection.unique
    others = [o for o in core.of_peer(sa.our_id, sa.whose) if o is not sa and o.established]
    if policy is Unique.NEVER or not others:
        return
    if contact:
        # those that came up after this one began are no leftovers: both ends may have begun at once
        for other in [other for other in others if other.established_at < sa.created_at]:
            log.info("%s: INITIAL_CONTACT from %s: %s is no more", sa, sa.whose, other)
            core.lose(other, "INITIAL_CONTACT")
            other.destroy("INITIAL_CONTACT", now)
        return
    # section 2.8.3: from the same place it is re-authentication, by the looks of it, and the peer closes the old one
    # when it has all CHILD_SAs again
    place = sa.path.remote, sa.path.remote_port
    same = [other for other in others if (other.path.remote, other.path.remote_port) == place]
    if policy is Unique.KEEP and len(same) < len(others):
        why = f"{sa.whose} is connected already and unique = keep"
        raise PeerError(NotifyType.AUTHENTICATION_FAILED, why, fatal=True, cause=Cause.UNIQUE)
    if policy is Unique.REPLACE:
        for other in others:
            log.info("%s: replaces %s", sa, other)
            if other not in same:
                core.lose(other, "replaced by a new IKE_SA of the same peer")
                core.terminate_ike(other, now, "replaced by a new IKE_SA of the same peer")
            elif (Timer.REPLACED, other.uid) not in core.timers:
                disarm(core, other)
                core.timers.set((Timer.REPLACED, other.uid), now + REAUTHENTICATING_S)


def _first_child(sa: IkeSa, nonces: InitProgress, payloads: list[Payload], now: float) -> list[Payload]:
    child, out, _, _ = answer(sa, payloads, first=True)
    install(sa, child, nonces.nonce_i, nonces.nonce_r, b"", now, initiator=False)
    log_up(sa, child)
    sa.core.emit(ChildUp(child))
    return out


def _assign(sa: IkeSa, payloads: list[Payload], now: float) -> list[Payload]:
    """Virtual addresses that the peer asks for (RFC 7296 section 2.19)."""
    request = find_config(payloads, CfgType.REQUEST)
    if request is None:
        if sa.connection.pools and find(payloads, SaPayload) is not None:
            why = "the connection has pools, and the peer asks for no virtual address"
            raise PeerError(NotifyType.FAILED_CP_REQUIRED, why)
        return []
    assert sa.whose is not None
    wanted = config_payload.parse_request(request)
    pools = [name for name in sa.connection.pools if name in sa.core.pools or name == RADIUS]
    found = grants.assign(sa, wanted.addresses, now)
    if wanted.addresses and not found:
        why = "no virtual address is free" if pools else "the connection has no pools"
        if pools == [RADIUS]:
            why = "the RADIUS server grants no virtual address that can be given"
        raise PeerError(NotifyType.INTERNAL_ADDRESS_FAILURE, why)
    if not pools:
        return []
    sa.leases = found
    if found:
        log.info("%s: %s gets %s", sa, sa.whose, ", ".join(str(address) for _, address in found))
    return [config_payload.build_reply(request, found, grants.attributes(sa) if found else ())]
