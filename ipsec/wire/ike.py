"""IKEv2 messages (RFC 7296 sections 3.1, 3.2, 3.14; RFC 7383): header, chain of payloads, where SK begins.

``LEGAL`` is the one table of payload types: the parser, and the exchanges in which the payload may be in clear or
protected. What is not in it is unknown (section 2.5); what is in it, but not for the exchange, is malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ipsec.errors import ParseError
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType, name_of
from ipsec.wire.payloads import (
    Payload,
    UnknownPayload,
    parse_auth,
    parse_cert,
    parse_certreq,
    parse_cp,
    parse_delete,
    parse_eap,
    parse_idi,
    parse_idr,
    parse_ke,
    parse_nonce,
    parse_notify,
    parse_sa,
    parse_tsi,
    parse_tsr,
    parse_vendor,
)

HEADER_LEN = 28
FLAG_INITIATOR = 0x08
"sent by the original initiator of the IKE SA"
FLAG_RESPONSE = 0x20
MAJOR_VERSION = 2
MAX_PAYLOADS = 100
"in clear, and again inside SK"

_HEADER = struct.Struct("!8s8sBBBBII")  # SPIs, next payload, version, exchange, flags, message id, length
_GENERIC = struct.Struct("!BBH")  # next payload, critical bit and reserved, length
_FRAGMENT = struct.Struct("!HH")  # number, total (RFC 7383 section 2.5)
_CRITICAL = 0x80
#: size of SPI and type of a COOKIE notification (section 3.10), whatever its protocol is
_COOKIE = bytes(1) + NotifyType.COOKIE.to_bytes(2, "big")


class UnsupportedCriticalPayload(ParseError):
    """A payload that we do not know, and that the peer says we must (section 2.5)."""

    def __init__(self, payload_type: int) -> None:
        self.payload_type = payload_type
        super().__init__(f"unknown critical payload {payload_type}")


class Header(NamedTuple):
    """The IKE header."""

    spi_i: bytes
    spi_r: bytes
    next_payload: int
    major: int
    minor: int
    exchange: int
    flags: int
    message_id: int
    length: int
    "octets of the whole message"

    @property
    def initiator(self) -> bool:
        """Whether the sender is the original initiator of the IKE SA."""
        return bool(self.flags & FLAG_INITIATOR)

    @property
    def response(self) -> bool:
        """Whether this answers a request of the same message id."""
        return bool(self.flags & FLAG_RESPONSE)


class Encrypted(NamedTuple):
    """Where the SK or SKF payload of a message is."""

    type: int
    "PayloadType.SK or SKF"
    first: int
    "type of the first payload inside; of an SKF, only that in fragment 1 counts (RFC 7383 section 2.5)"
    offset: int
    "of the IV. All before it is the additional data of an AEAD (RFC 5282 section 5.1)"
    number: int
    "of the fragment, from 1"
    total: int
    "fragments"
    clear: list[Payload]
    "what came before it: not authenticated as coming from the peer until the ICV is checked"


class Rule(NamedTuple):
    """What ``LEGAL`` says of one payload type. None for exchanges is all, also those that we do not know."""

    parse: Callable[[bytes, int, int], Payload] | None
    "None: SK and SKF, see ``find_encrypted``"
    clear: frozenset[int] | None
    protected: frozenset[int] | None


_NOWHERE: frozenset[int] = frozenset()
_INIT = ExchangeType.IKE_SA_INIT
_AUTH = ExchangeType.IKE_AUTH
_CHILD = ExchangeType.CREATE_CHILD_SA
_INFO = ExchangeType.INFORMATIONAL
_RESUME = ExchangeType.IKE_SESSION_RESUME
_INTERMEDIATE = ExchangeType.IKE_INTERMEDIATE
_FOLLOWUP = ExchangeType.IKE_FOLLOWUP_KE
#: IKE_SA_INIT and IKE_SESSION_RESUME have no keys yet (section 1.2; RFC 5723 section 4.3.2)
_KEYED = frozenset(range(256)) - {_INIT, _RESUME}

#: RFC 7296 appendix C, RFC 5723, RFC 9242, RFC 9370. N and V may be in any message.
LEGAL: dict[int, Rule] = {
    PayloadType.SA: Rule(parse_sa, frozenset((_INIT,)), frozenset((_AUTH, _CHILD))),
    PayloadType.KE: Rule(parse_ke, frozenset((_INIT,)), frozenset((_CHILD, _INTERMEDIATE, _FOLLOWUP))),
    PayloadType.IDI: Rule(parse_idi, _NOWHERE, frozenset((_AUTH,))),
    PayloadType.IDR: Rule(parse_idr, _NOWHERE, frozenset((_AUTH,))),
    PayloadType.CERT: Rule(parse_cert, _NOWHERE, frozenset((_AUTH,))),
    PayloadType.CERTREQ: Rule(parse_certreq, frozenset((_INIT,)), frozenset((_AUTH,))),
    PayloadType.AUTH: Rule(parse_auth, _NOWHERE, frozenset((_AUTH,))),
    PayloadType.NONCE: Rule(parse_nonce, frozenset((_INIT, _RESUME)), frozenset((_CHILD,))),
    PayloadType.NOTIFY: Rule(parse_notify, None, None),
    PayloadType.DELETE: Rule(parse_delete, _NOWHERE, frozenset((_INFO,))),
    PayloadType.VENDOR: Rule(parse_vendor, None, None),
    PayloadType.TSI: Rule(parse_tsi, _NOWHERE, frozenset((_AUTH, _CHILD))),
    PayloadType.TSR: Rule(parse_tsr, _NOWHERE, frozenset((_AUTH, _CHILD))),
    PayloadType.SK: Rule(None, _KEYED, _NOWHERE),
    PayloadType.CP: Rule(parse_cp, _NOWHERE, frozenset((_AUTH, _CHILD, _INFO))),
    PayloadType.EAP: Rule(parse_eap, _NOWHERE, frozenset((_AUTH,))),
    PayloadType.SKF: Rule(None, _KEYED, _NOWHERE),
}


def parse_header(data: bytes | memoryview) -> Header:
    """The header of the datagram ``data``. ParseError when it is too short, or not as long as the header says.

    The versions are not judged: another major version is answered, another minor one is ignored (section 2.5).
    """
    if len(data) < HEADER_LEN:
        raise ParseError(f"IKE message of {len(data)} octets is shorter than its header")
    spi_i, spi_r, next_payload, version, exchange, flags, message_id, length = _HEADER.unpack_from(data)
    if length != len(data):
        raise ParseError(f"IKE message of {len(data)} octets says it has {length}")
    return Header(spi_i, spi_r, next_payload, version >> 4, version & 0xF, exchange, flags, message_id, length)


def emit_header(
    spi_i: bytes, spi_r: bytes, next_payload: int, exchange: int, flags: int, message_id: int, length: int
) -> bytes:
    """The header of a message of ``length`` octets, in our version."""
    return _HEADER.pack(spi_i, spi_r, next_payload, MAJOR_VERSION << 4, exchange, flags, message_id, length)


def parse_payloads(first: int, data: bytes | memoryview, exchange: int, protected: bool) -> list[Payload]:
    """The payloads that fill ``data``: what follows the header, or what was inside SK (``protected``).

    ``first`` is the type of the first, 0 for none. Raises UnsupportedCriticalPayload, else ParseError. Known payloads
    are judged by the exchange alone, not by direction, number or order: that is the exchange's business.
    """
    octets = bytes(data)
    payloads, type_, _ = _parse_chain(first, octets, 0, exchange, protected)
    if type_:
        raise ParseError(f"{name_of(PayloadType, type_)} payload in a message that should be in clear")
    return payloads


def skim_init(header: Header, data: bytes) -> tuple[bytes | None, bytes]:
    """Cookie, if there is one, and nonce of the IKE_SA_INIT request ``data``, the whole message. ParseError.

    Nothing else is looked at: this is what an answer to a flood may cost.
    """
    cookie: bytes | None = None
    nonce: bytes | None = None
    type_, offset, end = header.next_payload, HEADER_LEN, len(data)
    for _ in range(MAX_PAYLOADS):
        if not type_:
            break
        start = offset + _GENERIC.size
        if start > end:
            raise ParseError("message ends before its last payload")
        following, _, length = _GENERIC.unpack_from(data, offset)
        stop = offset + length
        if stop < start or stop > end:
            raise ParseError(f"payload of {length} octets does not fit")
        if type_ == PayloadType.NONCE:
            nonce = data[start:stop]
        elif type_ == PayloadType.NOTIFY and cookie is None and data[start + 1 : start + 4] == _COOKIE:
            cookie = data[start + 4 : stop]
        type_, offset = following, stop
    if nonce is None:
        raise ParseError("IKE_SA_INIT without a nonce")
    return cookie, nonce


def find_encrypted(header: Header, data: bytes | memoryview) -> Encrypted:
    """The SK or SKF payload of ``data``, which is the whole message. ParseError when it has none, or not as its last.

    Payloads in clear before it are parsed: unknown ones, N and V may be there.
    """
    octets = bytes(data)
    clear, type_, offset = _parse_chain(header.next_payload, octets, HEADER_LEN, header.exchange, False)
    if not type_:
        raise ParseError(f"{name_of(ExchangeType, header.exchange)} message without an encrypted payload")
    first, _, length = _GENERIC.unpack_from(octets, offset)
    # its Next Payload names what is inside, so that nothing can follow (section 3.14)
    if length != len(octets) - offset:
        raise ParseError(f"encrypted payload of {length} octets is not the rest of the message")
    if type_ == PayloadType.SK:
        return Encrypted(type_, first, offset + _GENERIC.size, 1, 1, clear)
    if length < _GENERIC.size + _FRAGMENT.size:
        raise ParseError("SKF payload cut short")
    number, total = _FRAGMENT.unpack_from(octets, offset + _GENERIC.size)
    if not 1 <= number <= total:
        raise ParseError(f"fragment {number} of {total}")
    return Encrypted(type_, first, offset + _GENERIC.size + _FRAGMENT.size, number, total, clear)


def emit_payloads(payloads: Sequence[Payload]) -> tuple[int, bytes]:
    """The type of the first payload (0 for none) and the octets of all. ValueError where a field does not fit."""
    parts: list[bytes] = []
    pack = _GENERIC.pack
    following = 0
    try:
        for payload in reversed(payloads):
            body = payload.emit()
            # critical is for what the peer may not know (section 2.5); types of RFC 7296 never have it
            flags = _CRITICAL if isinstance(payload, UnknownPayload) and payload.critical else 0
            parts += (body, pack(following, flags, 4 + len(body)))
            following = int(payload.type)
    except (struct.error, OverflowError) as e:
        raise ValueError(f"a payload has a value too large for its field: {e}") from None
    parts.reverse()
    return following, b"".join(parts)


def emit_encrypted_header(
    spi_i: bytes,
    spi_r: bytes,
    exchange: int,
    flags: int,
    message_id: int,
    first: int,
    length: int,
    fragment: tuple[int, int] | None = None,
) -> bytes:
    """All before the IV: the IKE header and that of SK, or of SKF for ``fragment`` (number, total).

    It is the additional data of an AEAD. ``length`` is the octets that follow: IV, ciphertext, padding and ICV.
    ``first`` is the type of the first payload inside; fragments but the first have 0 (RFC 7383 section 2.5).
    """
    size = _GENERIC.size + (_FRAGMENT.size if fragment else 0) + length
    if size > 0xFFFF:
        raise ValueError(f"encrypted payload of {size} octets")
    outer = PayloadType.SKF if fragment else PayloadType.SK
    header = emit_header(spi_i, spi_r, outer, exchange, flags, message_id, HEADER_LEN + size)
    header += _GENERIC.pack(first, 0, size)
    return header + _FRAGMENT.pack(*fragment) if fragment else header


def _parse_chain(
    type_: int, data: bytes, offset: int, exchange: int, protected: bool
) -> tuple[list[Payload], int, int]:
    """Payloads from ``offset`` on, up to the end of ``data`` or to an SK or SKF where one may be.

    Gives them, the type that stopped it (0 at the end) and its offset, at which there are at least four octets.
    """
    payloads: list[Payload] = []
    parsers = _parsers(exchange, protected)
    unpack = _GENERIC.unpack_from
    end = len(data)
    while type_:
        start = offset + 4
        if start > end:
            raise ParseError(f"message ends before its {name_of(PayloadType, type_)} payload")
        following, flags, length = unpack(data, offset)
        stop = offset + length
        if stop < start or stop > end:
            raise ParseError(f"{name_of(PayloadType, type_)} payload of {length} octets does not fit")
        if type_ in parsers:
            parse = parsers[type_]
            if parse is None:
                return payloads, type_, offset
            # the critical bit says nothing of a payload that we know (section 2.5)
            payload = parse(data, start, stop)
        else:
            payload = _parse_other(type_, data, start, stop, flags, exchange, protected)
        if len(payloads) == MAX_PAYLOADS:
            raise ParseError(f"more than {MAX_PAYLOADS} payloads")
        payloads.append(payload)
        type_, offset = following, stop
    if offset != end:
        raise ParseError(f"{end - offset} octets after the last payload")
    return payloads, 0, offset


def _parse_other(
    type_: int, data: bytes, start: int, stop: int, flags: int, exchange: int, protected: bool
) -> UnknownPayload:
    """A payload that ``_parsers`` does not have."""
    if type_ in LEGAL:
        how = "protected" if protected else "in clear"
        raise ParseError(f"{name_of(PayloadType, type_)} payload {how} in {name_of(ExchangeType, exchange)}")
    if flags & _CRITICAL:
        raise UnsupportedCriticalPayload(type_)
    return UnknownPayload(type_, False, data[start:stop])


@lru_cache(maxsize=512)
def _parsers(exchange: int, protected: bool) -> dict[int, Callable[[bytes, int, int], Payload] | None]:
    """``LEGAL`` for one exchange. There are 512 of them, most of them the same for N and V alone."""
    found = {}
    for type_, rule in LEGAL.items():
        exchanges = rule.protected if protected else rule.clear
        if exchanges is None or exchange in exchanges:
            found[int(type_)] = rule.parse
    return found
