"""An asyncio client of vici, for ipsecd and for strongSwan's charon.

    async with await connect() as session:
        async for sa in session.stream("list-sas", "list-sa"):
            ...
        await session.request("initiate", {"child": "net"})

Values in answers are bytes; ``ipsec.vici.codec.text`` makes text of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any

from ipsec.errors import IpsecError, ParseError
from ipsec.vici.codec import Message, Packet, PacketType, emit_packet, parse_length, parse_packet, text

DEFAULT_SOCKET = "/var/run/charon.vici"
#: events that may wait for their reader; the oldest goes first
EVENTS_MAX = 10_000


class ViciError(IpsecError):
    """The daemon cannot be reached, or says that a command failed; ``message`` is its answer."""

    def __init__(self, reason: str, message: Message | None = None) -> None:
        self.message = message or {}
        super().__init__(reason)


class UnknownToDaemon(ViciError):
    """The daemon does not know a command or an event."""


class HungUp(ViciError):
    """The connection has ended."""


async def connect(uri: str = DEFAULT_SOCKET) -> Session:
    """Connect to ``unix:///path``, a plain path, or ``tcp://host:port``. ViciError."""
    try:
        if uri.startswith("tcp://"):
            host, _, port = uri.removeprefix("tcp://").rpartition(":")
            if not (host and port.isascii() and port.isdigit() and int(port[:6]) <= 0xFFFF):
                raise ValueError("not of the form tcp://host:port")
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        else:
            reader, writer = await asyncio.open_unix_connection(uri.removeprefix("unix://"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ViciError(f"cannot connect to {uri}: {why}") from error
    return Session(reader, writer)


class Session:
    """One connection. Commands are answered in the order in which they are asked; events come in between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._events: deque[tuple[str, Message]] = deque(maxlen=EVENTS_MAX)
        self.answer: Message = {}
        "to the command of the last ``stream`` that came to its end"

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def request(self, command: str, message: Mapping[str, Any] | None = None) -> Message:
        """Run a command; its answer. ViciError if the daemon does not know it, or says that it failed."""
        async with self._lock:
            self._send(PacketType.CMD_REQUEST, command, message)
            answer = await self._answer()
        return _checked(command, answer)

    async def stream(
        self, command: str, event: str, message: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Message, None]:
        """Run a command that answers in events; each event's message. ViciError as ``request``, at the end.

        Who stops before the end has hung up: that is how the daemon knows that nobody waits for the command.
        """
        async with self._lock:
            await self._register(PacketType.EVENT_REGISTER, event)
            try:
                self._send(PacketType.CMD_REQUEST, command, message)
                while (packet := await self._read()).type is PacketType.EVENT:
                    if packet.name == event:
                        yield packet.message
                    else:
                        self._events.append((packet.name, packet.message))
            except BaseException:
                self._writer.close()
                raise
            with contextlib.suppress(ViciError):
                await self._register(PacketType.EVENT_UNREGISTER, event)
        self.answer = _checked(command, packet)

    async def register(self, *events: str) -> None:
        """Ask to be told of events from now on, for ``listen``. UnknownToDaemon."""
        async with self._lock:
            for event in events:
                await self._register(PacketType.EVENT_REGISTER, event)

    async def listen(self, *events: str) -> AsyncGenerator[tuple[str, Message], None]:
        """Events as they happen, (name, message), until the connection ends: these, and those registered before."""
        await self.register(*events)
        async with self._lock:
            while True:
                while self._events:
                    yield self._events.popleft()
                packet = await self._read()
                if packet.type is PacketType.EVENT:
                    yield packet.name, packet.message

    async def _register(self, kind: PacketType, event: str) -> None:
        self._send(kind, event)
        answer = await self._answer()
        if answer.type is not PacketType.EVENT_CONFIRM:
            raise UnknownToDaemon(f"the daemon does not know the event {event!r}")

    def _send(self, kind: PacketType, name: str, message: Mapping[str, Any] | None = None) -> None:
        if self._writer.is_closing():
            raise HungUp("the connection has ended")
        self._writer.write(emit_packet(kind, name, message))

    async def _answer(self) -> Packet:
        """The next packet that is no event; events are kept for ``listen``."""
        while (packet := await self._read()).type is PacketType.EVENT:
            self._events.append((packet.name, packet.message))
        return packet

    async def _read(self) -> Packet:
        try:
            await self._writer.drain()
            length = parse_length(await self._reader.readexactly(4))
            return parse_packet(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise HungUp(f"the daemon has hung up: {error}") from error
        except ParseError as error:
            raise ViciError(f"what listens there does not speak vici: {error}") from error


def _checked(command: str, answer: Packet) -> Message:
    if answer.type is PacketType.CMD_UNKNOWN:
        raise UnknownToDaemon(f"the daemon does not know the command {command!r}")
    if answer.type is not PacketType.CMD_RESPONSE:
        raise ViciError(f"the daemon answers {command!r} with {answer.type.name}")
    # vici: only commands that can fail say whether they did
    if "success" in answer.message and text(answer.message, "success") != "yes":
        raise ViciError(f"{command}: {text(answer.message, 'errmsg', 'failed')}", answer.message)
    return answer.message
