"""What an IKE_SA waits for that is outside of the engine: an event out with a ticket, a command in with the answer.

Meanwhile the IKE_SA takes no message that would go on with the same thing. Answers for IKE_SAs that are gone are of no
use to anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ipsec.crypto.revocation import Crl, OcspResponse
from ipsec.errors import ParseError
from ipsec.ike.config import IkeSettings
from ipsec.ike.eap.relay import EapAnswer, EapAnswerNeededError, EapRelay
from ipsec.ike.errors import SaFailedError
from ipsec.ike.events import EapAnswerNeeded, RevocationNeeded
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.host import Host
from ipsec.ike.registry import Registry, Rng
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.ike.status import StatusUnknownError


class Outside(Registry):
    """Questions and answers."""

    def __init__(self, settings: IkeSettings, host: Host, rng: Rng) -> None:
        """As ``Registry``."""
        super().__init__(settings, host, rng)
        self._statuses: dict[int, tuple[IkeSa, Callable[[float], None], StatusUnknownError]] = {}
        self._relays: dict[int, tuple[Callable[[float], None], EapRelay]] = {}

    def put_off(
        self, sa: IkeSa, why: StatusUnknownError | EapAnswerNeededError, go_on: Callable[[float], None]
    ) -> None:
        """Go on with an authentication when the status of certificates is known, or an EAP server has answered."""
        sa.deferred = go_on
        if isinstance(why, StatusUnknownError):
            ticket = self.next_uid()
            self._statuses[ticket] = sa, go_on, why
            self.emit(RevocationNeeded(ticket, why.sources))
        else:
            self._relays[sa.uid] = go_on, why.server
            self.emit(EapAnswerNeeded(sa, why.identity, why.packet))

    def status_known(
        self, ticket: int, now: float, crls: Iterable[Crl] = (), responses: Iterable[OcspResponse] = ()
    ) -> None:
        """What RevocationNeeded asked for is there, as far as it could be had."""
        self.now = now
        waiting = self._statuses.pop(ticket, None)
        if waiting is None:
            return
        sa, go_on, unknown = waiting

        def know(now: float) -> None:
            self.status.add(unknown.sources, crls, responses, self.host.wall())
            go_on(now)

        self._go_on(sa, know, now)

    def eap_answered(self, uid: int, answer: EapAnswer, now: float) -> None:
        """What EapAnswerNeeded asked for is there; ``uid`` is the unique id of its IKE_SA."""
        self.now = now
        go_on, server = self._relays.pop(uid, (None, None))
        sa = self.sas.get(uid)
        if go_on is not None and server is not None and sa is not None:
            server.answer = answer
            self._go_on(sa, go_on, now)

    def forget(self, sa: IkeSa, now: float) -> None:
        """See Registry."""
        self._relays.pop(sa.uid, None)
        super().forget(sa, now)

    def _go_on(self, sa: IkeSa, work: Callable[[float], None], now: float) -> None:
        if sa.state is not IkeState.DESTROYING:
            sa.deferred = None
            self.contained(sa, partial(_resume, sa, work), now)


def _resume(sa: IkeSa, work: Callable[[float], None], now: float) -> None:
    try:
        work(now)
    except ParseError as error:
        why = bounded(f"the answer to IKE_AUTH is malformed: {error}")
        raise SaFailedError(Failure(Cause.MALFORMED, why)) from None
    sa.ask_next(now)
