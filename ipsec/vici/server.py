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
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

from ipsec.errors import BackendError, IpsecError, ParseError
from ipsec.vici.codec import Message, Packet, PacketType, emit_packet, take_packet

log = logging.getLogger(__name__)

CLIENTS_MAX = 256
#: octets of events that may wait for one client
BACKLOG_MAX = 8 << 20
#: a client that does not take an answer within this is dropped
PATIENCE_S = 10.0
#: with more octets than this behind the packet that is being answered, a client is not read from
UNREAD_MAX = 128 << 10
MODE = 0o660

_REQUESTS = (PacketType.CMD_REQUEST, PacketType.EVENT_REGISTER, PacketType.EVENT_UNREGISTER)


class CommandError(IpsecError):
    """A command fails; the client gets ``success = no`` with this text as ``errmsg``, and ``extra``."""

    def __init__(self, message: str, **extra: Any) -> None:
        self.extra = extra
        super().__init__(message)


Handler = Callable[["Client", Message], Awaitable[Mapping[str, Any]]]


class Client(asyncio.Protocol):
    """One connection. What comes is answered in order, one packet at a time; a command ends with its client."""

    _transport: asyncio.Transport

    def __init__(self, server: ViciServer) -> None:
        self._server = server
        self._unread = bytearray()
        self._eof = False
        self._task: asyncio.Task[None] | None = None
        "answers packets one after the other; none is needed for what is answered at once"
        self._room = asyncio.Event()
        "unset while the client takes less than is written"
        self._room.set()
        self.events: set[str] = set()
        "those that it has registered for"
        self.at_end: list[Callable[[], None]] = []
        "what is to be undone when it has gone"

    def __repr__(self) -> str:
        return f"<Client {self._transport.get_extra_info('peername')!r}>"

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.welcome(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unread += data
        if self._task is not None:
            if len(self._unread) > UNREAD_MAX:
                self._transport.pause_reading()
        elif (packet := self._next()) is not None:
            if packet.type is PacketType.CMD_REQUEST or self._unread or not self._room.is_set():
                self._task = asyncio.get_running_loop().create_task(self._work(packet))
            else:
                self._server.register(self, packet)

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        self._eof = True
        if self._task is None or self.gone or self._hung_up():
            self.close()
        # else what it has sent before is still answered
        return True

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._room.set()
        if self._task is None:
            self._end()
        else:
            self._task.add_done_callback(self._end)
            self._task.cancel()

    def _end(self, _: object = None) -> None:
        self._server.forget(self)
        for undo in self.at_end:
            undo()

    # -- what comes

    def _next(self) -> Packet | None:
        """The next packet; None if it is not complete yet, or nobody waits for its answer."""
        try:
            packet = take_packet(self._unread) if not self.gone else None
            if packet is not None and packet.type not in _REQUESTS:
                raise ParseError(f"a packet {packet.type.name} from a client")
        except ParseError as error:
            log.warning("a vici client sent something else: %s", error)
            self.close()
            return None
        if self.gone or (packet is None and self._eof):
            self.close()
            return None
        if packet is None and not self._transport.is_reading():
            self._transport.resume_reading()
        return packet

    async def _work(self, packet: Packet | None) -> None:
        """Answer this packet and those that are complete behind it."""
        try:
            while packet is not None:
                await self._server.answer(self, packet)
                await self.flush()
                if self._unread:
                    # others have their turn, however much one has sent
                    await asyncio.sleep(0)
                packet = self._next()
        except Exception:
            log.exception("this is a bug")
        finally:
            self._task = None
            if packet is not None:
                # it has no answer, also because a part of the daemon that its command waited for has ended
                self.close()

    # -- what goes

    def send(self, kind: PacketType, name: str = "", message: Mapping[str, Any] | None = None) -> None:
        """Queue a packet; a client with too much waiting for it is dropped."""
        packet = _packet(kind, name, message)
        if packet:
            self.write(packet)

    def write(self, packet: bytes) -> None:
        """Queue a packet that is complete; as ``send``."""
        if self._transport.is_closing():
            return
        self._transport.write(packet)
        if self._transport.get_write_buffer_size() > BACKLOG_MAX:
            log.warning("a vici client does not read what it asked for, dropped")
            self.close()

    def send_event(self, name: str, message: Mapping[str, Any]) -> None:
        """An event, if the client wants to hear of it."""
        if name in self.events:
            self.send(PacketType.EVENT, name, message)

    async def flush(self) -> None:
        """Wait until most of what was queued is on its way; for commands that stream a lot."""
        if self._room.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._room.wait()
        except TimeoutError:
            self.close()

    def _hung_up(self) -> bool:
        """Whether the other end does not read either; of TCP that is not known."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(found & select.POLLHUP for _, found in poll.poll(0))

    @property
    def gone(self) -> bool:
        """Nobody is there any more; or who is there sends no more, and nothing waits behind what is being answered."""
        return self._transport.is_closing() or (self._eof and not self._unread)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


class ViciServer:
    """Serves ``commands`` and ``events`` on a socket."""

    def __init__(self, commands: Mapping[str, Handler], events: Collection[str]) -> None:
        self._commands = commands
        self._events = frozenset(events)
        self._clients: set[Client] = set()
        self._nobody = asyncio.Event()
        "set while there are no clients"
        self._nobody.set()
        self._observers: list[Callable[[], None]] = []
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
                loop = asyncio.get_running_loop()
                self._servers.append(await loop.create_unix_server(lambda: Client(self), sock=sock))
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
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_server(lambda: Client(self), address, port))
        except OSError as error:
            why = f"cannot listen on TCP {address} port {port}: {os.strerror(error.errno or 0)}"
            raise BackendError(why, remedy="set ipsecd.vici_tcp to another port, or none") from error

    async def stop(self) -> None:
        """Hang up on everybody."""
        await self._stop_listening()
        for client in list(self._clients):
            client.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._nobody.wait()
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

    def observe(self, observer: Callable[[], None]) -> Callable[[], None]:
        """Tell ``observer`` from now on that clients want to hear of other events than before; how to stop."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def _wants_changed(self) -> None:
        for observer in self._observers:
            observer()

    # -- for Client

    def welcome(self, client: Client) -> None:
        """One has connected."""
        if len(self._clients) >= CLIENTS_MAX:
            log.warning("more than %d vici clients, one was refused", CLIENTS_MAX)
            client.close()
            return
        self._clients.add(client)
        self._nobody.clear()

    def forget(self, client: Client) -> None:
        """One has gone."""
        self._clients.discard(client)
        if not self._clients:
            self._nobody.set()
        if client.events:
            self._wants_changed()

    async def answer(self, client: Client, packet: Packet) -> None:
        """Answer any packet."""
        if packet.type is not PacketType.CMD_REQUEST:
            self.register(client, packet)
        elif packet.name in self._commands:
            client.send(PacketType.CMD_RESPONSE, message=await self._run(client, packet))
        else:
            client.send(PacketType.CMD_UNKNOWN)

    def register(self, client: Client, packet: Packet) -> None:
        """Answer one that is about events."""
        match packet.type:
            case PacketType.EVENT_REGISTER if packet.name in self._events:
                client.events.add(packet.name)
            case PacketType.EVENT_UNREGISTER if packet.name in client.events:
                client.events.discard(packet.name)
            case _:
                client.send(PacketType.EVENT_UNKNOWN)
                return
        client.send(PacketType.EVENT_CONFIRM)
        self._wants_changed()

    async def _run(self, client: Client, packet: Packet) -> Mapping[str, Any]:
        try:
            return await self._commands[packet.name](client, packet.message)
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
