"""The peer of EAP (RFC 3748 section 4): it says who it is, agrees to a method, and believes in success only if the
method does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, EapRefusedError, PeerMethod
from ipsec.text import printable
from ipsec.wire.eap import EapPacket, eap_name, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

log = logging.getLogger(__name__)

#: requests of one conversation. EAP-TLS with the longest chains that it takes has fewer
ROUNDS_MAX = 200
#: octets of a notification that are worth a place in the log
_SHOWN = 200


class EapPeer:
    """One conversation."""

    def __init__(self, identity: bytes, methods: Collection[int], make: Callable[[int], PeerMethod]) -> None:
        """``methods``: EapTypes that we agree to, best first; ``make`` gives one of them, or raises EapError."""
        self._identity = identity
        self._methods = tuple(methods)
        self._make = make
        self._rounds = 0
        self.method: PeerMethod | None = None
        "the one that goes on"

    @property
    def msk(self) -> bytes | None:
        """The key, once it has succeeded; None if the method makes none."""
        return self.method.msk if self.method is not None else None

    def receive(self, data: bytes) -> bytes | None:
        """The response to a packet; None: it has succeeded. EapError if it has not, ParseError."""
        packet = parse_eap_packet(data)
        self._rounds += 1
        if packet.code == EapCode.SUCCESS:
            if self.method is None or not self.method.finished:
                # CVE-2021-45079: nobody has shown that he knows anything
                raise EapError("EAP-Success before the method was done")
            return None
        if packet.code == EapCode.FAILURE:
            if self.method is not None and self.method.gave_up is not None:
                raise self.method.gave_up
            raise EapRefusedError(self._why_not())
        if packet.code != EapCode.REQUEST:
            raise ParseError(f"EAP {packet}, a request was due")
        if self._rounds > ROUNDS_MAX:
            raise EapError(f"more than {ROUNDS_MAX} EAP requests")
        return self._answer(packet).emit()

    def _why_not(self) -> str:
        if self.method is None:
            return "EAP-Failure before any method"
        said = f": {self.method.failure}" if self.method.failure else ""
        return f"EAP-Failure after {eap_name(self.method.type)}{said}"

    def _answer(self, request: EapPacket) -> EapPacket:
        respond = EapCode.RESPONSE, request.identifier
        kind = request.type if not request.vendor else 0
        if kind == EapType.NOTIFICATION:
            # section 5.2: for whoever reads the log
            log.info("the EAP server says: %s", printable(request.data[:_SHOWN].decode("utf-8", "replace")))
            return EapPacket(*respond, EapType.NOTIFICATION)
        if self.method is not None:
            if kind != self.method.type:
                # section 2.1: one method per conversation
                raise EapError(f"the server goes from {eap_name(self.method.type)} to {_named(request)}")
            return EapPacket(*respond, kind, self.method.respond(request.identifier, request.data))
        if kind == EapType.IDENTITY:
            return EapPacket(*respond, EapType.IDENTITY, self._identity)
        if kind not in self._methods:
            log.info("the EAP server wants %s, we ask for %s", _named(request), ", ".join(map(eap_name, self._methods)))
            return EapPacket(*respond, EapType.NAK, bytes(self._methods))
        self.method = self._make(kind)
        return EapPacket(*respond, kind, self.method.respond(request.identifier, request.data))


def _named(packet: EapPacket) -> str:
    return eap_name(packet.type, packet.vendor)
