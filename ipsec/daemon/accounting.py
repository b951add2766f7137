"""Accounting by RADIUS: a record when the first CHILD_SA of a user is up, from time to time, and when he is gone.

Users are those whom a RADIUS server has let in. That a server does not answer is no reason to close anything: what is
missing is in the next record, and the last one is tried again for a few minutes.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from ipsec.config.settings import RadiusSettings
from ipsec.daemon.children import Children
from ipsec.daemon.radius_client import RadiusClient
from ipsec.daemon.traffic import Account
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import ChildUp, Event, IkeDown, IkeRekeyed
from ipsec.ike.failure import Cause
from ipsec.ike.radius.accounting import (
    INTERIM_MIN_S,
    AccountingExchange,
    Attributes,
    Session,
    Status,
    Usage,
    record,
    terminate_cause,
)
from ipsec.ike.radius.exchange import Caller
from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

#: a last record that no server has taken is tried again after this, so often
AGAIN_S = 60.0
TRIES = 5
#: records that may wait for that
WAITING_MAX = 1000
#: for servers to take the last records when the daemon ends
STOP_S = 3.0


class _Metered:
    """A session of ours."""

    def __init__(self, sa: IkeSa, number: str, meter: tuple[Account, Account], begun: float) -> None:
        self.sa = sa
        "which stands for it now"
        self.number = number
        self.meter = meter
        self.begun = begun
        self.addresses = tuple(address for _, address in sa.leases)
        "virtual ones of the user, which the IKE_SA has no more when it is gone"
        self.busy = False
        "a record is under way"
        self.next: tuple[Status, Attributes] | None = None
        "what is to be sent after that"
        self.timer: asyncio.TimerHandle | None = None


class Accounting:
    """All sessions. Everything belongs to the event loop's thread."""

    def __init__(
        self, client: RadiusClient, settings: RadiusSettings, engine: IkeEngine, children: Children, prefix: str
    ) -> None:
        """``prefix`` makes Acct-Session-Id unlike those of the daemon's runs before."""
        self._client = client
        self._interval = settings.accounting_interval
        self._engine = engine
        self._children = children
        self._prefix = prefix
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[int, _Metered] = {}
        "by meter, see ``Children.begin_meter``"
        self._tickets = 0
        self._waiting = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self.stopping = False
        "what ends now ends because the daemon does"

    def handle(self, event: Event) -> None:
        """Begin, follow or end a session, if the event is about that."""
        match event:
            case ChildUp():
                sa = event.child.ike
                if sa.granted is not None and id(sa.lineage) not in self._sessions:
                    self._begin(sa)
            case IkeRekeyed():
                session = self._sessions.get(id(event.new.lineage))
                if session is not None:
                    session.sa = event.new
            case IkeDown():
                session = self._sessions.get(id(event.sa.lineage))
                if session is not None and session.sa is event.sa:
                    self._end(session, event.cause)

    def _begin(self, sa: IkeSa) -> None:
        meter = self._children.begin_meter(sa)
        session = _Metered(sa, f"{self._prefix}-{sa.uid}", meter, self._loop.time())
        self._sessions[id(sa.lineage)] = session
        self._say(session, Status.START, self._record(session, Status.START))
        self._arm(session)

    def _arm(self, session: _Metered) -> None:
        asked = session.sa.granted.interim_interval if session.sa.granted is not None else None
        interval = max(asked, INTERIM_MIN_S) if asked else self._interval
        if interval:
            session.timer = self._loop.call_later(interval, self._interim, session)

    def _interim(self, session: _Metered) -> None:
        for child in list(session.sa.children.values()):
            self._children.look(child.uid)
        self._say(session, Status.INTERIM, self._record(session, Status.INTERIM))
        self._arm(session)

    def _end(self, session: _Metered, cause: Cause | None) -> None:
        sa = session.sa
        del self._sessions[id(sa.lineage)]
        self._children.end_meter(sa)
        if session.timer is not None:
            session.timer.cancel()
        self._say(session, Status.STOP, self._record(session, Status.STOP, cause))

    def _record(self, session: _Metered, status: Status, cause: Cause | None = None) -> Attributes:
        sa, path, (inbound, outbound) = session.sa, session.sa.path, session.meter
        granted = sa.granted
        assert granted is not None
        told = Session(
            session.number,
            granted.user_name or granted.asked,
            Caller(path.remote, path.remote_port, path.local, path.local_port, sa.name),
            session.addresses,
            granted.classes,
        )
        now, wall = self._loop.time(), int(self._engine.host.wall().timestamp())
        if status is Status.START:
            return record(told, status, wall)
        usage = Usage(inbound.bytes, inbound.packets, outbound.bytes, outbound.packets)
        ended = None
        if status is Status.STOP:
            over = bool(sa.session_end) and now >= sa.session_end
            ended = terminate_cause(cause, over=over, stopping=self.stopping)
        return record(told, status, wall, usage, int(now - session.begun), ended)

    # -- one record after the other

    def _say(self, session: _Metered, status: Status, attributes: Attributes) -> None:
        """What comes while another one is under way takes the place of what waits: it says all of that and more."""
        if session.busy:
            session.next = status, attributes
            return
        session.busy = True
        self._send(session, status, attributes, 1)

    def _send(self, session: _Metered, status: Status, attributes: Attributes, tries: int) -> None:
        self._tickets += 1
        self._under_way += 1
        done = partial(self._done, session, status, attributes, tries)
        self._client.begin(self._tickets, AccountingExchange(attributes), done)

    def _done(
        self, session: _Metered, status: Status, attributes: Attributes, tries: int, answer: EapAnswer
    ) -> None:
        self._under_way -= 1
        if not answer.accepted:
            log.warning("%s: accounting (%s) of session %s: %s", session.sa, status.name, session.number, answer.reason)
        session.busy = False
        following, session.next = session.next, None
        if following is not None:
            self._say(session, *following)
        elif status is Status.STOP and not answer.accepted and tries < TRIES and self._waiting < WAITING_MAX:
            self._waiting += 1
            self._loop.call_later(AGAIN_S, self._again, session, attributes, tries + 1)
        if not self._under_way:
            self._idle.set()

    def _again(self, session: _Metered, attributes: Attributes, tries: int) -> None:
        self._waiting -= 1
        if not self.stopping:
            self._send(session, Status.STOP, attributes, tries)

    async def drain(self) -> None:
        """The daemon ends, and so have all IKE_SAs: give servers a moment to take the last records."""
        if self._under_way:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), STOP_S)
            except TimeoutError:
                log.warning("%d last records of accounting were not taken", self._under_way)
