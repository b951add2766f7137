"""Servers of CRLs that do not do as they should: what waits for them goes on, and no thread is lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from functools import partial

import pytest
from cryptography.x509.ocsp import OCSPCertStatus

from ipsec.crypto import der
from ipsec.crypto.auth import parse_constraints
from ipsec.crypto.revocation import Crl, OcspResponse, Source
from ipsec.daemon import fetch
from ipsec.daemon.fetch import Fetcher
from tests.crypto.pki import DAY, WALL, Ca
from tests.crypto.test_revocation import REVOKED, respond

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
                request = client.recv(65536)
                # what is posted comes later
                if request.startswith(b"POST") and request.endswith(b"\r\n\r\n"):
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
        crls, _ = await Fetcher().fetch([Source(LEAF, CA.certificate, uris, ())], WALL)
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


STALE = {"this": WALL - 5 * DAY, "due": WALL - 3 * DAY}
OTHER = Ca("Other")


def since_ever(made: bytes) -> bytes:
    """With times before which there are none (RFC 5280 section 5.1.2.4); what that is signed with is wrong now."""
    ever = der.emit(der.GENERALIZED_TIME, b"00010101000000Z")
    if b"\x18\x0f" in made:
        return made.replace((WALL - timedelta(hours=2)).strftime("%Y%m%d%H%M%SZ").encode(), ever[2:])
    sequence, algorithm, signature = (element for _, element in der.elements(der.contents(made, der.SEQUENCE)))
    fields = [element for _, element in der.elements(der.contents(sequence, der.SEQUENCE))]
    fields[3] = ever
    return der.emit(der.SEQUENCE, der.emit(der.SEQUENCE, *fields), algorithm, signature)


def asked(ocsp: list[bytes], crls: list[bytes], constraints: str = "pubkey") -> tuple[int, list[Crl | OcspResponse]]:
    """From how many of the servers that give these something was fetched, and what is handed over."""
    count = 0

    def answer(body: bytes, client: socket.socket) -> None:
        nonlocal count
        count += 1
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    async def run(source: Source) -> list[Crl | OcspResponse]:
        found, responses = await Fetcher().fetch([source], WALL)
        return [*responses, *found]

    with ExitStack() as servers:
        uris = [servers.enter_context(server(partial(answer, body))) for body in (*ocsp, *crls)]
        source = Source(LEAF, CA.certificate, tuple(uris[len(ocsp) :]), tuple(uris[: len(ocsp)]), (),
                        parse_constraints(constraints))  # fmt: skip
        found = asyncio.run(run(source))
        total = count
        for uri in uris:
            # whoever was not asked waits for it
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", int(uri.split(":")[2].split("/")[0]))).close()
        return total, found


@pytest.mark.parametrize(
    ("ocsp", "crls", "constraints", "count", "handed"),
    [
        ([respond(CA, LEAF)], [CRL], "pubkey", 1, 1),
        ([respond(CA, LEAF, OCSPCertStatus.UNKNOWN)], [CRL], "pubkey", 2, 1),
        ([respond(OTHER, LEAF)], [CRL], "pubkey", 2, 1),
        ([respond(CA, CA.issue("sun"))], [CRL], "pubkey", 2, 1),
        ([respond(CA, LEAF, **STALE)], [CRL], "pubkey", 2, 1),
        ([respond(CA, LEAF, REVOKED, **STALE)], [CRL], "pubkey", 2, 2),
        ([respond(OTHER, LEAF), respond(CA, LEAF, REVOKED)], [CRL], "pubkey", 2, 1),
        ([], [CA.crl(**STALE), OTHER.crl(), CRL], "pubkey", 3, 1),
        ([since_ever(respond(CA, LEAF))], [since_ever(CRL), CRL], "pubkey", 3, 1),
        ([], [CA.crl(LEAF.serial), CRL], "pubkey", 1, 1),
        # good enough for others
        ([respond(CA, LEAF)], [CRL], "rsa", 2, 0),
        ([respond(CA, LEAF, REVOKED)], [CRL], "rsa", 1, 1),
        ([respond(CA, LEAF, REVOKED, **STALE)] * 6, [], "pubkey", 6, 4),
    ],
)
def test_the_next_one_is_asked_until_one_says_it_for_certain(
    ocsp: list[bytes], crls: list[bytes], constraints: str, count: int, handed: int
) -> None:
    """Anybody on the way can put an answer of somebody else in the place of the right one."""
    asked_of, found = asked(ocsp, crls, constraints)
    assert asked_of == count
    assert len(found) == handed


def test_what_came_before_a_server_that_hangs_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.5)
    old = respond(CA, LEAF, REVOKED, **STALE)

    def hang(client: socket.socket) -> None:
        client.recv(1)

    async def run(source: Source) -> list[OcspResponse]:
        return (await Fetcher().fetch([source], WALL))[1]

    with server(lambda client: client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + old)) as first, server(hang) as second:
        assert len(asyncio.run(run(Source(LEAF, CA.certificate, (second,), (first,))))) == 1


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
