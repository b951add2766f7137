"""What is known about the revocation of peers' certificates beyond what was loaded: what we have asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from ipsec.crypto.chain import Chain
from ipsec.crypto.revocation import Crl, OcspResponse, Source, authentic, keep_newest

K = TypeVar("K")
V = TypeVar("V")

CRLS_MAX = 64
RESPONSES_MAX = 1024
ASKED_MAX = 4096
#: a source that gave nothing useful is asked again after this
ASK_AGAIN = timedelta(minutes=5)


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
        self._asked: OrderedDict[bytes, datetime] = OrderedDict()

    @property
    def crls(self) -> Iterable[Crl]:
        """All CRLs."""
        return self._crls.values()

    @property
    def responses(self) -> Iterable[OcspResponse]:
        """All OCSP responses."""
        return self._responses.values()

    def worth_asking(self, source: Source, wall: datetime) -> bool:
        """Whether a source exists and was not asked just now."""
        if not source.crl_uris and not source.ocsp_uris:
            return False
        asked = self._asked.get(source.certificate.fingerprint)
        return asked is None or abs(wall - asked) > ASK_AGAIN

    def add(
        self, sources: Iterable[Source], crls: Iterable[Crl], responses: Iterable[OcspResponse], wall: datetime
    ) -> None:
        """What was asked, and what came of it. Of CRLs with one scope the newest stays."""
        sources = tuple(sources)
        for source in sources:
            _put(self._asked, source.certificate.fingerprint, wall, ASKED_MAX)
        for crl in crls:
            # what somebody on the way has put in its place must not drive out what is known
            if authentic(crl, sources):
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


def _put(table: OrderedDict[bytes, V], key: bytes, value: V, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    _shorten(table, limit)


def _shorten(table: OrderedDict[K, V], limit: int) -> None:
    while len(table) > limit:
        table.popitem(last=False)
