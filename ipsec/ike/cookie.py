"""Stateless cookies (RFC 7296 section 2.6), and the account of half-open IKE_SAs that says when to ask for them."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

IpAddress = IPv4Address | IPv6Address

SECRET_LIFETIME_S = 120.0
#: how long a cookie is asked for after the last time that there were too many half-open IKE_SAs. Whoever was asked has
#: sent another message 1 than before; the first one, repeated and late, must not be taken any more: AUTH is over one
INSIST_S = 10.0
#: requests in a second that are read in full and lead nowhere, before cookies are asked for: 50 ms of work at worst
FRUITLESS_PER_S = 100
_SECRET_LEN = 32
_MAC_LEN = 16


class CookieJar:
    """Makes cookies and knows them again: no memory of a peer is needed before it has shown that it gets our packets.

    A cookie is the number of a secret and a MAC over SPIi, address and nonce. A secret makes cookies for
    SECRET_LIFETIME_S, and verifies them for as long again.
    """

    __slots__ = ("_born", "_previous", "_rng", "_secret", "_version")

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._rng = rng
        self._secret: bytes | None = None
        self._previous: bytes | None = None
        self._born = 0.0
        self._version = 0

    def make(self, now: float, nonce: bytes, address: IpAddress, spi_i: bytes) -> bytes:
        """The cookie for an IKE_SA_INIT request with this Ni and SPIi from ``address``."""
        self._rotate(now)
        assert self._secret is not None
        return bytes((self._version,)) + _mac(self._secret, nonce, address, spi_i)

    def verify(self, now: float, cookie: bytes, nonce: bytes, address: IpAddress, spi_i: bytes) -> bool:
        """Whether ``cookie`` is what ``make`` gave for the same request, not long ago."""
        self._rotate(now)
        if len(cookie) != 1 + _MAC_LEN:
            return False
        secret = {self._version: self._secret, (self._version - 1) % 256: self._previous}.get(cookie[0])
        return secret is not None and hmac.compare_digest(cookie[1:], _mac(secret, nonce, address, spi_i))

    def _rotate(self, now: float) -> None:
        age = now - self._born
        if self._secret is not None and age < SECRET_LIFETIME_S:
            return
        # a secret that was not asked for in all of its second period does not get a third one
        self._previous = self._secret if age < 2 * SECRET_LIFETIME_S else None
        self._secret = self._rng(_SECRET_LEN)
        self._version = (self._version + 1) % 256
        self._born = now


def _mac(secret: bytes, nonce: bytes, address: IpAddress, spi_i: bytes) -> bytes:
    # the nonce, alone in having any length, is last; the version tells the two lengths of addresses apart
    text = spi_i + bytes((address.version,)) + address.packed + nonce
    return hmac.digest(secret, text, "sha256")[:_MAC_LEN]


class HalfOpenLimiter:
    """Half-open IKE_SAs as responder: how many there are, whether to ask for a cookie, whether there is room for more.

    Once there were too many, or too many requests that led nowhere, cookies are asked for until INSIST_S later.

    Sources are counted by IPv4 address or IPv6 /64, which is what one sender has at its command. A source that answers
    our cookies is not refused for its count alone, since many clients may be behind one NAT: only when half of all
    places are taken may one source have no more than an eighth of them, so that others still get in.
    """

    __slots__ = (
        "_counts", "_fruitless", "_insist", "_insist_sources", "_limit", "_second", "_threshold", "_threshold_source",
        "_total",
    )  # fmt: skip

    def __init__(
        self, cookie_threshold: int | None = 30, cookie_threshold_ip: int | None = 3, limit: int = 2000
    ) -> None:
        """Thresholds are numbers from which on a cookie is asked for: 0 is always, None is never. ``limit`` is hard."""
        self._threshold = cookie_threshold
        self._threshold_source = cookie_threshold_ip
        self._limit = limit
        self._total = 0
        self._counts: dict[tuple[int, int], int] = {}
        "never more entries than half-open IKE_SAs"
        self._insist = float("-inf")
        "until when everybody is asked"
        self._insist_sources: OrderedDict[tuple[int, int], float] = OrderedDict()
        "until when a source is asked, the first to end first; never more entries than ``limit``"
        self._second = 0
        self._fruitless = 0
        "in this second"

    def __len__(self) -> int:
        """Half-open IKE_SAs in all."""
        return self._total

    def count(self, address: IpAddress) -> int:
        """Half-open IKE_SAs of the source that ``address`` belongs to."""
        return self._counts.get(_source(address), 0)

    def needs_cookie(self, address: IpAddress, now: float) -> bool:
        """Whether a request from ``address`` has to come with a cookie before anything is kept of it."""
        if self._threshold is not None:
            if self._total >= self._threshold or (self._fruitless > FRUITLESS_PER_S and int(now) == self._second):
                self._insist = now + INSIST_S
            if now < self._insist:
                return True
        if self._threshold_source is None:
            return False
        source = _source(address)
        if self._counts.get(source, 0) >= self._threshold_source:
            self._insist_sources[source] = now + INSIST_S
            self._insist_sources.move_to_end(source)
            if len(self._insist_sources) > self._limit:
                self._insist_sources.popitem(last=False)
            return True
        return now < self._insist_sources.get(source, now)

    def read_in_full(self, now: float) -> None:
        """A request without a good cookie is about to be read in full; ``add`` says that it was worth it."""
        if int(now) != self._second:
            self._second, self._fruitless = int(now), 0
        self._fruitless += 1

    @property
    def full(self) -> bool:
        """Whether nobody gets in any more."""
        return self._total >= self._limit

    def admits(self, address: IpAddress) -> bool:
        """Whether there is room for one more from ``address``, its cookie verified or not; if not, drop the request."""
        if 2 * self._total < self._limit:
            return True
        return not self.full and self.count(address) < max(1, self._limit // 8)

    def add(self, address: IpAddress) -> None:
        """Count one more. Whoever calls has asked ``admits``, which is what bounds memory."""
        source = _source(address)
        self._counts[source] = self._counts.get(source, 0) + 1
        self._total += 1
        self._fruitless = max(self._fruitless - 1, 0)

    def remove(self, address: IpAddress) -> None:
        """One that was added is established, or gone. Once for each ``add``, with the same address."""
        source = _source(address)
        count = self._counts.get(source, 0)
        if count == 0:
            return
        self._total -= 1
        if count == 1:
            del self._counts[source]
        else:
            self._counts[source] = count - 1


def _source(address: IpAddress) -> tuple[int, int]:
    return (4, int(address)) if address.version == 4 else (6, int(address) >> 64)
