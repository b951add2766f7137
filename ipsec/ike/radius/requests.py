"""Requests under way, sans-IO: which server is asked, when again, and whose turn it is after it.

``ask``, ``receive`` and ``handle_timer`` go in; ``datagrams_to_send``, ``next_answer`` and ``next_timer`` say what is
to be done after each. A request that is sent again is the same octets, so that the server knows it (RFC 2865
section 2.5).
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from ipsec.errors import ParseError
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.radius.exchange import Caller, RadiusError, RadiusExchange, rejected
from ipsec.ike.radius.server import RadiusServer
from ipsec.wire.radius import AUTHENTICATOR_LEN, HEADER_LEN, RadiusPacket

log = logging.getLogger(__name__)

#: seconds that a server which has not answered is asked after all others; then one peer at a time finds out
DEAD_S = 60.0
#: seconds after which a conversation is forgotten whose peer says nothing
IDLE_S = 120.0
#: identifiers of one socket (RFC 2865 section 3)
IDENTIFIERS = 256
#: packets of peers that wait for an identifier of one server
WAITING_MAX = 1024
_AUTHENTICATOR = slice(HEADER_LEN - AUTHENTICATOR_LEN, HEADER_LEN)
#: what is counted of each server
COUNTED = ("requests", "retransmissions", "challenges", "accepts", "rejects", "timeouts", "refused", "busy",
           "malformed", "unauthentic", "unexpected")  # fmt: skip


class Exchange(Protocol):
    """What is said to a server, and what its answers mean: ``RadiusExchange``, ``AccountingExchange``."""

    bound: bool
    "a server has answered so that no other one could go on"

    def request(self, server: RadiusServer, identifier: int, authenticator: bytes, eap: bytes) -> bytes:
        """The packet, for 16 random octets and what the peer says; its authenticator may be another. ParseError."""

    def open(self, data: bytes, server: RadiusServer, identifier: int, authenticator: bytes) -> RadiusPacket:
        """The answer to it, if it is one. RadiusError."""

    def take(self, response: RadiusPacket, server: RadiusServer, authenticator: bytes) -> EapAnswer:
        """What that means."""


class Outgoing(NamedTuple):
    """A datagram, and the socket that it is for."""

    server: int
    "its place among the servers"
    socket: int
    data: bytes


class _Conversation:
    """One peer's; ``eap`` is its packet while that waits for an answer."""

    __slots__ = ("eap", "exchange", "request", "server", "ticket", "tried", "used_at")

    def __init__(self, ticket: int, exchange: Exchange) -> None:
        self.ticket = ticket
        self.exchange = exchange
        self.eap: bytes | None = None
        self.request: _Request | None = None
        "None also while it waits for an identifier"
        self.server: _Server | None = None
        "who is asked, or was last"
        self.tried: set[int] = set()
        "servers that have not answered to this packet"
        self.used_at = 0.0


class _Request:
    """An identifier in use."""

    __slots__ = ("authenticator", "conversation", "data", "due", "identifier", "sent", "socket")

    def __init__(self, conversation: _Conversation, socket: int, identifier: int, authenticator: bytes) -> None:
        self.conversation = conversation
        self.socket = socket
        self.identifier = identifier
        self.authenticator = authenticator
        self.data = b""
        self.sent = 1
        self.due = 0.0


class _Server:
    """A server, and what it is asked on each socket by identifier."""

    def __init__(self, index: int, config: RadiusServer) -> None:
        self.index = index
        self.config = config
        self.dead_until = 0.0
        self.silent_since: float | None = None
        self.tried_until = 0.0
        "after it was silent it is asked for one peer, whose answer, or the want of it, the others do not wait for"
        self.doubted = False
        "something was dropped since it has answered last, which was logged"
        self.sockets: list[dict[int, _Request]] = [{} for _ in range(config.sockets)]
        self.waiting: deque[_Conversation] = deque()
        self._after = [0] * config.sockets

    def free(self) -> tuple[int, int] | None:
        """Socket and identifier for one more request: of the socket with the fewest, the one used longest ago."""
        socket = min(range(len(self.sockets)), key=lambda one: len(self.sockets[one]))
        used = self.sockets[socket]
        if len(used) == IDENTIFIERS:
            return None
        while self._after[socket] in used:
            self._after[socket] = (self._after[socket] + 1) % IDENTIFIERS
        identifier = self._after[socket]
        self._after[socket] = (identifier + 1) % IDENTIFIERS
        return socket, identifier


class RadiusRequests:
    """All conversations with all servers."""

    def __init__(self, servers: Sequence[RadiusServer], rng: Callable[[int], bytes]) -> None:
        """``rng`` gives that many random octets, good enough for keys."""
        self._servers = [_Server(index, config) for index, config in enumerate(servers)]
        self._order = sorted(self._servers, key=lambda one: -one.config.preference)
        self._rng = rng
        self._conversations: dict[int, _Conversation] = {}
        "by ticket, those used longest ago first"
        self._timers: list[tuple[float, int, _Request]] = []
        self._numbers = count()
        self._outgoing: list[Outgoing] = []
        self._answers: deque[tuple[int, EapAnswer]] = deque()
        self.counters: dict[str, Counter[str]] = {
            one.name: Counter(dict.fromkeys(COUNTED, 0)) for one in servers
        }
        "by name of the server, what is in COUNTED"

    @property
    def servers(self) -> list[RadiusServer]:
        """As they are numbered here."""
        return [one.config for one in self._servers]

    @property
    def silent(self) -> dict[str, float]:
        """Since when servers have not answered, those that have not when they were asked last."""
        return {one.config.name: one.silent_since for one in self._servers if one.silent_since is not None}

    def ask(self, ticket: int, identity: bytes, packet: bytes, caller: Caller, now: float) -> None:
        """Hand on a packet of the peer's; the answer comes under the same ticket.

        The first one with a ticket begins a conversation, in which ``identity`` and ``caller`` count. ValueError if the
        packet before has no answer yet.
        """
        self._forget_idle(now)
        conversation = self._conversations.pop(ticket, None) or _Conversation(ticket, RadiusExchange(identity, caller))
        self._go_on(conversation, packet, now)

    def begin(self, ticket: int, exchange: Exchange, now: float) -> None:
        """Say something that is no packet of a peer's; the answer comes under ``ticket``, which is no other one's."""
        self._go_on(_Conversation(ticket, exchange), b"", now)

    def _go_on(self, conversation: _Conversation, packet: bytes, now: float) -> None:
        ticket = conversation.ticket
        self._conversations[ticket] = conversation
        if conversation.eap is not None:
            raise ValueError(f"ticket {ticket} waits for an answer")
        conversation.eap = packet
        conversation.tried.clear()
        conversation.used_at = now
        self._try(conversation, now)

    def forget(self, ticket: int, now: float) -> None:
        """There will be no use for an answer; safe for any ticket."""
        if any(one == ticket for one, _ in self._answers):
            self._answers = deque(found for found in self._answers if found[0] != ticket)
        conversation = self._conversations.pop(ticket, None)
        if conversation is not None:
            conversation.eap = None
            self._release(conversation, now)

    def receive(self, server: int, socket: int, data: bytes, now: float) -> None:
        """A datagram of a server's on a socket. What is no answer is counted, and the request goes on."""
        asked = self._servers[server]
        request = asked.sockets[socket].get(data[1]) if len(data) > 1 else None
        counters = self.counters[asked.config.name]
        if request is None:
            # of a request that was sent again both may be answered
            counters["unexpected"] += 1
            return
        try:
            response = request.conversation.exchange.open(
                data, asked.config, request.identifier, request.authenticator
            )
        except RadiusError as error:
            counters[error.reason] += 1
            # somebody may send any number of them
            log.log(logging.DEBUG if asked.doubted else logging.WARNING, "%s: dropped, %s", asked.config, error)
            asked.doubted = True
            return
        asked.dead_until, asked.tried_until, asked.silent_since, asked.doubted = 0.0, 0.0, None, False
        conversation = request.conversation
        answer = conversation.exchange.take(response, asked.config, request.authenticator)
        counters[{None: "challenges", True: "accepts", False: "rejects"}[answer.accepted]] += 1
        self._answer(conversation, answer, now)

    def refused(self, server: int, socket: int, now: float) -> None:
        """Nobody listens there, says the network, which may be wrong: others are asked at once if there are any."""
        asked = self._servers[server]
        self.counters[asked.config.name]["refused"] += 1
        for request in list(asked.sockets[socket].values()):
            conversation = request.conversation
            if not conversation.exchange.bound and len(conversation.tried) + 1 < len(self._servers):
                self._silent(asked, request, now)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= now:
            due, _, request = heapq.heappop(self._timers)
            server = request.conversation.server
            if server is None or request.conversation.request is not request or request.due != due:
                continue
            if request.sent > server.config.retransmit_tries:
                self._silent(server, request, now)
                continue
            self.counters[server.config.name]["retransmissions"] += 1
            request.sent += 1
            self._send(server, request, now)

    def next_timer(self) -> float | None:
        """When ``handle_timer`` has something to do; None: not as it stands."""
        return self._timers[0][0] if self._timers else None

    def datagrams_to_send(self) -> list[Outgoing]:
        """All that have come up since the last call."""
        found, self._outgoing = self._outgoing, []
        return found

    def next_answer(self) -> tuple[int, EapAnswer] | None:
        """Ticket and answer, None if there is no more."""
        return self._answers.popleft() if self._answers else None

    def _try(self, conversation: _Conversation, now: float) -> None:
        """Ask the next server there is, or give up."""
        if conversation.exchange.bound:
            choice = [conversation.server] if conversation.server and not conversation.tried else []
        else:
            choice = [one for one in self._order if one.index not in conversation.tried]
            choice.sort(key=lambda one: max(one.dead_until, one.tried_until) > now)
        if not choice:
            why = "no RADIUS server answers" if self._servers else "there is no RADIUS server"
            self._answer(conversation, rejected(why, silent=bool(self._servers)), now)
            return
        server = conversation.server = choice[0]
        if 0 < server.dead_until <= now:
            server.tried_until = now + DEAD_S
        if len(server.waiting) >= WAITING_MAX:
            self.counters[server.config.name]["busy"] += 1
            why = f"{server.config} has too much to do"
            self._answer(conversation, rejected(why), now)
            return
        server.waiting.append(conversation)
        self._serve(server, now)

    def _serve(self, server: _Server, now: float) -> None:
        """Send what waits for an identifier, as far as there are any."""
        while server.waiting:
            conversation = server.waiting[0]
            # those that were forgotten meanwhile
            if conversation.eap is None or conversation.server is not server or conversation.request is not None:
                server.waiting.popleft()
                continue
            place = server.free()
            if place is None:
                return
            server.waiting.popleft()
            request = _Request(conversation, *place, self._rng(AUTHENTICATOR_LEN))
            try:
                request.data = conversation.exchange.request(
                    server.config, request.identifier, request.authenticator, conversation.eap
                )
            except ParseError as error:
                self._answer(conversation, rejected(str(error)), now)
                continue
            request.authenticator = request.data[_AUTHENTICATOR]
            conversation.request = request
            server.sockets[request.socket][request.identifier] = request
            self.counters[server.config.name]["requests"] += 1
            self._send(server, request, now)

    def _send(self, server: _Server, request: _Request, now: float) -> None:
        request.due = now + server.config.wait_s(request.sent)
        heapq.heappush(self._timers, (request.due, next(self._numbers), request))
        self._outgoing.append(Outgoing(server.index, request.socket, request.data))

    def _silent(self, server: _Server, request: _Request, now: float) -> None:
        """A server has not answered: another one is asked."""
        if server.dead_until <= now:
            log.warning("%s does not answer; for %d s it is asked last", server.config, DEAD_S)
        server.dead_until = now + DEAD_S
        if server.silent_since is None:
            server.silent_since = now
        self.counters[server.config.name]["timeouts"] += 1
        conversation = request.conversation
        conversation.tried.add(server.index)
        self._release(conversation, now)
        self._try(conversation, now)

    def _answer(self, conversation: _Conversation, answer: EapAnswer, now: float) -> None:
        conversation.eap = None
        if answer.accepted is not None:
            self._conversations.pop(conversation.ticket, None)
        self._answers.append((conversation.ticket, answer))
        self._release(conversation, now)

    def _release(self, conversation: _Conversation, now: float) -> None:
        """Give the identifier to who waits for one."""
        request, conversation.request = conversation.request, None
        if request is not None and conversation.server is not None:
            del conversation.server.sockets[request.socket][request.identifier]
            self._serve(conversation.server, now)

    def _forget_idle(self, now: float) -> None:
        """What no peer goes on with and nobody has told us to forget."""
        while self._conversations:
            oldest = next(iter(self._conversations.values()))
            if oldest.eap is not None or now - oldest.used_at < IDLE_S:
                return
            del self._conversations[oldest.ticket]
