"""Peers that have to wait until what vici has loaded is in effect.

The engine takes what was loaded a moment later, since many commands come in a row. A peer that begins in that moment
would be held against what there was before, and hear NO_PROPOSAL_CHOSEN or AUTHENTICATION_FAILED, after which many give
up. Its message is kept instead, for as long as the moment is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ipsec.backend.base import Datagram
from ipsec.errors import ParseError
from ipsec.wire.iana import ExchangeType
from ipsec.wire.ike import parse_header

#: datagrams that may wait. What is more is heard at once, so that a flood takes neither memory nor a peer's place
WAITING_MAX = 256
#: the exchanges that connections and credentials are looked up for
_FIRST = (ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH)


class Doorstep:
    """Keeps the first requests of IKE_SAs while it is closed."""

    def __init__(self) -> None:
        self._closed = False
        self._waiting: deque[Datagram] = deque()
        self._going_in: deque[Datagram] = deque()
        "have waited, and do so no more, however soon it is closed again"

    def close(self) -> None:
        """From now on first requests have to wait."""
        self._closed = True

    def keeps(self, datagram: Datagram) -> bool:
        """Whether a datagram is to wait; it is kept then."""
        if not self._closed or len(self._waiting) + len(self._going_in) >= WAITING_MAX:
            return False
        try:
            header = parse_header(datagram.data)
        except ParseError:
            return False
        first = header.exchange in _FIRST and not header.response
        if first:
            self._waiting.append(datagram)
        return first

    def open(self, deliver: Callable[[Datagram], object]) -> None:
        """Hand over what has waited, in the order in which it came, one in each turn of the event loop."""
        self._closed = False
        under_way = bool(self._going_in)
        self._going_in += self._waiting
        self._waiting.clear()
        if self._going_in and not under_way:
            self._go_on(deliver)

    def _go_on(self, deliver: Callable[[Datagram], object]) -> None:
        asyncio.get_running_loop().call_soon(self._let_in, deliver)

    def _let_in(self, deliver: Callable[[Datagram], object]) -> None:
        datagram = self._going_in.popleft()
        if self._going_in:
            self._go_on(deliver)
        deliver(datagram)
