"""Accounting by RADIUS (RFC 2866), sans-IO: what a record says, and what an answer to it means.

A session is what one authentication has let in: an IKE_SA with all that take its place by rekeying, and all their
CHILD_SAs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from ipsec.crypto.radius import is_acknowledged, seal_accounting
from ipsec.errors import ParseError
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.failure import Cause
from ipsec.ike.radius.exchange import Caller, RadiusError, describe
from ipsec.ike.radius.server import RadiusServer
from ipsec.wire.radius import RadiusAttribute as A
from ipsec.wire.radius import RadiusCode, RadiusPacket, parse_radius_packet

IpAddress = IPv4Address | IPv6Address
Attributes = tuple[tuple[int, bytes], ...]

#: Acct-Authentic (RFC 2866 section 5.6): by RADIUS
_BY_RADIUS = 1
#: RFC 2869 section 5.16: no server may want interim records more often
INTERIM_MIN_S = 60


class Status(IntEnum):
    """Acct-Status-Type (RFC 2866 section 5.1)."""

    START = 1
    STOP = 2
    INTERIM = 3


class TerminateCause(IntEnum):
    """Acct-Terminate-Cause (RFC 2866 section 5.10)."""

    USER_REQUEST = 1
    LOST_SERVICE = 3
    SESSION_TIMEOUT = 5
    ADMIN_RESET = 6
    ADMIN_REBOOT = 7
    NAS_ERROR = 9


#: why an IKE_SA is gone, as charon has it where it has such a thing; what is not here is our own doing
_CAUSES = {
    Cause.CLOSED: TerminateCause.USER_REQUEST,
    Cause.NO_ANSWER: TerminateCause.LOST_SERVICE,
    Cause.RESTARTED: TerminateCause.LOST_SERVICE,
    Cause.EXPIRED: TerminateCause.SESSION_TIMEOUT,
    Cause.BUG: TerminateCause.NAS_ERROR,
}


def terminate_cause(cause: Cause | None, *, over: bool, stopping: bool) -> TerminateCause:
    """What to say of an IKE_SA that has gone by ``cause``; ``over``: its time was, ``stopping``: the daemon ends."""
    if stopping:
        return TerminateCause.ADMIN_REBOOT
    if over:
        return TerminateCause.SESSION_TIMEOUT
    return _CAUSES.get(cause, TerminateCause.ADMIN_RESET) if cause is not None else TerminateCause.ADMIN_RESET


@dataclass(frozen=True)
class Usage:
    """What has passed since the session began: octets of inner packets, and packets."""

    octets_in: int = 0
    packets_in: int = 0
    "from the peer"
    octets_out: int = 0
    packets_out: int = 0


@dataclass(frozen=True)
class Session:
    """What is the same in all records of a session."""

    id: str
    user: bytes
    caller: Caller
    addresses: tuple[IpAddress, ...] = ()
    "virtual ones that the peer has"
    classes: tuple[bytes, ...] = ()
    "as the server said them"


def record(
    session: Session,
    status: Status,
    wall: int,
    usage: Usage | None = None,
    seconds: int = 0,
    cause: TerminateCause | None = None,
) -> Attributes:
    """The attributes of one record. ``wall``: when that was, in seconds since 1970; ``usage`` and how many ``seconds``
    it has taken are for all but the first one, ``cause`` for the last one."""
    found: list[tuple[int, bytes]] = [
        (A.ACCT_STATUS_TYPE, _number(status)),
        (A.ACCT_SESSION_ID, session.id.encode()),
        (A.ACCT_AUTHENTIC, _number(_BY_RADIUS)),
        # it stays right however often the record is sent again, where Acct-Delay-Time would not (RFC 2869 section 5.3)
        (A.EVENT_TIMESTAMP, _number(wall)),
        *describe(session.caller, session.user),
    ]
    for address in session.addresses:
        kind = A.FRAMED_IP_ADDRESS if address.version == 4 else A.FRAMED_IPV6_ADDRESS
        found.append((kind, address.packed))
    if usage is not None:
        found += [
            *_counter(A.ACCT_INPUT_OCTETS, A.ACCT_INPUT_GIGAWORDS, usage.octets_in),
            *_counter(A.ACCT_OUTPUT_OCTETS, A.ACCT_OUTPUT_GIGAWORDS, usage.octets_out),
            (A.ACCT_INPUT_PACKETS, _number(usage.packets_in)),
            (A.ACCT_OUTPUT_PACKETS, _number(usage.packets_out)),
            (A.ACCT_SESSION_TIME, _number(seconds)),
        ]
    if cause is not None:
        found.append((A.ACCT_TERMINATE_CAUSE, _number(cause)))
    return (*found, *((int(A.CLASS), one) for one in session.classes))


def _number(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


def _counter(low: A, high: A, value: int) -> list[tuple[int, bytes]]:
    """A number of octets, and how often it has gone beyond 32 bits (RFC 2869 section 5.1)."""
    wraps = value >> 32
    return [(low, _number(value)), *([(int(high), _number(wraps))] if wraps else [])]


class AccountingExchange:
    """One record and its acknowledgement; see ``ipsec.ike.radius.requests.Exchange``."""

    bound = False

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes

    def request(self, server: RadiusServer, identifier: int, authenticator: bytes, eap: bytes) -> bytes:
        """The Accounting-Request. Its authenticator is made from it, and there is no EAP. ParseError."""
        named = ((int(A.NAS_IDENTIFIER), server.nas_identifier.encode()), *self._attributes)
        try:
            return seal_accounting(identifier, named, server.secret)
        except ValueError as error:
            raise ParseError(str(error)) from None

    def open(self, data: bytes, server: RadiusServer, identifier: int, authenticator: bytes) -> RadiusPacket:
        """The answer, if it is one. RadiusError."""
        try:
            response = parse_radius_packet(data)
        except ParseError as error:
            raise RadiusError("malformed", str(error)) from None
        if response.code != RadiusCode.ACCOUNTING_RESPONSE or response.identifier != identifier:
            raise RadiusError("unexpected", f"{response} is no answer to record {identifier}")
        if not is_acknowledged(response, authenticator, server.secret):
            raise RadiusError("unauthentic", f"{response} is not made with our secret for our record")
        return response

    def take(self, response: RadiusPacket, server: RadiusServer, authenticator: bytes) -> EapAnswer:
        """The server has it."""
        return EapAnswer(None, True)
