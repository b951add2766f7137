"""The vici server: a Unix socket, several clients at once, commands and events by name.

A client that does not read, or goes away in the middle, costs its own connection and nothing else: what waits for it is
bounded, and nobody waits for it for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ipsec.errors import BackendError, IpsecError, ParseError
from ipsec.vici.codec import Message, Packet, PacketType, emit_packet, parse_length, parse_packet

log = logging.getLogger(__name__)

CLIENTS_MAX = 256
#: octets of events that may wait for one client
BACKLOG_MAX = 8 << 20
#: a client that does not take an answer within this is dropped
PATIENCE_S = 10.0
MODE = 0o660
#: while a command runs, whether its client is still there is looked at so often
LOOK_S = 1.0


class CommandError(IpsecError):
    """A command fails; the client gets ``success = no`` with this text as ``errmsg``, and ``extra``."""

    def __init__(self, message: str, **extra: Any) -> None:
        self.extra = extra
        super().__init__(message)


Handler = Callable[["Client", Message], Awaitable[Mapping[str, Any]]]


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.events: set[str] = set()
        "those that it has registered for"
        self.at_end: list[Callable[[], None]] = []
        "what is to be undone when it has gone"

    def __repr__(self) -> str:
        return f"<Client {self._writer.get_extra_info('peername')!r}>"

    async def read(self) -> Packet | None:
        """The next packet, None when the client has gone. ParseError."""
        try:
            length = parse_length(await self._reader.readexactly(4))
            return parse_packet(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, kind: PacketType, name: str = "", message: Mapping[str, Any] | None = None) -> None:
        """Queue a packet; a client with too much waiting for it is dropped."""
        packet = _packet(kind, name, message)
        if packet:
            self.write(packet)

    def write(self, packet: bytes) -> None:
        """Queue a packet that is complete; as ``send``."""
        if self._writer.is_closing():
            return
        self._writer.write(packet)
        if self._writer.transport.get_write_buffer_size() > BACKLOG_MAX:
            log.warning("a vici client does not read what it asked for, dropped")
            self.close()

    def send_event(self, name: str, message: Mapping[str, Any]) -> None:
        """An event, if the client wants to hear of it."""
        if name in self.events:
            self.send(PacketType.EVENT, name, message)

    async def flush(self) -> None:
        """Wait until most of what was queued is on its way; for commands that stream a lot."""
        try:
            await asyncio.wait_for(self._writer.drain(), PATIENCE_S)
        except (TimeoutError, ConnectionError):
            self.close()

    @property
    def gone(self) -> bool:
        """Nobody is there any more."""
        return self._writer.is_closing() or self._reader.at_eof()

    def close(self) -> None:
        """Hang up."""
        transport = self._writer.transport
        if transport is not None:
            transport.abort()


class ViciServer:
    """Serves ``commands`` and ``events`` on a socket."""

    def __init__(self, commands: Mapping[str, Handler], events: Collection[str]) -> None:
        self._commands = commands
        self._events = frozenset(events)
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._path: Path | None = None

    async def start(self, path: str, *, group: str = "", mode: int = MODE) -> None:
        """Listen on a Unix socket. BackendError, also if another daemon listens there."""
        target = Path(path)
        try:
            if await is_stale(target):
                target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            # nobody may connect between bind and chmod
            old = os.umask(0o177)
            try:
                sock.bind(path)
            except OSError:
                sock.close()
                raise
            finally:
                os.umask(old)
            try:
                if group:
                    give_to(group, path)
                os.chmod(path, mode)
                self._servers.append(await asyncio.start_unix_server(self._accept, sock=sock))
            except BaseException:
                sock.close()
                target.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise BackendError(
                f"cannot listen on {path}: {error.strerror}", remedy="set ipsecd.vici_socket to another path"
            ) from error
        self._path = target

    async def start_tcp(self, address: str, port: int) -> None:
        """Listen on a TCP port, where nobody is asked who he is. BackendError."""
        try:
            self._servers.append(await asyncio.start_server(self._accept, address, port))
        except OSError as error:
            why = f"cannot listen on TCP {address} port {port}: {os.strerror(error.errno or 0)}"
            raise BackendError(why, remedy="set ipsecd.vici_tcp to another port, or none") from error

    async def stop(self) -> None:
        """Hang up on everybody."""
        await self._stop_listening()
        for client in list(self._clients):
            client.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    async def _stop_listening(self) -> None:
        # asyncio leaves open who has been accepted when the server is closed, and is a client two turns later
        loop = asyncio.get_running_loop()
        for sock in [sock for server in self._servers for sock in server.sockets]:
            with contextlib.suppress(RuntimeError):  # uvloop, which has no need of it
                loop.remove_reader(sock.fileno())
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        self._servers = []

    def publish(self, event: str, message: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Send an event to all who registered for it; a callable is asked for the message only if somebody has."""
        if not self._clients:
            return
        wanting = [client for client in self._clients if event in client.events]
        if wanting:
            packet = _packet(PacketType.EVENT, event, message() if callable(message) else message)
            for client in wanting:
                client.write(packet)

    def wanted(self, event: str) -> bool:
        """Whether anybody has registered for an event."""
        return any(event in client.events for client in self._clients)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(reader, writer)
        if len(self._clients) >= CLIENTS_MAX:
            log.warning("more than %d vici clients, one was refused", CLIENTS_MAX)
            client.close()
            return
        self._clients.add(client)
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: Client) -> None:
        try:
            while (packet := await client.read()) is not None and not client.gone:
                await self._answer(client, packet)
                await client.flush()
        except ParseError as error:
            log.warning("a vici client sent something else: %s", error)
        except Exception:
            log.exception("this is a bug")
        finally:
            self._clients.discard(client)
            client.close()
            for undo in client.at_end:
                undo()

    async def _answer(self, client: Client, packet: Packet) -> None:
        match packet.type:
            case PacketType.EVENT_REGISTER if packet.name in self._events:
                client.events.add(packet.name)
                client.send(PacketType.EVENT_CONFIRM)
            case PacketType.EVENT_UNREGISTER if packet.name in client.events:
                client.events.discard(packet.name)
                client.send(PacketType.EVENT_CONFIRM)
            case PacketType.EVENT_REGISTER | PacketType.EVENT_UNREGISTER:
                client.send(PacketType.EVENT_UNKNOWN)
            case PacketType.CMD_REQUEST if packet.name in self._commands:
                answer = await self._run(client, packet)
                client.send(PacketType.CMD_RESPONSE, message=answer)
            case PacketType.CMD_REQUEST:
                client.send(PacketType.CMD_UNKNOWN)
            case _:
                raise ParseError(f"a packet {packet.type.name} from a client")

    async def _while_there(self, client: Client, packet: Packet) -> Mapping[str, Any]:
        """Run a command, at most until its client has gone."""
        task = asyncio.ensure_future(_call(self._commands[packet.name], client, packet.message))
        try:
            while not (await asyncio.wait([task], timeout=LOOK_S))[0]:
                if client.gone:
                    raise CommandError("the client has gone")
            return task.result()
        finally:
            task.cancel()

    async def _run(self, client: Client, packet: Packet) -> Mapping[str, Any]:
        try:
            return await self._while_there(client, packet)
        except CommandError as error:
            return {"success": "no", **error.extra, "errmsg": str(error)}
        except IpsecError as error:
            return {"success": "no", "errmsg": str(error)}
        except Exception:
            log.exception("this is a bug in the command %s", packet.name)
            return {"success": "no", "errmsg": "internal error, see the log"}


def _packet(kind: PacketType, name: str, message: Mapping[str, Any] | None) -> bytes:
    """A packet; nothing for an event that is larger than vici can carry."""
    try:
        return emit_packet(kind, name, message)
    except ValueError as error:
        log.warning("cannot tell a vici client%s: %s", f" of {name}" if name else "", error)
        if kind is not PacketType.CMD_RESPONSE:
            return b""
        # a client must not wait for its answer
        return emit_packet(kind, message={"success": "no", "errmsg": str(error)})


async def _call(handler: Handler, client: Client, message: Message) -> Mapping[str, Any]:
    return await handler(client, message)


def give_to(group: str, file: int | str) -> None:
    """Let a group have the socket, or a file that stands for it. BackendError."""
    try:
        os.chown(file, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        remedy = f"make it (groupadd {group}), or correct ipsecd.vici_group"
        raise BackendError(f"there is no group {group!r} for the vici socket", remedy=remedy) from None
    except PermissionError:
        remedy = "have ipsecd run as a member of it (systemd: SupplementaryGroups=), or correct ipsecd.vici_group"
        raise BackendError(f"the vici socket cannot be given to the group {group!r}", remedy=remedy) from None


async def is_stale(path: Path) -> bool:
    """Whether a killed predecessor left its socket there. BackendError if somebody listens, or it is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise BackendError(f"{path} is there and is no socket", remedy="remove it, or set ipsecd.vici_socket")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(path)), 2)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except TimeoutError:
        pass
    else:
        writer.close()
    raise BackendError(
        f"another daemon listens on {path}", remedy="stop it (charon, or another ipsecd), or set ipsecd.vici_socket"
    )
