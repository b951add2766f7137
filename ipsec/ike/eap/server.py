"""The authenticator and server of EAP in one (RFC 3748 section 4): it asks who the peer is, proposes a method, and
says whether that has succeeded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, ServerMethod
from ipsec.ike.eap.peer import ROUNDS_MAX
from ipsec.wire.eap import EapPacket, eap_name, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

#: octets of an identity. RFC 3748 section 5.1 has no limit; RFC 7542 section 2.3 wants 253 to be taken
IDENTITY_MAX = 1024


class Server(Protocol):
    """Who speaks for us in one conversation."""

    @property
    def msk(self) -> bytes | None:
        """The key, once it has succeeded; None if the method makes none."""

    @property
    def gave_up(self) -> EapError | None:
        """Why the peer is not who it says, once the method has told it so and waits for an answer to that."""

    def begin(self) -> bytes:
        """The first request."""

    def receive(self, data: bytes) -> bytes | None:
        """The next request; None: the peer is who it says. EapError if it is not, ParseError."""

    def success(self) -> bytes:
        """What tells the peer so."""

    def failure(self) -> bytes:
        """What tells the peer that it is not."""


class EapServer:
    """One conversation with a server that we are ourselves."""

    def __init__(
        self,
        ask: bool,
        identified: Callable[[bytes], None],
        methods: Callable[[], Collection[int]],
        make: Callable[[int], ServerMethod],
        identifier: int = 0,
    ) -> None:
        """``ask`` for the peer's identity, which ``identified`` is told; then ``methods`` says what is offered, best
        first, and ``make`` gives one of them. ``identifier`` of the first request, any octet."""
        self._asks = ask
        self._identified = identified
        self._methods = methods
        self._make = make
        self._identifier = identifier & 0xFF
        self._rounds = 0
        self._method: ServerMethod | None = None
        self._agreed = False
        self._refused: set[int] = set()

    @property
    def msk(self) -> bytes | None:
        """See ``Server``."""
        return self._method.msk if self._method is not None else None

    @property
    def gave_up(self) -> EapError | None:
        """See ``Server``."""
        return self._method.gave_up if self._method is not None else None

    @property
    def method(self) -> int:
        """The EapType that goes on, 0 before there is one."""
        return self._method.type if self._method is not None else 0

    def begin(self) -> bytes:
        """See ``Server``."""
        if self._asks:
            return EapPacket(EapCode.REQUEST, self._identifier, EapType.IDENTITY).emit()
        return self._propose(self._methods())

    def receive(self, data: bytes) -> bytes | None:
        """See ``Server``. After any exception but those two it can be called with the same packet again."""
        packet = parse_eap_packet(data)
        if packet.code != EapCode.RESPONSE or packet.identifier != self._identifier:
            raise ParseError(f"EAP {packet}, the response to request {self._identifier} was due")
        if self._rounds >= ROUNDS_MAX:
            raise EapError(f"more than {ROUNDS_MAX} EAP responses")
        kind = packet.type if not packet.vendor else 0
        if self._method is None:
            if kind != EapType.IDENTITY or len(packet.data) > IDENTITY_MAX:
                raise ParseError(f"EAP {packet} of {len(packet.data)} octets, an identity was due")
            self._identified(packet.data)
            self._asks = False
            return self._propose(self._methods())
        if kind == EapType.NAK and not self._agreed:
            return self._propose_another(packet.data)
        if kind != self._method.type:
            raise ParseError(f"EAP {packet}, {eap_name(self._method.type)} was due")
        following = self._next()
        request = self._method.take(self._identifier, packet.data, following)
        self._agreed = True
        return None if request is None else self._ask(following, self._method.type, request)

    def success(self) -> bytes:
        """See ``Server``."""
        return EapPacket(EapCode.SUCCESS, self._identifier).emit()

    def failure(self) -> bytes:
        """See ``Server``."""
        return EapPacket(EapCode.FAILURE, self._identifier).emit()

    def _next(self) -> int:
        return (self._identifier + 1) & 0xFF

    def _ask(self, identifier: int, kind: int, data: bytes) -> bytes:
        self._identifier = identifier
        self._rounds += 1
        return EapPacket(EapCode.REQUEST, identifier, kind, data).emit()

    def _propose(self, methods: Collection[int]) -> bytes:
        kind = next((kind for kind in methods if kind not in self._refused), None)
        if kind is None:
            offered = ", ".join(map(eap_name, self._methods())) or "none"
            raise EapError(f"no EAP method is left that we have; ours: {offered}")
        self._method = self._make(kind)
        following = self._next()
        return self._ask(following, kind, self._method.begin(following))

    def _propose_another(self, wanted: bytes) -> bytes:
        """Section 5.3.1: the peer names what it would take instead, 0 for nothing."""
        assert self._method is not None
        self._refused.add(self._method.type)
        ours = [kind for kind in self._methods() if kind in wanted and kind not in self._refused]
        if not ours:
            names = ", ".join(eap_name(kind) for kind in wanted[:8] if kind) or "nothing else"
            raise EapError(f"the peer does not take {eap_name(self._method.type)}, it wants {names}")
        return self._propose(ours)
