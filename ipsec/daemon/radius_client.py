"""RADIUS on the event loop: sockets and a timer for ``ipsec.ike.radius.requests``.

Each socket is connected to its server, so that the kernel drops what others send.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.radius.exchange import Caller
from ipsec.ike.radius.requests import Exchange, RadiusRequests
from ipsec.ike.radius.server import RadiusServer
from ipsec.net import readable, udp
from ipsec.wire.radius import PACKET_MAX

log = logging.getLogger(__name__)

#: room for answers to all requests that a socket can have under way
BUFFER_BYTES = 1 << 20
#: datagrams taken from a socket before others have their turn
AT_ONCE = 64

IpAddress = IPv4Address | IPv6Address
Done = Callable[[EapAnswer], None]


class RadiusClient:
    """Asks RADIUS servers about peers that use EAP, from the first ``ask`` to ``close``.

    All in the event loop's thread.
    """

    def __init__(
        self, servers: Sequence[RadiusServer], resolved: Callable[[str], Sequence[IpAddress]] = lambda name: ()
    ) -> None:
        """``resolved`` gives the addresses of a name as far as they are known, at once; see ``names``."""
        self._requests = RadiusRequests(servers, secrets.token_bytes)
        self._servers = self._requests.servers
        self._resolved = resolved
        self._sockets: dict[tuple[int, int], tuple[socket.socket, IpAddress]] = {}
        "by server and number, each with the address that it is connected to"
        self._failed: dict[int, str] = {}
        "why a server could last not be sent to, so that it is logged once"
        self._done: dict[int, Done] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._delivery: asyncio.Handle | None = None

    @property
    def names(self) -> list[str]:
        """Those of the servers that ``resolved`` will be asked for: who knows addresses keeps these up to date."""
        return [one.address for one in self._servers if _literal(one.address) is None]

    @property
    def counters(self) -> dict[str, Counter[str]]:
        """By name of the server, what is in ``requests.COUNTED``."""
        return self._requests.counters

    @property
    def silent(self) -> dict[str, float]:
        """Seconds for which servers have not answered, those that have not when they were asked last."""
        now = self._now()
        return {name: now - since for name, since in self._requests.silent.items()}

    def ask(self, ticket: int, identity: bytes, packet: bytes, caller: Caller, done: Done) -> None:
        """Hand on an EAP packet of the peer's. ``done`` is called later, once, never from in here.

        A conversation is what has the same ticket, up to an answer with a verdict, or ``forget``; ``identity`` and
        ``caller`` are those of its beginning. ValueError if the packet before has no answer yet.
        """
        self._requests.ask(ticket, identity, packet, caller, self._now())
        self._done[ticket] = done
        self._act()

    def begin(self, ticket: int, exchange: Exchange, done: Done) -> None:
        """Say something else to the servers, as in ``ask``; ``ticket`` is no other one's."""
        self._requests.begin(ticket, exchange, self._now())
        self._done[ticket] = done
        self._act()

    def forget(self, ticket: int) -> None:
        """There is no use for an answer any more: ``done`` is not called. Safe for any ticket."""
        self._done.pop(ticket, None)
        self._requests.forget(ticket, self._now())
        self._act()

    def close(self) -> None:
        """Close the sockets; no ``done`` is called any more. Safe in any state."""
        self._done.clear()
        for handle in (self._timer, self._delivery):
            if handle is not None:
                handle.cancel()
        self._timer = self._delivery = None
        for place in list(self._sockets):
            self._drop(place)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _act(self) -> None:
        """After each call: send, have the answers delivered, arm the timer."""
        loop = asyncio.get_running_loop()
        # what cannot be sent has another server asked, at most each once
        while outgoing := self._requests.datagrams_to_send():
            for server, number, data in outgoing:
                self._send(server, number, data)
        if self._delivery is None:
            self._delivery = loop.call_soon(self._deliver)
        due = self._requests.next_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self._on_timer) if due is not None else None

    def _on_timer(self) -> None:
        self._timer = None
        self._requests.handle_timer(self._now())
        self._act()

    def _deliver(self) -> None:
        self._delivery = None
        while (found := self._requests.next_answer()) is not None:
            ticket, answer = found
            done = self._done.pop(ticket, None)
            if done is None:
                continue
            try:
                done(answer)
            except Exception as error:
                # others have an answer too
                log.error("this is a bug", exc_info=error)

    def _send(self, server: int, number: int, data: bytes) -> None:
        """What is not sent is as if it were lost: it is sent again."""
        try:
            sock = self._socket(server, number)
            try:
                sock.send(data)
            except ConnectionRefusedError:
                # about what was sent before; now it has been said
                sock.send(data)
        except BlockingIOError:
            return
        except OSError as error:
            why = error.strerror or str(error)
            if self._failed.get(server) != why:
                log.warning("cannot send to %s: %s", self._servers[server], why)
            self._failed[server] = why
            self._requests.refused(server, number, self._now())
            return
        self._failed.pop(server, None)

    def _socket(self, server: int, number: int) -> socket.socket:
        """The socket, opened if need be, also anew where the server is elsewhere now. OSError."""
        place, config = (server, number), self._servers[server]
        literal = _literal(config.address)
        addresses = self._resolved(config.address) if literal is None else (literal,)
        if place in self._sockets:
            sock, address = self._sockets[place]
            if address in addresses or not addresses:
                return sock
            self._drop(place)
        if not addresses:
            raise OSError("no address is known of that name")
        sock = _connected(addresses[0], config.auth_port)
        self._sockets[place] = sock, addresses[0]
        readable.watch(sock.fileno(), partial(self._on_readable, server, number))
        return sock

    def _drop(self, place: tuple[int, int]) -> None:
        sock, _ = self._sockets.pop(place)
        readable.unwatch(sock.fileno())
        sock.close()

    def _on_readable(self, server: int, number: int) -> None:
        now = self._now()
        sock, _ = self._sockets[server, number]
        for _ in range(AT_ONCE):
            try:
                data = sock.recv(PACKET_MAX)
            except OSError as error:
                # of the network, about what was sent; ``send`` may have heard of it first
                if isinstance(error, ConnectionRefusedError):
                    self._requests.refused(server, number, now)
                break
            self._requests.receive(server, number, data, now)
        self._act()


def _literal(text: str) -> IpAddress | None:
    """The address that a text is; None for a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _connected(address: IpAddress, port: int) -> socket.socket:
    """A UDP socket that hears one server alone. OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        udp.set_buffers(sock, BUFFER_BYTES)
        sock.connect((str(address), port))
    except OSError:
        sock.close()
        raise
    return sock
