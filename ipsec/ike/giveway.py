"""Both ends have begun: what we still knock for is not needed, or there are two of each.

Before our IKE_AUTH has gone out the peer cannot take ours to be up: it is dropped for one of the peer's that has the
same children. And only when the peer has shown that it has the one that stays: our answer to it may be lost for good.

Where both IKE_AUTHs have crossed both IKE_SAs are up, and one of them can go only if both ends mean the same one, which
no RFC has a rule for. With ``unique = replace`` or ``keep`` it is the one with the lowest of the four SPIs, as RFC 7296
section 2.8.1 has it for nonces. Who knows that they have crossed names it through the other one, and closes it if the
peer agrees. What is said is a Vendor ID payload, which whoever does not know it ignores (RFC 7296 section 3.12): with a
peer that is not ours both stay, as it may want to have back what we close (charon's ``close_action``), and so for ever.

Such a peer takes INITIAL_CONTACT, which one of the two may have carried, for the end of the other one, though that has
come up meanwhile. It is asked whether it has that still, and sent nothing through it where the new one does as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ipsec.ike.child import stop_sending
from ipsec.ike.config import Unique
from ipsec.ike.delete import Liveness, is_to_go
from ipsec.ike.events import ChildDown
from ipsec.ike.lifetimes import REAUTHENTICATED_S, Timer, last_sign
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from ipsec.wire.iana import ExchangeType
from ipsec.wire.payloads import Payload, VendorPayload

log = logging.getLogger(__name__)

#: after our answer, so that the peer has it by the time it is asked
GIVE_WAY_S = 0.1
#: an IKE_SA that does not have by then what the one with which it has crossed has is another thing
CROSSED_S = 60.0
#: an IKE_SA is in use if something has come within that time; nobody is back from a crash sooner
SILENT_S = 0.3
#: begins the Vendor ID that says that an IKE_SA is redundant; its SPIs follow. Random octets
REDUNDANT = bytes.fromhex("41c11aaf0b3d549681dafa983ed34ab2")


class Confirm(Liveness):
    """Does the peer have the IKE_SA that stays?"""

    __slots__ = ("crossed",)

    def __init__(self) -> None:
        super().__init__()
        self.crossed: IkeSa | None = None

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """V(REDUNDANT), or nothing to say; nothing to ask either, if there is nothing to give up any more."""
        found = _redundant(sa)
        self.crossed = found if found is not None and _at_once(sa, found) else None
        if self.crossed is not None:
            return [VendorPayload(REDUNDANT + _spis(self.crossed))]
        _look_again(sa, now)
        return [] if knocks_of(sa) else None

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """It does."""
        super().answered(sa, payloads, now)
        for knock in knocks_of(sa):
            log.info("%s: not needed any more, %s is up", knock, sa)
            knock.quiet = True
            knock.destroy("the peer was first", now)
        if self.crossed is None:
            return
        named = [p.data for p in payloads if isinstance(p, VendorPayload)]
        if REDUNDANT + _spis(self.crossed) in named and self.crossed is _redundant(sa):
            give_up(self.crossed, sa, now, "begun by both ends")
        else:
            _look_again(sa, now)


def knocks_of(sa: IkeSa) -> list[IkeSa]:
    """What we have begun with the peer of ``sa`` for children that are up in it, and that has no IKE_AUTH yet."""
    up = {child.name for child in sa.children_up()}
    return [other for other in sa.core.initiating.values() if _is_knock(other, sa, up)]


def _is_knock(other: IkeSa, sa: IkeSa, up: set[str]) -> bool:
    if other.name != sa.name or other.auth is None or other.replaces:
        return False
    asking = other.pending is not None and other.pending.exchange != ExchangeType.IKE_AUTH
    wanted = {config.name for config, _ in other.auth.configs}
    # a connection may be for several peers
    same = other.path.remote == sa.path.remote or sa.connection.remote.id.exact == sa.peer_id
    return asking and same and bool(wanted) and wanted <= up and other.connection.is_alike(sa.connection)


# -- both are up


class StillThere(Liveness):
    """Does the peer have this one, in spite of another one?"""

    __slots__ = ()

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """It does."""
        sa.doubted = False
        super().answered(sa, payloads, now)


def doubt(sa: IkeSa, now: float) -> None:
    """The peer has taken our INITIAL_CONTACT: what came up since that went out may be gone there, without a word
    (RFC 7296 section 2.4)."""
    for other in sa.core.of_peer(sa.our_id, sa.whose):
        if other is not sa and other.established:
            _doubt(other, now)


def doubt_silent(sa: IkeSa, now: float) -> None:
    """A peer begins with us that has an IKE_SA already, and does not say INITIAL_CONTACT: OpenIKED 7.2 never does, also
    after a crash. What was in use until now it still has; what was silent may be gone, and is asked for."""
    for other in sa.core.of_peer(sa.our_id, sa.whose):
        # one identity may be that of many, who are not to be asked for each that comes
        same = (other.path.remote, other.path.remote_port) == (sa.path.remote, sa.path.remote_port)
        if other is sa or not other.established or not same or _at_once(sa, other):
            continue
        if last_sign(other) < sa.created_at - SILENT_S:
            _doubt(other, now)


def _doubt(sa: IkeSa, now: float) -> None:
    if not sa.quiet:
        sa.doubted = True
        sa.ask(StillThere(), now)


def look(sa: IkeSa, now: float) -> None:
    """An IKE_SA is up. If one that we have begun has crossed with one of the peer's, ask soon which one stays."""
    for other in _rivals(sa):
        if _at_once(sa, other):
            stays, goes = (sa, other) if _loses(other, sa) else (other, sa)
            # further CHILD_SAs come first, and who has begun it may be faster
            wait = REAUTHENTICATED_S if goes.initiator else 2 * REAUTHENTICATED_S
            sa.core.timers.set((Timer.GIVE_WAY, stays.uid), now + wait)


def _look_again(sa: IkeSa, now: float) -> None:
    """CHILD_SAs are still on their way, or one end is just about something else: that may be over later."""
    age = now - sa.handshake[1]
    if age < CROSSED_S and any(_loses(other, sa) for other in _rivals(sa) if _at_once(sa, other)):
        sa.core.timers.set((Timer.GIVE_WAY, sa.uid), now + max(age, REAUTHENTICATED_S))


def rekeyed(new: IkeSa, now: float, *, asks: bool) -> None:
    """A successor is in use. ``asks``: the one before was about to ask. Other SPIs may mean that another one stays."""
    if asks:
        new.core.timers.set((Timer.GIVE_WAY, new.uid), now + REAUTHENTICATED_S)
    for sa in (new, *_rivals(new)):
        _look_again(sa, now)


def agree(sa: IkeSa, vendor: VendorPayload) -> list[Payload]:
    """The peer may want to close an IKE_SA that has crossed with ``sa``: whether nothing is missing here without it.

    It may be that the peer alone knows of the crossing, if what it sent first was lost.
    """
    other = _redundant(sa)
    if other is None or vendor.data != REDUNDANT + _spis(other):
        return []
    log.info("%s: %s has crossed with it, and the peer closes that", sa, other)
    return [vendor]


def stays_for(sa: IkeSa) -> IkeSa | None:
    """The peer closes an IKE_SA: the one against which it has lost, and where nothing of it is missing."""
    return next((other for other in _rivals(sa) if _loses(sa, other) and _covers(other, sa)), None)


def give_up(sa: IkeSa, stays: IkeSa, now: float, why: str) -> None:
    """Close an IKE_SA for whose CHILD_SAs another one has the same."""
    for child in sa.children_up():
        # the peer takes nothing more through it when it has our Delete
        child.change(ChildState.REKEYED)
        sa.core.emit(ChildDown(child, f"{stays} stays"))
        stop_sending(child)
    sa.core.terminate_ike(sa, now, f"{why}, {stays} stays")


def _redundant(sa: IkeSa) -> IkeSa | None:
    """The one that has lost against ``sa``, if nothing of it is missing there and nothing is going on in it."""
    if sa.state is not IkeState.ESTABLISHED or is_to_go(sa):
        return None
    for other in _rivals(sa):
        rests = other.state is IkeState.ESTABLISHED and all(
            one.state is ChildState.INSTALLED and one.peer_rekey is None for one in other.children.values()
        )
        if rests and _is_in_use(other) and _loses(other, sa) and _covers(sa, other):
            return other
    return None


def _covers(sa: IkeSa, other: IkeSa) -> bool:
    """Whether an IKE_SA is in use that has all that another one has."""
    if not _is_in_use(sa) or other.ppk > sa.ppk or other.mobike > sa.mobike:
        return False
    leases, theirs = ({address for _, address in one.leases} for one in (sa, other))
    if not theirs <= leases or not set(other.addresses) <= set(sa.addresses):
        return False
    up, have = (
        {child.name: (set(child.local_ts), set(child.remote_ts)) for child in one.children_up()} for one in (sa, other)
    )
    return have.items() <= up.items() and sa.core.under_way(other) <= up.keys()


def spared_by(sa: IkeSa) -> IkeSa | None:
    """Another IKE_SA with the same peer that has all that ``sa`` has, which is closed instead of being made anew.

    Two that both ends have re-authenticated at once may stay. Each would become two the next time, and so on. With
    ``unique = never`` only one of two that both ends began at once: somebody may want others.
    """
    if not sa.children_up() or not _is_in_use(sa):
        return None
    for other in sa.core.of_peer(sa.our_id, sa.whose):
        alike = other.name == sa.name and other.path == sa.path and other.connection.is_alike(sa.connection)
        if sa.connection.unique is Unique.NEVER:
            alike = alike and other.original_initiator is not sa.original_initiator and _at_once(sa, other)
        # both ends must not close the one that the other end keeps
        if other is not sa and alike and _loses(sa, other) and _covers(other, sa):
            return other
    return None


def _rivals(sa: IkeSa) -> Iterator[IkeSa]:
    """IKE_SAs that the other end of one has begun for the same, where one is enough."""
    if sa.connection.unique in (Unique.REPLACE, Unique.KEEP):
        for other in sa.core.of_peer(sa.our_id, sa.whose):
            same = other.name == sa.name and other.connection.is_alike(sa.connection)
            if same and other.original_initiator is not sa.original_initiator:
                yield other


def _at_once(sa: IkeSa, other: IkeSa) -> bool:
    """Whether each was begun before the other one was there, however often they were rekeyed since."""
    return other.handshake[0] < sa.handshake[1] and sa.handshake[0] < other.handshake[1]


def _is_in_use(sa: IkeSa) -> bool:
    return sa.established and not sa.quiet and (Timer.REPLACED, sa.uid) not in sa.core.timers


def _loses(sa: IkeSa, other: IkeSa) -> bool:
    return min(sa.spi_i, sa.spi_r) < min(other.spi_i, other.spi_r)


def _spis(sa: IkeSa) -> bytes:
    return sa.spi_i + sa.spi_r
