"""A small HTTP server for a few fixed resources (RFC 9110, RFC 9112): GET and HEAD, one request per connection.

What a client can take from us is bounded: the octets of its request, its time, and how many there are at once. When
there are too many, who says nothing makes room first, then who takes the longest over its answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from ipsec.errors import BackendError

log = logging.getLogger(__name__)

HEAD_MAX = 8192
"octets of a request line and header fields"
CLIENTS_MAX = 32
#: seconds to send a request, to take the answer, and to hang up after it
REQUEST_S = 5.0
ANSWER_S = 30.0
LINGER_S = 1.0

#: what mends an address that cannot be had; most often it is the same program's
ELSEWHERE = "stop who listens there, another ipsecd perhaps, or set ipsecd.http.listen to another address or port"

_REQUEST_LINE = re.compile(r"([!-~]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
#: nothing in it may be matched in two ways: of 8 kB of spaces that would take a second
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_METHODS = ("GET", "HEAD")


class Request(NamedTuple):
    """What is asked for."""

    method: str
    path: str
    "without query"
    fields: Mapping[str, str]
    "by name in small letters; of several with one name, joined by commas"


@dataclass(frozen=True)
class Response:
    """What is answered; ``body`` in parts, so that a large one needs no second copy of itself."""

    status: HTTPStatus
    body: Sequence[bytes]
    content_type: str = "text/plain; charset=utf-8"
    fields: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]
"may raise HttpError"


class HttpError(Exception):
    """A request that is not answered as it wants; the status says why."""

    def __init__(self, status: HTTPStatus, why: str = "", **fields: str) -> None:
        self.status = status
        self.fields = fields
        super().__init__(why or status.phrase)

    def response(self) -> Response:
        """As the client gets it."""
        return Response(self.status, [f"{self.status.value} {self}\n".encode()], fields=self.fields)


class HttpServer:
    """Serves ``resources`` by path."""

    def __init__(self, resources: Mapping[str, Handler]) -> None:
        self._resources = resources
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.StreamWriter, None] = {}
        "those whose request is not complete, the longest waiting first"
        self._served: dict[asyncio.StreamWriter, None] = {}
        "those whose request is, in the order in which it was"
        self._count = 0

    @property
    def ports(self) -> list[int]:
        """Ports in use."""
        return [sock.getsockname()[1] for server in self._servers for sock in server.sockets]

    async def start(self, endpoints: Iterable[tuple[str, int]]) -> None:
        """Listen on each (address, port). BackendError if one cannot be had; then on none."""
        for address, port in endpoints:
            try:
                server = await asyncio.start_server(self._accept, address, port, limit=HEAD_MAX, backlog=64)
            except OSError as error:
                await self.stop()
                # asyncio's text has the address once more
                cause = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
                why = f"cannot listen on {address} port {port} for HTTP: {cause}"
                raise BackendError(why, remedy=ELSEWHERE) from error
            self._servers.append(server)

    async def stop(self) -> None:
        """Hang up on everybody; safe in any state."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._count >= CLIENTS_MAX:
            # a probe of our health must be answered, whatever others do: else we would be restarted for their sake
            crowd = self._silent or self._served
            if not crowd:
                _abort(writer)
                return
            first = next(iter(crowd))
            del crowd[first]
            _abort(first)
        self._count += 1
        self._silent[writer] = None
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head_only = False
            try:
                request = await _read_request(reader)
                self._complete(writer)
                head_only = request.method == "HEAD"
                response = await self._answer(request)
            except HttpError as error:
                self._complete(writer)
                response = error.response()
            await _send(writer, response, head_only=head_only)
            await _linger(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("this is a bug")
        finally:
            self._silent.pop(writer, None)
            self._served.pop(writer, None)
            self._count -= 1
            _abort(writer)

    def _complete(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._silent:
            del self._silent[writer]
            self._served[writer] = None

    async def _answer(self, request: Request) -> Response:
        handler = self._resources.get(request.path)
        if handler is None:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is {', '.join(self._resources)}")
        if request.method not in _METHODS:
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, Allow=", ".join(_METHODS))
        try:
            return await handler(request)
        except HttpError:
            raise
        except Exception:
            log.exception("this is a bug in %s", request.path)
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the log") from None


async def _read_request(reader: asyncio.StreamReader) -> Request:
    try:
        async with asyncio.timeout(REQUEST_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT) from None
    except asyncio.LimitOverrunError:
        why = f"more than {HEAD_MAX} octets"
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, why) from None
    return parse_request(head)


def parse_request(head: bytes) -> Request:
    """A request from its line and header fields, with the empty line behind them. HttpError."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise HttpError(HTTPStatus.BAD_REQUEST, "this is no request line")
    method, target, version = match.groups()
    if version[0] != "1":
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    fields: dict[str, str] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "this is no header field")
        name, value = found[1].lower(), found[2].strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if version != "1.0" and "host" not in fields:
        raise HttpError(HTTPStatus.BAD_REQUEST, "HTTP/1.1 has a Host field")
    # RFC 9112 section 3.2.2: a server takes the absolute form too
    path = re.sub(r"(?i)\Ahttps?://[^/?]*", "", target).partition("?")[0]
    return Request(method, path or "/", fields)


async def _send(writer: asyncio.StreamWriter, response: Response, *, head_only: bool) -> None:
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        f"Content-Type: {response.content_type}",
        f"Content-Length: {sum(map(len, response.body))}",
        *(f"{name}: {value}" for name, value in response.fields.items()),
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    # from here on drain waits until the kernel has everything
    writer.transport.set_write_buffer_limits(0)
    async with asyncio.timeout(ANSWER_S):
        for part in (head,) if head_only else (head, *response.body):
            writer.write(part)
            await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client hang up first: a close with octets unread would take the answer from it (RFC 9112 section 9.6)."""
    with suppress(TimeoutError, OSError):
        writer.write_eof()
        async with asyncio.timeout(LINGER_S):
            while await reader.read(HEAD_MAX):
                pass


def _abort(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if transport is not None:
        transport.abort()
