"""Beginning again with a peer: re-authentication, ``close_action``, ``dpd_action``, and where to find it for that.

A connection of a responder need not name anybody (``remote_addrs = %any``, a network). Who has come by it is looked for
where he is, as charon does: not where somebody else is who came by the same connection.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from ipsec.ike import giveway
from ipsec.ike.config import Action, AuthClass, ChildConfig, Connection
from ipsec.ike.delete import is_to_go
from ipsec.ike.events import Initiate, IpAddress, Path, TrapWanted
from ipsec.ike.state import IkeState
from ipsec.ike.table import names_its_peers

if TYPE_CHECKING:
    from ipsec.ike.engine import IkeEngine
    from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

_NAT_T_PORT = 4500


def reauthenticate(core: IkeEngine, sa: IkeSa, now: float) -> None:
    """Make the IKE_SA anew, from IKE_SA_INIT on, and let the old one go when the new one is up."""
    if is_to_go(sa):
        return
    if any(other.replaces == sa.uid and other.state is IkeState.CONNECTING for other in core.named(sa.name)):
        # a second one would bring every CHILD_SA up twice (section 2.8.3)
        log.info("%s: re-authentication is under way already", sa)
        return
    why = only_peer_can(sa)
    if why:
        log.warning("%s: only %s can re-authenticate, since it %s", sa, sa.path.remote, why)
        return
    other = giveway.spared_by(sa)
    if other is not None:
        giveway.give_up(sa, other, now, "not needed anew")
        return
    path = _whereabouts(sa)
    if core.settings.make_before_break:
        core.emit(Initiate(sa.name, None, replaces=sa.uid, path=path))
        return
    names: list[str | None] = [*sorted(core.under_way(sa))]
    for name in names or [None]:
        core.emit(Initiate(sa.name, name, addresses=sa.addresses, path=path))
    core.terminate_ike(sa, now, "re-authenticating")


def hand_on(core: IkeEngine, old: IkeSa, new: IkeSa, names: Collection[str]) -> None:
    """An IKE_SA replaces another one, whose children it is to bring up as far as they have these names: those that are
    up there since, or were asked for, as well."""
    if is_to_go(old):
        return
    for name in sorted(core.under_way(old).difference(names)):
        core.emit(Initiate(new.name, name, path=_whereabouts(new)))


def only_peer_can(sa: IkeSa) -> str:
    """Why an IKE_SA is not for us to make anew, as "it ..."; empty if we can."""
    if sa.leases:
        # it would ask us for them; of us it takes no CHILD_SA for its virtual address (section 2.19)
        return "has virtual addresses of ours"
    remote, rounds = sa.connection.remote, sa.connection.remote_rounds
    if not sa.original_initiator and (rounds or remote.method is AuthClass.EAP):
        # section 2.16: it is the initiator who proves by EAP who he is; and who does so several times (RFC 4739)
        return "authenticates itself " + ("in several rounds" if rounds else "by EAP")
    return ""


def act(
    core: IkeEngine,
    sa: IkeSa,
    config: ChildConfig,
    had: tuple[IpAddress, ...] = (),
    *,
    closed: bool,
    leased: bool,
) -> None:
    """Bring a child of an IKE_SA up again, or let it wait for traffic. ``closed`` by the peer; else it is dead.
    ``leased``: it had virtual addresses of ours."""
    key, action = ("close_action", config.close_action) if closed else ("dpd_action", config.dpd_action)
    if action is Action.NONE and config.start_action is Action.START:
        # it was to be up, and by charon's defaults that was it
        log.warning("%s: %s stays down, since its %s is none", sa, config.name, key)
    if Action.START in action:
        if leased:
            log.info("%s: %s has to come by itself, since it had virtual addresses of ours", sa, sa.path.remote)
        else:
            core.emit(Initiate(sa.name, config.name, addresses=had, path=_whereabouts(sa)))
    if Action.TRAP in action:
        core.emit(TrapWanted(sa.name, config.name))


def _whereabouts(sa: IkeSa) -> Path | None:
    """Where the peer of an IKE_SA is, if its connection does not say so: behind a NAT the port matters too."""
    return None if names_its_peers(sa.connection) else sa.path


def leads_to(sa: IkeSa, path: Path) -> bool:
    """Whether an IKE_SA of a connection is with the peer that somebody looks for at the end of ``path``.

    Where the connection names its peers, that is who it is with, wherever it has moved. Else there may be several
    behind one NAT, each with a port of its own; who has IKE's has both.
    """
    if names_its_peers(sa.connection):
        return True
    ours = (sa.core.settings.port, sa.core.settings.port_nat_t, sa.connection.remote_port, _NAT_T_PORT)
    same_port = sa.path.remote_port == path.remote_port or (sa.path.remote_port in ours and path.remote_port in ours)
    return sa.path.remote == path.remote and same_port


def standing(core: IkeEngine, connection: Connection) -> Path | None:
    """The path of an IKE_SA of a connection that does not name its peers, if there is one that serves it."""
    if not names_its_peers(connection):
        for sa in core.named(connection.name):
            if sa.established and not sa.quiet and sa.connection.is_alike(connection):
                return sa.path
    return None
