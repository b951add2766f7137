"""Fetches CRLs and OCSP responses for certificates whose chain is already trusted (CVE-2022-40617: never others)."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import BinaryIO

from ipsec.crypto.revocation import CRL_OCTETS_MAX, OCSP_OCTETS_MAX, Crl, OcspResponse, Source, ocsp_request, parse_crl
from ipsec.errors import ParseError

log = logging.getLogger(__name__)

#: for one URI, and for all that one authentication waits for
TIMEOUT_S = 4.0
TOTAL_S = 8.0
_SCHEMES = ("http://", "https://", "file://")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A CRL's address is what a certificate says, nothing that a server makes of it."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class Fetcher:
    """A few threads that ask; what they get is verified by whoever uses it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, "ipsec-fetch")

    def close(self) -> None:
        """Wait for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, sources: Iterable[Source]) -> tuple[list[Crl], list[OcspResponse]]:
        """What the sources give within TOTAL_S; what cannot be had is logged and left out."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._threads, _ask, source) for source in sources]
        done, late = await asyncio.wait(jobs, timeout=TOTAL_S) if jobs else (set(), set())
        for job in late:
            job.cancel()
        crls: list[Crl] = []
        responses: list[OcspResponse] = []
        for job in done:
            error = job.exception()
            if error is not None:
                # the authentication that waits for this goes on without it
                log.error("this is a bug", exc_info=error)
                continue
            found = job.result()
            if isinstance(found, Crl):
                crls.append(found)
            elif found is not None:
                responses.append(found)
        return crls, responses


def _ask(source: Source) -> Crl | OcspResponse | None:
    """OCSP first, for it is fresher and smaller, then CRLs; the first that is at all readable."""
    for uri in source.ocsp_uris:
        body = _get(uri, ocsp_request(source.certificate, source.issuer), OCSP_OCTETS_MAX)
        if body is not None:
            try:
                return OcspResponse(body)
            except ParseError as error:
                log.warning("OCSP response of %s: %s", uri, error)
    for uri in source.crl_uris:
        body = _get(uri, None, CRL_OCTETS_MAX)
        if body is not None:
            try:
                return parse_crl(body)
            except ParseError as error:
                log.warning("CRL of %s: %s", uri, error)
    return None


def _get(uri: str, post: bytes | None, limit: int) -> bytes | None:
    if not uri.lower().startswith(_SCHEMES):
        log.warning("%s: only http, https and file are fetched", uri)
        return None
    headers = {"Content-Type": "application/ocsp-request"} if post is not None else {}
    try:
        with _OPENER.open(urllib.request.Request(uri, data=post, headers=headers), timeout=TIMEOUT_S) as answer:
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
    """Up to one octet more than ``limit``. OSError after TOTAL_S: a server that drips must not keep a thread."""
    deadline = time.monotonic() + TOTAL_S
    body = bytearray()
    while len(body) <= limit and (part := answer.read1(limit + 1 - len(body))):  # type: ignore[attr-defined]
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
    return bytes(body)
