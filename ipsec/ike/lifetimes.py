"""All timers of IKE_SAs and CHILD_SAs: what they are for and when they are set. ``due`` says what they do."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ipsec.ike.state import IkeState

if TYPE_CHECKING:
    from ipsec.ike.child_sa import ChildSa
    from ipsec.ike.engine import IkeEngine
    from ipsec.ike.sa import IkeSa

#: an IKE_SA that was replaced and is never deleted by the peer that should
REPLACED_S = 60.0
#: what re-authentication replaces is closed after this, when further CHILD_SAs of the new IKE_SA are up as well
REAUTHENTICATED_S = 2.0
#: what a peer seems to re-authenticate is its to close; if it does not, it is closed after this (unique = replace)
REAUTHENTICATING_S = 10.0
#: who was the responder re-authenticates this much later: if both ends do it at once, both new IKE_SAs stay
RESPONDER_LATER_S = 5.0
#: rekeying needs a while, also where a short interval makes over_time next to nothing
OVER_MIN_S = 10.0
#: changes of our addresses are told to peers after this, and somewhat later to some: they come and go together, and
#: peers may be many
TELL_AFTER_S = 2.0
TELL_WITHIN_S = 8.0


class Timer(IntEnum):
    """Kinds of timers; the key of one is (kind, unique id of its SA)."""

    RETRANSMIT = 1
    "send the request under way again (RFC 7296 section 2.1)"
    HALF_OPEN = 2
    "responder: the initiator has not authenticated itself"
    GIVE_UP = 3
    "initiator: after an unauthenticated error nothing better came"
    DPD = 4
    "is the peer alive (section 2.4)?"
    KEEPALIVE = 5
    "keep the NAT's mapping (RFC 3948 section 4)"
    REKEY = 6
    REAUTH = 7
    OVER = 8
    "neither rekeyed nor re-authenticated in time: close"
    REPLACED = 9
    "a successor is in use, and the peer has not deleted this one"
    RETRY = 10
    "ask for a CHILD_SA again"
    TELL = 11
    "our other addresses may have changed (RFC 4555 section 3.6)"
    GIVE_WAY = 12
    "responder: if the peer has this one, what we have begun for the same is not needed"
    FOLLOWUP = 13
    "responder: the initiator has not gone on after CREATE_CHILD_SA (RFC 9370)"
    CHILD_REKEY = 14
    CHILD_LIFE = 15
    "hard lifetime of a CHILD_SA"
    CHILD_IDLE = 16
    "inactivity"
    CHILD_GONE = 17
    "packets that were on their way have come"


IKE_TIMERS = tuple(kind for kind in Timer if kind < Timer.CHILD_REKEY)
CHILD_TIMERS = tuple(kind for kind in Timer if kind >= Timer.CHILD_REKEY)


def last_sign(sa: IkeSa) -> float:
    """When something of the peer last came, IKE or ESP (RFC 7296 section 2.4)."""
    used = [sa.core.host.last_use(child) for child in sa.children.values() if child.has_in]
    return max([sa.last_in, *(when for when in used if when is not None)])


def arm_retransmit(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Exponential back-off, with up to a tenth off so that many do not come at once."""
    pending, settings = sa.pending, core.settings
    if pending is not None:
        wait = settings.retransmit_timeout * settings.retransmit_base ** max(pending.tries, 0)
        if settings.retransmit_limit:
            wait = min(wait, settings.retransmit_limit)
        core.timers.set((Timer.RETRANSMIT, sa.uid), now + wait * (1 - core.fraction() / 10))


def arm_ike(core: IkeEngine, sa: IkeSa, now: float, *, reauth: bool = True) -> None:
    """Start the lifetimes of an IKE_SA. ``reauth`` False: rekeying does not put re-authentication off."""
    connection = sa.connection
    spread = connection.rand_time * core.fraction()
    ends = []
    if connection.rekey_time:
        ends.append(now + connection.rekey_time)
        sa.rekey_at = now + max(connection.rekey_time - spread, 1.0)
        core.timers.set((Timer.REKEY, sa.uid), sa.rekey_at)
    if connection.reauth_time and (reauth or not sa.reauth_at):
        later = 0.0 if sa.original_initiator else RESPONDER_LATER_S
        sa.reauth_at = now + max(connection.reauth_time - spread, 1.0) + later
    due = arm_reauth(core, sa)
    if due:
        # rekeying does not put this off either: who cannot authenticate any more must not stay
        ends.append(due)
    over = [min(ends) + max(connection.over_time, OVER_MIN_S)] if ends else []
    # the peer was told (RFC 4478), and knows to be in time
    over += [sa.session_end] if sa.session_end else []
    if over:
        core.timers.set((Timer.OVER, sa.uid), min(over))
    if connection.dpd_delay:
        core.timers.set((Timer.DPD, sa.uid), now + connection.dpd_delay)
    arm_keepalive(core, sa, now)


def reauth_due(sa: IkeSa) -> float:
    """When it has to be authenticated anew, by the connection or, ``reauth_by``, by what the peer says; 0: never."""
    times = (sa.reauth_at if sa.connection.reauth_time else 0.0, sa.reauth_by)
    return min((when for when in times if when), default=0.0)


def arm_reauth(core: IkeEngine, sa: IkeSa) -> float:
    """Set the timer for that; when it will come due."""
    due = reauth_due(sa)
    if due:
        core.timers.set((Timer.REAUTH, sa.uid), due)
    return due


def arm_keepalive(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Keep the NAT's mapping if we are, or have come to be, behind one (RFC 3948 section 4).

    Once that is over it ends by itself. One that another IKE_SA stands for needs none.
    """
    key = (Timer.KEEPALIVE, sa.uid)
    if sa.nat_local and not sa.quiet and core.settings.keep_alive and key not in core.timers:
        core.timers.set(key, now + core.settings.keep_alive)


def disarm(core: IkeEngine, sa: IkeSa) -> None:
    """No more timers for an IKE_SA, but for the request under way."""
    for kind in IKE_TIMERS:
        if kind is not Timer.RETRANSMIT or sa.state is IkeState.DESTROYING:
            core.timers.cancel((kind, sa.uid))


def arm_tell(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Look soon whether the peer knows our addresses; once for all changes until then."""
    if (Timer.TELL, sa.uid) not in core.timers:
        core.timers.set((Timer.TELL, sa.uid), now + TELL_AFTER_S + TELL_WITHIN_S * core.fraction())


def arm_child(core: IkeEngine, child: ChildSa, now: float) -> None:
    """Start the lifetimes of a CHILD_SA."""
    config = child.config
    core.children[child.uid] = child
    if config.rekey_time:
        child.rekey_at = now + max(config.rekey_time - config.rand_time * core.fraction(), 1.0)
        core.timers.set((Timer.CHILD_REKEY, child.uid), child.rekey_at)
    if config.life_time:
        child.expires_at = now + config.life_time
        core.timers.set((Timer.CHILD_LIFE, child.uid), child.expires_at)
    if config.inactivity:
        core.timers.set((Timer.CHILD_IDLE, child.uid), now + config.inactivity)
