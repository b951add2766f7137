"""Both ends have begun, and the peer was first: what we still knock for is not needed, or there are two of each.

Only what the peer cannot take to be up is dropped, that is before our IKE_AUTH has gone out: where both ends have sent
it both IKE_SAs stay, since either end could give way for the one that the other gives up. And only when the peer has
shown that it has the one that stays: our answer to it may be lost for good.
"""

from __future__ import annotations

import logging

from ipsec.ike.delete import Liveness
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import ExchangeType
from ipsec.wire.payloads import Payload

log = logging.getLogger(__name__)

#: after our answer, so that the peer has it by the time it is asked
GIVE_WAY_S = 0.1


class Confirm(Liveness):
    """Does the peer have the IKE_SA that stays?"""

    __slots__ = ()

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """Nothing to say; nothing to ask either, if there is nothing to give up any more."""
        return [] if knocks_of(sa) else None

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """It does."""
        super().answered(sa, payloads, now)
        for knock in knocks_of(sa):
            log.info("%s: not needed any more, %s is up", knock, sa)
            knock.quiet = True
            knock.destroy("the peer was first", now)


def knocks_of(sa: IkeSa) -> list[IkeSa]:
    """What we have begun with the peer of ``sa`` for children that are up in it, and that has no IKE_AUTH yet."""
    up = {child.name for child in sa.children_up()}
    return [other for other in sa.core.initiating.values() if _is_knock(other, sa, up)]


def _is_knock(other: IkeSa, sa: IkeSa, up: set[str]) -> bool:
    if other.name != sa.name or other.auth is None or other.replaces:
        return False
    asking = other.pending is not None and other.pending.exchange == ExchangeType.IKE_SA_INIT
    wanted = {config.name for config, _ in other.auth.configs}
    # a connection may be for several peers
    same = other.path.remote == sa.path.remote or sa.connection.remote.id.exact == sa.peer_id
    return asking and same and bool(wanted) and wanted <= up and other.connection.is_alike(sa.connection)
