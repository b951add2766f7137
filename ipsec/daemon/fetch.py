"""Fetches CRLs and OCSP responses for certificates whose chain is already trusted (CVE-2022-40617: never others)."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, BinaryIO

from ipsec.crypto.revocation import (
    CRL_OCTETS_MAX,
    OCSP_OCTETS_MAX,
    Crl,
    OcspResponse,
    Source,
    Status,
    ocsp_request,
    parse_crl,
    status_of,
)
from ipsec.daemon.threads import Threads
from ipsec.errors import ParseError

log = logging.getLogger(__name__)

#: for one URI, and for all that one authentication waits for
TIMEOUT_S = 4.0
TOTAL_S = 8.0
#: revocations past their time that are kept of one source
TOLD_MAX = 4
_SCHEMES = ("http://", "https://", "file://")


# -- HTTP in time: urllib's timeout is for each octet that comes


def _left(deadline: float) -> float:
    """How long to wait now. TimeoutError if it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return min(left, TIMEOUT_S)


class _InTime(io.RawIOBase):
    """What comes from a socket before a deadline."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        self._sock, self._raw, self._deadline = sock, raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_InTime(sock, self.fp.detach(), deadline))


class _Connection(HTTPConnection):
    def __init__(self, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self.response_class = partial(_Response, deadline=deadline)  # type: ignore[assignment]
        # a name may have any number of addresses
        self._create_connection = partial(_connect, deadline)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


def _connect(deadline: float, address: tuple[str, int], *more: object) -> socket.socket:
    """To the first address of a name that takes the connection."""
    failed = OSError("the name has no address")
    for family, kind, protocol, _, to in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(to)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


class _Request(urllib.request.Request):
    deadline = 0.0


class _Handler(urllib.request.AbstractHTTPHandler):
    def do_open(self, http_class: Any, req: Any, **args: Any) -> HTTPResponse:
        made = _SecureConnection if issubclass(http_class, HTTPSConnection) else _Connection
        return super().do_open(partial(made, deadline=req.deadline), req, **args)


class _Http(_Handler, urllib.request.HTTPHandler):
    pass


class _Https(_Handler, urllib.request.HTTPSHandler):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A CRL's address is what a certificate says, nothing that a server makes of it."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect, _Http, _Https)


class Fetcher:
    """A few threads that ask, and verify what they get; so does whoever uses it."""

    def __init__(self) -> None:
        self._threads = Threads(4, "ipsec-fetch")

    async def fetch(self, sources: Iterable[Source], wall: datetime) -> tuple[list[Crl], list[OcspResponse]]:
        """What the sources give within TOTAL_S; what cannot be had is logged and left out."""
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + TOTAL_S
        found: list[Crl | OcspResponse] = []
        works = [partial(_ask, source, wall, deadline, found.append) for source in sources]
        jobs = [loop.create_task(self._threads.run(work)) for work in works]
        done, late = await asyncio.wait(jobs, timeout=TOTAL_S) if jobs else (set(), set())
        for job in late:
            job.cancel()
        for job in done:
            error = job.exception()
            if error is not None:
                # the authentication that waits for this goes on without it
                log.error("this is a bug", exc_info=error)
        # who is late may still find something
        answers = tuple(found)
        return [one for one in answers if isinstance(one, Crl)], [one for one in answers if not isinstance(one, Crl)]


def _ask(source: Source, wall: datetime, deadline: float, tell: Callable[[Crl | OcspResponse], None]) -> None:
    """Tell what speaks of the certificate, until one says that it is good or revoked, now and for certain.

    Whoever is on the way to a server can put anything there; that must not keep us from asking the next one.
    """
    told = 0
    for uri, one in _answers(source, deadline):
        crls, responses = ([one], []) if isinstance(one, Crl) else ([], [one])
        answer = status_of(source, crls, responses, wall)
        if answer.status is Status.UNKNOWN:
            log.warning("%s does not settle whether %s was revoked: %s", uri, source.certificate.subject, answer.why)
            continue
        # a revocation past its time, after which somebody may say that it was lifted
        if answer.in_force or told < TOLD_MAX:
            tell(one)
            told += 1
        if answer.in_force:
            return


def _answers(source: Source, deadline: float) -> Iterator[tuple[str, Crl | OcspResponse]]:
    """What can be read, with its URI: OCSP first, for it is fresher and smaller, then CRLs."""
    for uri in source.ocsp_uris:
        body = _get(uri, ocsp_request(source.certificate, source.issuer), OCSP_OCTETS_MAX, deadline)
        if body is not None:
            try:
                yield uri, OcspResponse(body)
            except ParseError as error:
                log.warning("OCSP response of %s: %s", uri, error)
    for uri in source.crl_uris:
        body = _get(uri, None, CRL_OCTETS_MAX, deadline)
        if body is not None:
            try:
                yield uri, parse_crl(body)
            except ParseError as error:
                log.warning("CRL of %s: %s", uri, error)


def _get(uri: str, post: bytes | None, limit: int, deadline: float) -> bytes | None:
    if not uri.lower().startswith(_SCHEMES):
        log.warning("%s: only http, https and file are fetched", uri)
        return None
    headers = {"Content-Type": "application/ocsp-request"} if post is not None else {}
    try:
        request = _Request(uri, data=post, headers=headers)
        request.deadline = deadline
        with _OPENER.open(request, timeout=_left(deadline)) as answer:
            body = _read(answer, limit)
    # HTTPException: an answer that is not HTTP
    except (OSError, ValueError, HTTPException) as error:
        log.warning("cannot fetch %s: %s", uri, error)
        return None
    if len(body) > limit:
        log.warning("%s gives more than %d octets", uri, limit)
        return None
    return body


def _read(answer: BinaryIO, limit: int) -> bytes:
    """Up to one octet more than ``limit``."""
    body = bytearray()
    while len(body) <= limit and (part := answer.read1(limit + 1 - len(body))):  # type: ignore[attr-defined]
        body += part
    return bytes(body)
