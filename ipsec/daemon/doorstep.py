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
from ipsec.wire.iana import ExchangeType

#: datagrams that may wait. What is more is heard at once, so that a flood takes neither memory nor a peer's place
WAITING_MAX = 256
#: where the exchange type is in the header (RFC 7296 section 3.1)
_EXCHANGE_AT = 18
#: the exchanges that connections and credentials are looked up for
_FIRST = (ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH)


class Doorstep:
    """Keeps the first messages of IKE_SAs while it is closed."""

    def __init__(self) -> None:
        self._closed = False
        self._waiting: deque[Datagram] = deque()

    def close(self) -> None:
        """From now on first messages have to wait."""
        self._closed = True

    def keeps(self, datagram: Datagram) -> bool:
        """Whether a datagram is to wait; it is kept then."""
        if not self._closed or len(self._waiting) >= WAITING_MAX:
            return False
        first = len(datagram.data) > _EXCHANGE_AT and datagram.data[_EXCHANGE_AT] in _FIRST
        if first:
            self._waiting.append(datagram)
        return first

    def open(self, deliver: Callable[[Datagram], object]) -> None:
        """Hand over what has waited, in the order in which it came, one in each turn of the event loop."""
        self._closed = False
        self._go_on(deliver)

    def _go_on(self, deliver: Callable[[Datagram], object]) -> None:
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._let_in, deliver)

    def _let_in(self, deliver: Callable[[Datagram], object]) -> None:
        # unless it is closed again, or somebody else has let them in
        if self._waiting and not self._closed:
            datagram = self._waiting.popleft()
            self._go_on(deliver)
            deliver(datagram)
