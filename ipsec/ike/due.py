"""What the timers of IKE_SAs and CHILD_SAs do when they come due."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ipsec.ike import followup
from ipsec.ike.again import only_peer_can
from ipsec.ike.child import superseded
from ipsec.ike.delete import EXPIRED, DeleteChild, DeleteIke, Liveness, is_to_go
from ipsec.ike.events import KEEPALIVE
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.giveway import Confirm
from ipsec.ike.lifetimes import Timer, last_sign
from ipsec.ike.mobike import detection, tell
from ipsec.ike.rekey import RETRY_FAILED_S, closed_by_peer
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.wire.iana import ExchangeType

if TYPE_CHECKING:
    from ipsec.ike.child_sa import ChildSa
    from ipsec.ike.engine import IkeEngine
    from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

NO_ANSWER = Failure(Cause.NO_ANSWER, "no answer", by_peer=True)
_NO_SPI = bytes(8)


def handle(core: IkeEngine, kind: int, sa: IkeSa, child: ChildSa | None, now: float) -> None:
    """A timer of an IKE_SA, or of one of its CHILD_SAs, has come due."""
    if child is not None:
        _handle_child(core, kind, sa, child, now)
        return
    match kind:
        case Timer.RETRANSMIT:
            if not sa.retransmit(now):
                _unanswered(core, sa, now)
        case Timer.HALF_OPEN:
            log.warning("%s: %s has not authenticated itself in time", sa, sa.path.remote)
            known = sa.auth.failure if sa.auth is not None else None
            sa.destroy(known or Failure(Cause.NOT_IN_TIME, "not authenticated in time"), now)
        case Timer.GIVE_UP:
            sa.destroy(sa.unauthenticated_error or NO_ANSWER, now)
        case Timer.DPD:
            _check_liveness(core, sa, now)
        case Timer.KEEPALIVE:
            _keep_alive(core, sa, now)
        case Timer.REKEY:
            core.rekey_ike_sa(sa, now)
        case Timer.REAUTH:
            _reauthenticate(core, sa, now)
        case Timer.OVER:
            _end(core, sa, now)
        case Timer.REPLACED:
            # the peer's successor stays, and the peer does not say so (RFC 7296 section 2.8.2)
            closed_by_peer(sa, now)
            core.lose(sa, "replaced")
            core.terminate_ike(sa, now, "replaced")
        case Timer.TELL:
            tell(sa, now)
        case Timer.GIVE_WAY:
            if sa.established:
                sa.ask(Confirm(), now)
        case Timer.FOLLOWUP:
            followup.expire(sa, now)
        case Timer.RETRY:
            for request in core.retries(sa):
                sa.ask(request, now)


def _handle_child(core: IkeEngine, kind: int, sa: IkeSa, child: ChildSa, now: float) -> None:
    match kind:
        case Timer.CHILD_REKEY:
            core.rekey_child(child, now)
        case Timer.CHILD_LIFE:
            _expire(core, child, now)
        case Timer.CHILD_IDLE:
            _check_idle(core, child, now)
        case Timer.CHILD_GONE:
            core.forget_child(child)
            sa.remove_child(child)


def _unanswered(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """The peer is dead as far as we can tell (RFC 7296 section 2.4)."""
    # RFC 7296 section 2.8.2: it may be that the peer has closed this one after a collision, and its Delete was lost
    closed_by_peer(sa, now)
    if sa.state is IkeState.DELETING or sa.quiet:
        sa.destroy("no answer to our Delete", now)
    elif sa.established:
        core.failed(sa, NO_ANSWER, now)
    elif sa.initiator and sa.state is IkeState.CONNECTING and sa.tries_left != 1:
        core.restart(sa, now)
    else:
        sa.destroy(sa.unauthenticated_error or _silence(sa), now)


def _silence(sa: IkeSa) -> Failure:
    """No answer, and how far it came: on the way to the second port a firewall may be that knows the first one only."""
    if sa.spi_r == _NO_SPI or not sa.initiator:
        return NO_ANSWER
    if sa.auth is not None and sa.auth.heard:
        # RFC 7296 section 2.16 has the peer say so; OpenIKED 7.2 does not
        why = "no answer in the midst of IKE_AUTH: some peers have none for a user or password that is wrong"
        return replace(NO_ANSWER, reason=why)
    port, before = sa.path.remote_port, sa.connection.remote_port
    where = f" on UDP {port}" if port != before else ""
    what = ExchangeType(sa.pending.exchange).name if sa.pending is not None else "IKE_AUTH"
    return replace(NO_ANSWER, reason=f"no answer to {what}{where}, though one came to IKE_SA_INIT on UDP {before}")


def _reauthenticate(core: IkeEngine, sa: IkeSa, now: float) -> None:
    if sa.established:
        # the peer may refuse it or not answer, or nothing may lead there. Once the new one is up this one has no timers
        if not only_peer_can(sa):
            core.timers.set((Timer.REAUTH, sa.uid), now + RETRY_FAILED_S * (1 + core.fraction()))
        core.reauthenticate(sa, now)


def _end(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Who cannot authenticate any more, or have new keys, must not stay."""
    if is_to_go(sa):
        return
    if sa.session_end and now >= sa.session_end:
        core.lose(sa, "the session is over")
        core.terminate_ike(sa, now, "the session is over")
        return
    log.warning("%s: neither rekeyed nor re-authenticated in time", sa)
    core.note(Failure(Cause.EXPIRED, "neither rekeyed nor re-authenticated in time"), sa)
    core.lose(sa, "neither rekeyed nor re-authenticated in time")
    sa.queue.clear()
    sa.ask(DeleteIke("expired", expired=True), now)


def _check_liveness(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Ask only if nothing came for long enough, neither IKE nor ESP (section 2.4)."""
    delay = sa.connection.dpd_delay
    last = last_sign(sa)
    # as the timer was set: a difference may be rounded to just below the delay, and the timer be due again at once
    if now >= last + delay:
        # what is under way is as good a check, but does not show whether a NAT's mapping is another
        asks = sa.pending is None or (sa.maps and not any(isinstance(one, Liveness) for one in sa.queue))
        if asks and sa.established:
            sa.ask(Liveness(detection(sa, sa.path) if sa.mobike and sa.original_initiator else None), now)
        last = now
    core.timers.set((Timer.DPD, sa.uid), last + delay)


def _keep_alive(core: IkeEngine, sa: IkeSa, now: float) -> None:
    interval = core.settings.keep_alive
    if not sa.nat_local:
        return
    last = sa.last_out
    for child in sa.children.values():
        used = core.host.last_traffic(child)
        last = max(last, used) if used is not None else last
    if now >= last + interval:
        core.send(KEEPALIVE, sa.path)
        sa.last_out = last = now
    core.timers.set((Timer.KEEPALIVE, sa.uid), last + interval)


def _expire(core: IkeEngine, child: ChildSa, now: float) -> None:
    if child.serves:
        log.warning("%s: CHILD_SA %s has reached its end without being rekeyed", child.ike, child)
        core.note(Failure(Cause.EXPIRED, "not rekeyed in time", child.name), child.ike)
        # a successor whose Delete for this one never came takes over
        replaced = superseded(child, now)
        if child.state is ChildState.REKEYING:
            child.change(ChildState.REKEYED)
        child.ike.ask(DeleteChild(child, "" if replaced else EXPIRED), now)


def _check_idle(core: IkeEngine, child: ChildSa, now: float) -> None:
    if child.state not in CHILD_UP:
        return
    used = core.host.last_traffic(child)
    last = max(child.installed_at, used if used is not None else 0.0)
    if now >= last + child.config.inactivity:
        log.info("%s: CHILD_SA %s was idle for %d s", child.ike, child, now - last)
        core.terminate_child(child, now, "inactive")
    else:
        core.timers.set((Timer.CHILD_IDLE, child.uid), last + child.config.inactivity)
