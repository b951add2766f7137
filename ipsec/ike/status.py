"""What is known about the revocation of peers' certificates beyond what was loaded: what we have asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from ipsec.crypto.chain import Chain
from ipsec.crypto.revocation import Answer, Crl, OcspResponse, Source, Status, authentic, keep_newest, status_of

K = TypeVar("K")
V = TypeVar("V")

CRLS_MAX = 64
RESPONSES_MAX = 1024
ASKED_MAX = 4096
#: a source that gave nothing useful is asked again after this
ASK_AGAIN = timedelta(minutes=5)
#: and one whose answers are good for no longer after this
ASK_LEAST = timedelta(seconds=10)


class StatusUnknownError(Exception):
    """Before a chain can be judged, its sources are worth asking. Not an error of anybody's."""

    def __init__(self, chain: Chain, sources: tuple[Source, ...]) -> None:
        self.chain = chain
        self.sources = sources
        super().__init__(f"the status of {chain.end.subject} is not known yet")


class StatusCache:
    """CRLs and OCSP responses; verified whenever they are used."""

    def __init__(self) -> None:
        self._crls: OrderedDict[Hashable, Crl] = OrderedDict()
        self._responses: OrderedDict[bytes, OcspResponse] = OrderedDict()
        self._asked: OrderedDict[Hashable, tuple[datetime, datetime]] = OrderedDict()
        "when, and until when nothing new is to be expected"

    @property
    def crls(self) -> Iterable[Crl]:
        """All CRLs."""
        return self._crls.values()

    @property
    def responses(self) -> Iterable[OcspResponse]:
        """All OCSP responses."""
        return self._responses.values()

    def worth_asking(self, source: Source, wall: datetime) -> bool:
        """Whether a source exists and was not asked just now, or what it said has run out since."""
        if not source.crl_uris and not source.ocsp_uris:
            return False
        last = self._asked.get(_question(source))
        # the clock may have been put back
        return last is None or not last[0] - ASK_AGAIN <= wall <= last[1]

    def add(
        self, sources: Iterable[Source], crls: Iterable[Crl], responses: Iterable[OcspResponse], wall: datetime
    ) -> None:
        """What was asked, and what came of it. Of CRLs of one kind the newest stays.

        What somebody on the way has put in its place must not drive out what is known.
        """
        sources, crls = tuple(sources), [crl for crl in crls if authentic(crl, sources)]
        responses = [response for response in responses if authentic(response, sources)]
        for source in sources:
            until = _ask_after(status_of(source, crls, responses, wall), wall)
            _put(self._asked, _question(source), (wall, until), ASKED_MAX)
        for crl in crls:
            keep_newest(self._crls, crl)
            self._crls.move_to_end(crl.kind)
            _shorten(self._crls, CRLS_MAX)
        for response in responses:
            _put(self._responses, response.tbs, response, RESPONSES_MAX)

    def clear(self) -> None:
        """Forget everything (``flush-certs``)."""
        self._crls.clear()
        self._responses.clear()
        self._asked.clear()


def _question(source: Source) -> Hashable:
    """What is good enough for one connection may not be for another."""
    return source.certificate.fingerprint, source.constraints


def _ask_after(answer: Answer, wall: datetime) -> datetime:
    known = answer.status is not Status.UNKNOWN and answer.in_force
    return min(wall + ASK_AGAIN, max(answer.due, wall + ASK_LEAST)) if known else wall + ASK_AGAIN


def _put(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    _shorten(table, limit)


def _shorten(table: OrderedDict[K, V], limit: int) -> None:
    while len(table) > limit:
        table.popitem(last=False)
