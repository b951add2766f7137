"""Others whom the engine has to do with: those who know the status of certificates, by HTTP, and RADIUS servers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ipsec.config.settings import RadiusSettings
from ipsec.daemon.accounting import Accounting
from ipsec.daemon.children import Children
from ipsec.daemon.fetch import Fetcher
from ipsec.daemon.radius_client import RadiusClient
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import EapAnswerNeeded, Event, IkeDown, IpAddress, RevocationNeeded
from ipsec.ike.radius.exchange import Caller
from ipsec.ike.radius.server import RadiusServer

Spawn = Callable[[Coroutine[object, object, object]], None]

NO_SERVER = EapAnswer(None, False, reason="remote.auth = eap-radius, and ipsecd.radius.servers has no server")


class RadiusState(NamedTuple):
    """How it is with a RADIUS server."""

    server: RadiusServer
    kind: str
    "auth, who somebody is; acct, accounting"
    silent_s: float | None
    "seconds for which it has not answered; None: it has when it was asked last, or was not asked yet"
    counters: Mapping[str, int]
    "what is in ``ipsec.ike.radius.requests.COUNTED``"


class Outside:
    """Asks, and gives the engine the answers."""

    def __init__(
        self,
        engine: IkeEngine,
        settings: RadiusSettings,
        children: Children,
        resolved: Callable[[str], Sequence[IpAddress]],
        spawn: Spawn,
        turn: Callable[[], None],
    ) -> None:
        """``spawn`` runs what takes time, ``turn`` is to be called after the engine was."""
        self._engine = engine
        self._fetcher = Fetcher()
        self._servers = settings.servers
        self.radius = RadiusClient(settings.servers, resolved)
        self.accounting: Accounting | None = None
        self._records: RadiusClient | None = None
        if settings.accounting and settings.servers:
            there = [replace(one, auth_port=one.acct_port) for one in settings.servers]
            self._records = RadiusClient(there, resolved)
            self.accounting = Accounting(self._records, settings, engine, children, secrets.token_hex(4))
        self._spawn = spawn
        self._turn = turn
        self._loop = asyncio.get_running_loop()

    def handle(self, event: Event) -> None:
        """Ask, if the event is about that, or tell."""
        if self.accounting is not None:
            self.accounting.handle(event)
        match event:
            case RevocationNeeded():
                self._spawn(self._fetch(event))
            case EapAnswerNeeded():
                self._ask(event)
            case IkeDown():
                self.radius.forget(event.sa.uid)

    @property
    def radius_states(self) -> list[RadiusState]:
        """How it is with each server, in the order of the configuration."""
        silent, counters = self.radius.silent, self.radius.counters
        found = [RadiusState(one, "auth", silent.get(one.name), counters[one.name]) for one in self._servers]
        if self._records is not None:
            silent, counters = self._records.silent, self._records.counters
            found += [RadiusState(one, "acct", silent.get(one.name), counters[one.name]) for one in self._servers]
        return found

    async def close_all(self, close: Coroutine[object, object, None]) -> None:
        """The daemon ends; ``close`` does that to all IKE_SAs, of which servers hear before it is over."""
        if self.accounting is not None:
            self.accounting.stopping = True
        await close
        if self.accounting is not None:
            await self.accounting.drain()

    def close(self) -> None:
        """No more answers."""
        self.radius.close()
        if self._records is not None:
            self._records.close()

    async def _fetch(self, event: RevocationNeeded) -> None:
        crls, responses = await self._fetcher.fetch(event.sources, self._engine.host.wall())
        self._engine.status_known(event.ticket, self._loop.time(), crls, responses)
        self._turn()

    def _ask(self, event: EapAnswerNeeded) -> None:
        uid, path = event.sa.uid, event.sa.path

        def done(answer: EapAnswer) -> None:
            self._engine.eap_answered(uid, answer, self._loop.time())
            self._turn()

        if not self._servers:
            self._loop.call_soon(done, NO_SERVER)
            return
        caller = Caller(path.remote, path.remote_port, path.local, path.local_port, event.sa.name)
        self.radius.ask(uid, event.identity, event.packet, caller, done)
