"""EAP with a server that is somebody else, such as RADIUS (RFC 3579): packets go through, its verdict counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, EapSilentError
from ipsec.ike.eap.peer import ROUNDS_MAX
from ipsec.ike.eap.server import IDENTITY_MAX
from ipsec.wire.eap import EapPacket, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Granted:
    """What the server says of a peer besides that it is accepted, as far as it is of use."""

    user_name: bytes = b""
    "whom the server takes the peer for; empty: it does not say"
    framed: tuple[IpAddress, ...] = ()
    "virtual addresses for the peer"
    dns: tuple[IpAddress, ...] = ()
    session_timeout: int | None = None
    "seconds after which the peer has to authenticate itself anew"
    filter_ids: tuple[bytes, ...] = ()
    classes: tuple[bytes, ...] = ()
    "to be told with accounting; often used for groups"
    interim_interval: int | None = None
    "seconds after which it wants to hear again what has passed"
    asked: bytes = b""
    "whom it was asked about, in the octets that it was given"

    @property
    def groups(self) -> tuple[bytes, ...]:
        """What the peer is a member of."""
        return self.classes + self.filter_ids


NOTHING_GRANTED = Granted()


@dataclass(frozen=True)
class EapAnswer:
    """What the server, or nobody, has said to a packet of the peer's."""

    packet: bytes | None
    "for the peer, as the server sent it; None if it sent none or what is malformed: only the verdict counts"
    accepted: bool | None
    "None: it goes on"
    msk: bytes | None = field(default=None, repr=False)
    "with the verdict, if the method has made a key"
    reason: str = ""
    "why there is no better answer, for our log"
    granted: Granted = NOTHING_GRANTED
    "with acceptance"
    silent: bool = False
    "nobody has answered, so the peer is not accepted"


class EapAnswerNeededError(Exception):
    """The server has to be asked first. Not an error of anybody's: the same again when ``answer`` is set."""

    def __init__(self, server: EapRelay, identity: bytes, packet: bytes) -> None:
        self.server = server
        self.identity = identity
        self.packet = packet
        super().__init__("the EAP server has not answered yet")


class EapRelay:
    """One conversation; see ``ipsec.ike.eap.server.Server``.

    The server's first packet comes of the peer's identity, which is asked for, or said for it (RFC 3579 section 2.1).
    """

    def __init__(self, ask: bool, identified: Callable[[bytes], None], identity: bytes, identifier: int = 0) -> None:
        """``ask`` for the identity, which ``identified`` is told and may refuse with EapError; else it is ``identity``.
        ``identifier`` of the first request, any octet."""
        self._asks = ask
        self._identified = identified
        self._identity = identity
        self._identifier = identifier & 0xFF
        self._end: bytes | None = None
        self._rounds = 0
        self.answer: EapAnswer | None = None
        "of the server, to the packet that it was asked about"
        self.msk: bytes | None = None
        self.granted = NOTHING_GRANTED
        "with success"
        self.method = 0
        "the EapType that goes on, 0 before there is one"
        self.gave_up: EapError | None = None
        "the server's own concern"

    def begin(self) -> bytes:
        """See ``Server``. EapAnswerNeededError."""
        if self._asks:
            return EapPacket(EapCode.REQUEST, self._identifier, EapType.IDENTITY).emit()
        said = EapPacket(EapCode.RESPONSE, self._identifier, EapType.IDENTITY, self._identity).emit()
        request = self._go_on(said)
        if request is None:
            raise EapError("the EAP server accepts the peer before any method")
        return request

    def receive(self, data: bytes) -> bytes | None:
        """See ``Server``. EapAnswerNeededError."""
        packet = parse_eap_packet(data)
        if packet.code != EapCode.RESPONSE or packet.identifier != self._identifier:
            raise ParseError(f"EAP {packet}, the response to request {self._identifier} was due")
        if self._asks and self.answer is None:
            if packet.type != EapType.IDENTITY or packet.vendor or len(packet.data) > IDENTITY_MAX:
                raise ParseError(f"EAP {packet} of {len(packet.data)} octets, an identity was due")
            self._identity = packet.data
            self._identified(packet.data)
        return self._go_on(data)

    def success(self) -> bytes:
        """See ``Server``."""
        return _last(self._end, EapCode.SUCCESS) or EapPacket(EapCode.SUCCESS, self._identifier).emit()

    def failure(self) -> bytes:
        """See ``Server``."""
        # whom the server accepts may still be none for us
        return _last(self._end, EapCode.FAILURE) or EapPacket(EapCode.FAILURE, self._identifier).emit()

    def _go_on(self, data: bytes) -> bytes | None:
        answer, self.answer = self.answer, None
        if answer is None:
            raise EapAnswerNeededError(self, self._identity, data)
        self._asks = False
        if answer.accepted is None:
            return self._request(answer.packet)
        self._end = _last(answer.packet, EapCode.SUCCESS if answer.accepted else EapCode.FAILURE)
        if not answer.accepted:
            why = answer.reason or "the EAP server refuses the peer"
            raise EapSilentError(why) if answer.silent else EapError(why)
        self.msk, self.granted = answer.msk, replace(answer.granted, asked=self._identity)
        return None

    def _request(self, data: bytes | None) -> bytes:
        """What the server asks the peer."""
        try:
            packet = parse_eap_packet(data or b"")
        except ParseError as error:
            raise EapError(f"the EAP server sends what is none: {error}") from None
        if packet.code != EapCode.REQUEST:
            raise EapError(f"the EAP server goes on with {packet}")
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            raise EapError(f"more than {ROUNDS_MAX} EAP requests")
        self._identifier = packet.identifier
        if packet.type not in (EapType.IDENTITY, EapType.NOTIFICATION):
            self.method = packet.type
        return packet.emit()


def _last(data: bytes | None, code: int) -> bytes | None:
    """The server's own last packet, if it says the same as its verdict does (RFC 3579 section 2.6.3)."""
    try:
        packet = parse_eap_packet(data or b"")
    except ParseError:
        return None
    return packet.emit() if packet.code == code else None
