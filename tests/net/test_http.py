"""The HTTP server, over real sockets: what it serves, and what clients cannot do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import BackendError
from ipsec.net import http
from ipsec.net.http import CLIENTS_MAX, HEAD_MAX, HttpError, HttpServer, Request, Response, parse_request

BIG = [bytes([n]) * 65536 for n in range(64)]


async def hello(request: Request) -> Response:
    return Response(HTTPStatus.OK, [b"hel", b"lo"], fields={"X-Path": request.path})


async def big(request: Request) -> Response:
    return Response(HTTPStatus.OK, BIG)


async def busy(request: Request) -> Response:
    raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "not now")


async def broken(request: Request) -> Response:
    raise ZeroDivisionError("a secret")


def serve(test: Callable[[int, HttpServer], Awaitable[None]]) -> None:
    async def main() -> None:
        server = HttpServer({"/": hello, "/big": big, "/broken": broken, "/busy": busy})
        await server.start([("127.0.0.1", 0)])
        try:
            await asyncio.wait_for(test(server.ports[0], server), 30)
        finally:
            await server.stop()

    asyncio.run(main())


async def talk(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


def get(path: str = "/", method: str = "GET", version: str = "1.1", fields: str = "Host: x\r\n") -> bytes:
    return f"{method} {path} HTTP/{version}\r\n{fields}\r\n".encode()


@pytest.mark.parametrize("target", ["/", "/?name=x", "http://somewhere:80/", "HTTP://somewhere"])
def test_get(target: str) -> None:
    async def test(port: int, server: HttpServer) -> None:
        head, body = (await talk(port, get(target))).split(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 OK"
        assert body == b"hello"
        assert {"Content-Length: 5", "X-Path: /", "Connection: close"} <= set(lines)

    serve(test)


def test_head_is_get_without_body() -> None:
    async def test(port: int, server: HttpServer) -> None:
        def stable(answer: bytes) -> list[bytes]:
            return [line for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith(b"Date")]

        first, second = await talk(port, get()), await talk(port, get(method="HEAD"))
        assert second.endswith(b"\r\n\r\n")
        assert stable(first) == stable(second)

    serve(test)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/nothing"), 404),
        (get(method="POST"), 405),
        (get(method="DELETE", fields="Host: x\r\nContent-Length: 5\r\n") + b"12345", 405),
        (get("/broken"), 500),
        (get("/busy"), 503),
        (get(version="2.0"), 505),
        (get(fields=""), 400),
        (get(version="1.0", fields=""), 200),
        (get(fields="Host: x\r\n folded: y\r\n"), 400),
        (get(fields="Host: x\r\nname : y\r\n"), 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (get(fields=f"Host: x\r\nX: {'y' * HEAD_MAX}\r\n"), 431),
        (b"G" * (HEAD_MAX + 10), 431),
    ],
)
def test_status(data: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test(port: int, server: HttpServer) -> None:
        answer = await talk(port, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert b"a secret" not in answer
        if status == 405:
            assert b"\r\nAllow: GET, HEAD\r\n" in answer

    serve(test)


def test_who_says_nothing_is_asked_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.1)

    async def test(port: int, server: HttpServer) -> None:
        assert (await talk(port, b"GET / HT")).startswith(b"HTTP/1.1 408 ")

    serve(test)


def test_silent_clients_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(port: int, server: HttpServer) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS_MAX + 3)]
        for _ in range(3):
            assert b"hello" in await talk(port, get())
        ended = sum(reader.at_eof() or reader.exception() is not None for reader, _ in silent)
        assert ended >= 3
        assert len(server._tasks) <= CLIENTS_MAX
        for _, writer in silent:
            writer.close()

    serve(test)


def test_who_does_not_read_is_dropped_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 0.2)

    async def test(port: int, server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(get("/big"))
        assert b"hello" in await talk(port, get())
        while server._tasks:
            await asyncio.sleep(0.02)
        with pytest.raises((ConnectionError, AssertionError)):
            assert len(await reader.read()) > sum(map(len, BIG))
        writer.close()

    serve(test)


def test_who_does_not_read_makes_room() -> None:
    async def test(port: int, server: HttpServer) -> None:
        greedy = []
        for _ in range(CLIENTS_MAX):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(get("/big"))
            await writer.drain()
            greedy.append(writer)
        while server._silent or len(server._served) < CLIENTS_MAX:
            await asyncio.sleep(0.01)
        for _ in range(3):
            assert (await talk(port, get())).endswith(b"hello")
        for writer in greedy:
            writer.close()

    serve(test)


def test_fields_are_read_in_one_pass() -> None:
    """A pattern that tried every split of a run of spaces took a second for 8 kB; the event loop stood still."""
    spaces = b" " * (1 << 16)
    assert parse_request(b"GET / HTTP/1.1\r\nHost:\t a" + spaces + b"b \t\r\n\r\n").fields["host"][-1] == "b"
    with pytest.raises(HttpError):
        parse_request(b"GET / HTTP/1.1\r\nHost: a" + spaces + b"\0\r\n\r\n")


def test_large_answers_arrive_whole() -> None:
    async def test(port: int, server: HttpServer) -> None:
        answers = await asyncio.gather(*(talk(port, get("/big")) for _ in range(4)))
        for answer in answers:
            assert answer.split(b"\r\n\r\n", 1)[1] == b"".join(BIG)

    serve(test)


def test_who_leaves_at_once_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def test(port: int, server: HttpServer) -> None:
        for data in (b"", b"GET", get("/big")):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            await writer.drain()
            writer.transport.abort()
        while server._tasks:
            await asyncio.sleep(0.02)

    serve(test)
    assert "bug" not in caplog.text


def test_a_port_that_is_taken() -> None:
    async def test(port: int, server: HttpServer) -> None:
        other = HttpServer({"/": hello})
        why = r"cannot listen on 127\.0\.0\.1 port \d+ for HTTP: Address already in use; .*http\.listen"
        with pytest.raises(BackendError, match=why):
            await other.start([("127.0.0.1", 0), ("127.0.0.1", port)])
        assert other.ports == []

    serve(test)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_octets_are_a_request_or_an_error(data: bytes) -> None:
    with suppress(HttpError):
        request = parse_request(data + b"\r\n\r\n")
        assert request.method
        assert not any(set(text) & set("\r\n\0") for text in (request.path, *request.fields.values()))
