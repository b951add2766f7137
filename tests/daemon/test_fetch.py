"""Servers of CRLs that do not do as they should: what waits for them goes on, and no thread is lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from ipsec.crypto.revocation import Source
from ipsec.daemon import fetch
from ipsec.daemon.fetch import Fetcher
from tests.crypto.pki import Ca

CA = Ca("Root")
LEAF = CA.issue("moon")
CRL = CA.crl(7)


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answers one request; its URI."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                # the client may go away first
                with suppress(OSError):
                    answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.crl"
        thread.join()


def get(*uris: str) -> list[int]:
    """What certificates the CRLs revoke that can be had from the first of the URIs that works."""

    async def run() -> list[int]:
        crls, _ = await Fetcher().fetch([Source(LEAF, CA.certificate, uris, ())])
        return [serial for crl in crls for serial in crl.revoked]

    return asyncio.run(run())


def test_a_crl_is_fetched() -> None:
    with server(lambda client: client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + CRL)) as uri:
        assert get(uri) == [7]


@pytest.mark.parametrize(
    "answer", [b"", b"\0\1\2 no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nshort",
               b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 x OK\r\n\r\n"]
)  # fmt: skip
def test_what_is_no_http_is_no_crl(answer: bytes) -> None:
    def good(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + CRL)

    with server(lambda client: client.sendall(answer)) as first, server(good) as second:
        assert get(first, second) == [7]


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.0 200 OK\r\nX-Field: ", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_server_that_drips_does_not_keep_us(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether in its status line, in a header field or in what it sends; it ends when we hang up."""
    monkeypatch.setattr(fetch, "TOTAL_S", 0.3)

    def drip(client: socket.socket) -> None:
        client.sendall(begin)
        # less than would be too much
        for _ in range(3000):
            client.sendall(b"x")
            time.sleep(0.02)
        raise AssertionError("nobody has hung up")

    with server(drip) as uri:
        assert get(uri) == []


def test_a_name_with_many_addresses_does_not_keep_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.3)
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.1)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, socket.socket() as first:
        first.connect(full.getsockname())
        entry = (socket.AF_INET, socket.SOCK_STREAM, 0, "", full.getsockname())
        asked: list[float] = []

        def addresses(*args: object, **kwargs: object) -> Iterator[tuple[object, ...]]:
            for _ in range(50):
                asked.append(time.monotonic())
                yield entry

        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        deadline = time.monotonic() + 0.3
        assert fetch._get("http://crl.example/x.crl", None, 100, deadline) is None
        assert 0 < sum(at < deadline for at in asked) < 10
