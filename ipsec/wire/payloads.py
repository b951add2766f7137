"""The payloads of IKEv2 (RFC 7296 sections 3.3 to 3.16): one class each, one function that parses its body.

A body is what follows the generic payload header. ``parse_x(data, offset, end)`` reads ``data[offset:end]`` and raises
ParseError alone. ``payload.emit()`` gives the body back; a value too large for its field raises, which
``emit_payloads`` turns into ValueError. Reserved fields are sent as zero and ignored when received. Which payload may
be where is in ``ipsec.wire.ike``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from ipsec.errors import ConfigError, ParseError
from ipsec.wire.iana import PayloadType, Protocol, TsType
from ipsec.wire.proposal import Proposal, emit_proposals, parse_proposals
from ipsec.wire.selector import TrafficSelector

NONCE_MIN, NONCE_MAX = 16, 256
"octets (RFC 7296 section 3.9)"

_TYPED = struct.Struct("!Hxx")  # KE
_OCTET = struct.Struct("!B3x")  # AUTH, TS, CP
_NOTIFY = struct.Struct("!BBH")
_PAIR = struct.Struct("!HH")  # attribute of CP: type, length
_SELECTOR = struct.Struct("!BBHHH")  # type, protocol, length, ports
_TS_LENGTHS: dict[int, int] = {TsType.IPV4_ADDR_RANGE: 16, TsType.IPV6_ADDR_RANGE: 40}


@dataclass(slots=True)
class SaPayload:
    """Security Association, section 3.3."""

    type: ClassVar[int] = PayloadType.SA
    proposals: list[Proposal]

    def emit(self) -> bytes:
        """The body."""
        return emit_proposals(self.proposals)


def parse_sa(data: bytes, offset: int, end: int) -> SaPayload:
    """SA."""
    return SaPayload(parse_proposals(data, offset, end))


@dataclass(slots=True)
class KePayload:
    """Key Exchange, section 3.4. Whether ``data`` fits the method is for the key exchange to say."""

    type: ClassVar[int] = PayloadType.KE
    method: int
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.method.to_bytes(2, "big") + b"\0\0" + self.data


def parse_ke(data: bytes, offset: int, end: int) -> KePayload:
    """KE."""
    if end - offset < 4:
        raise ParseError("KE payload cut short")
    return KePayload(_TYPED.unpack_from(data, offset)[0], data[offset + 4 : end])


@dataclass(slots=True)
class IdPayload:
    """Identification, section 3.5, of the initiator or the responder."""

    type: int
    "PayloadType.IDI or IDR"
    id_type: int
    data: bytes
    reserved: bytes = b"\0\0\0"
    "as received: AUTH covers it (section 2.15)"

    def body(self) -> bytes:
        """What AUTH covers: all of the payload but its generic header, the reserved octets as they came."""
        return self.id_type.to_bytes(1, "big") + self.reserved + self.data

    emit = body


def parse_idi(data: bytes, offset: int, end: int) -> IdPayload:
    """IDi."""
    if end - offset < 4:
        raise ParseError("IDi payload cut short")
    return IdPayload(35, data[offset], data[offset + 4 : end], data[offset + 1 : offset + 4])


def parse_idr(data: bytes, offset: int, end: int) -> IdPayload:
    """IDr."""
    if end - offset < 4:
        raise ParseError("IDr payload cut short")
    return IdPayload(36, data[offset], data[offset + 4 : end], data[offset + 1 : offset + 4])


@dataclass(slots=True)
class CertPayload:
    """Certificate, section 3.6."""

    type: ClassVar[int] = PayloadType.CERT
    encoding: int
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.encoding.to_bytes(1, "big") + self.data


def parse_cert(data: bytes, offset: int, end: int) -> CertPayload:
    """CERT."""
    if end <= offset:
        raise ParseError("CERT payload cut short")
    return CertPayload(data[offset], data[offset + 1 : end])


@dataclass(slots=True)
class CertReqPayload:
    """Certificate Request, section 3.7."""

    type: ClassVar[int] = PayloadType.CERTREQ
    encoding: int
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.encoding.to_bytes(1, "big") + self.data


def parse_certreq(data: bytes, offset: int, end: int) -> CertReqPayload:
    """CERTREQ."""
    if end <= offset:
        raise ParseError("CERTREQ payload cut short")
    return CertReqPayload(data[offset], data[offset + 1 : end])


@dataclass(slots=True)
class AuthPayload:
    """Authentication, section 3.8."""

    type: ClassVar[int] = PayloadType.AUTH
    method: int
    data: bytes = field(repr=False)

    def emit(self) -> bytes:
        """The body."""
        return self.method.to_bytes(1, "big") + b"\0\0\0" + self.data


def parse_auth(data: bytes, offset: int, end: int) -> AuthPayload:
    """AUTH."""
    if end - offset < 4:
        raise ParseError("AUTH payload cut short")
    return AuthPayload(data[offset], data[offset + 4 : end])


@dataclass(slots=True)
class NoncePayload:
    """Nonce, section 3.9."""

    type: ClassVar[int] = PayloadType.NONCE
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.data


def parse_nonce(data: bytes, offset: int, end: int) -> NoncePayload:
    """Ni, Nr."""
    if not NONCE_MIN <= end - offset <= NONCE_MAX:
        raise ParseError(f"nonce of {end - offset} octets, not {NONCE_MIN} to {NONCE_MAX}")
    return NoncePayload(data[offset:end])


@dataclass(slots=True)
class NotifyPayload:
    """Notify, section 3.10. Protocol and SPI mean something for a few types only, so any are taken."""

    type: ClassVar[int] = PayloadType.NOTIFY
    notify: int
    data: bytes = b""
    protocol: int = 0
    spi: bytes = b""

    def emit(self) -> bytes:
        """The body."""
        return _NOTIFY.pack(self.protocol, len(self.spi), self.notify) + self.spi + self.data


def parse_notify(data: bytes, offset: int, end: int) -> NotifyPayload:
    """N."""
    start = offset + 4
    if start > end:
        raise ParseError("N payload cut short")
    protocol, spi_size, notify = _NOTIFY.unpack_from(data, offset)
    if not spi_size:
        return NotifyPayload(notify, data[start:end], protocol)
    if start + spi_size > end:
        raise ParseError(f"N payload: SPI of {spi_size} octets does not fit")
    return NotifyPayload(notify, data[start + spi_size : end], protocol, data[start : start + spi_size])


@dataclass(slots=True)
class DeletePayload:
    """Delete, section 3.11. ``spis`` is empty for the IKE SA, which is the one that carries the message."""

    type: ClassVar[int] = PayloadType.DELETE
    protocol: int
    spis: list[bytes]

    def emit(self) -> bytes:
        """The body."""
        size = len(self.spis[0]) if self.spis else 0 if self.protocol == Protocol.IKE else 4
        if any(len(spi) != size for spi in self.spis):
            raise ValueError("SPIs of one Delete payload differ in size")
        return _NOTIFY.pack(self.protocol, size, len(self.spis)) + b"".join(self.spis)


def parse_delete(data: bytes, offset: int, end: int) -> DeletePayload:
    """D."""
    start = offset + 4
    if start > end:
        raise ParseError("D payload cut short")
    protocol, size, count = _NOTIFY.unpack_from(data, offset)
    if size * count != end - start:
        raise ParseError(f"D payload: {count} SPIs of {size} octets do not fill it")
    if (protocol == Protocol.IKE and size) or (protocol in (Protocol.AH, Protocol.ESP) and size != 4):
        raise ParseError(f"D payload: SPIs of {size} octets for protocol {protocol}")
    # a count of SPIs that have no octets says nothing, and is no reason to make 65535 objects
    return DeletePayload(protocol, [data[at : at + size] for at in range(start, end, size)] if size else [])


@dataclass(slots=True)
class VendorPayload:
    """Vendor ID, section 3.12."""

    type: ClassVar[int] = PayloadType.VENDOR
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.data


def parse_vendor(data: bytes, offset: int, end: int) -> VendorPayload:
    """V."""
    return VendorPayload(data[offset:end])


@dataclass(slots=True)
class TsPayload:
    """Traffic Selectors, section 3.13, of the initiator or the responder."""

    type: int
    "PayloadType.TSI or TSR"
    selectors: list[TrafficSelector]
    "those of a type we know; empty when there was none"

    def emit(self) -> bytes:
        """The body."""
        if len(self.selectors) > 255:
            raise ValueError(f"{len(self.selectors)} traffic selectors, more than 255")
        return _OCTET.pack(len(self.selectors)) + b"".join([_emit_selector(ts) for ts in self.selectors])


def parse_tsi(data: bytes, offset: int, end: int) -> TsPayload:
    """TSi."""
    return TsPayload(44, _parse_selectors(data, offset, end))


def parse_tsr(data: bytes, offset: int, end: int) -> TsPayload:
    """TSr."""
    return TsPayload(45, _parse_selectors(data, offset, end))


def _parse_selectors(data: bytes, offset: int, end: int) -> list[TrafficSelector]:
    if end - offset < 4:
        raise ParseError("TS payload cut short")
    count = data[offset]
    offset += 4
    selectors = []
    for _ in range(count):
        if end - offset < 4:
            raise ParseError("TS payload: traffic selector cut short")
        length = data[offset + 2] << 8 | data[offset + 3]
        stop = offset + length
        if length < 4 or stop > end:
            raise ParseError(f"TS payload: traffic selector of {length} octets does not fit")
        known = _TS_LENGTHS.get(data[offset])
        # a type we do not know is no selector that we could agree to (2.9): the rest may do
        if known is not None:
            if length != known:
                raise ParseError(f"TS payload: traffic selector of {length} octets, not {known}")
            selectors.append(_parse_selector(data[offset:stop]))
        offset = stop
    if offset != end:
        raise ParseError("TS payload: octets after the last traffic selector")
    return selectors


@lru_cache(maxsize=1024)
def _parse_selector(octets: bytes) -> TrafficSelector:
    """One selector of a type and length that go together. Peers and their children share most of them."""
    type_, protocol, length, low, high = _SELECTOR.unpack_from(octets)
    middle = (8 + length) // 2
    address = IPv4Address if type_ == TsType.IPV4_ADDR_RANGE else IPv6Address
    try:
        return TrafficSelector(address(octets[8:middle]), address(octets[middle:]), protocol, (low, high))
    except ConfigError as e:
        raise ParseError(f"TS payload: {e.message}") from None


def _emit_selector(ts: TrafficSelector) -> bytes:
    type_ = TsType.IPV4_ADDR_RANGE if ts.version == 4 else TsType.IPV6_ADDR_RANGE
    return _SELECTOR.pack(type_, ts.protocol, _TS_LENGTHS[type_], *ts.ports) + ts.start.packed + ts.end.packed


@dataclass(slots=True)
class CpPayload:
    """Configuration, section 3.15."""

    type: ClassVar[int] = PayloadType.CP
    cfg_type: int
    attributes: list[tuple[int, bytes]]
    "attribute type, 15 bits, and value; empty values ask"

    def emit(self) -> bytes:
        """The body."""
        parts = [self.cfg_type.to_bytes(1, "big"), b"\0\0\0"]
        for attribute, value in self.attributes:
            if not 0 <= attribute < 0x8000 or len(value) > 0xFFFF:
                raise ValueError(f"configuration attribute {attribute} of {len(value)} octets")
            parts += (_PAIR.pack(attribute, len(value)), value)
        return b"".join(parts)


def parse_cp(data: bytes, offset: int, end: int) -> CpPayload:
    """CP."""
    if end - offset < 4:
        raise ParseError("CP payload cut short")
    cfg_type = data[offset]
    offset += 4
    attributes = []
    while offset < end:
        start = offset + 4
        if start > end:
            raise ParseError("CP payload: attribute cut short")
        attribute, length = _PAIR.unpack_from(data, offset)
        offset = start + length
        if offset > end:
            raise ParseError(f"CP payload: attribute of {length} octets does not fit")
        # the highest bit is reserved
        attributes.append((attribute & 0x7FFF, data[start:offset]))
    return CpPayload(cfg_type, attributes)


@dataclass(slots=True)
class EapPayload:
    """Extensible Authentication, section 3.16: one EAP message (RFC 3748 section 4)."""

    type: ClassVar[int] = PayloadType.EAP
    data: bytes = field(repr=False)
    "at least code, identifier and length, which is that of ``data``"

    def emit(self) -> bytes:
        """The body."""
        return self.data


def parse_eap(data: bytes, offset: int, end: int) -> EapPayload:
    """EAP."""
    size = end - offset
    if size < 4 or data[offset + 2] << 8 | data[offset + 3] != size:
        raise ParseError(f"EAP payload: {size} octets are not the length the message says")
    return EapPayload(data[offset:end])


@dataclass(slots=True)
class UnknownPayload:
    """A payload of a type that we do not know and that is not critical (section 2.5)."""

    type: int
    critical: bool
    data: bytes

    def emit(self) -> bytes:
        """The body."""
        return self.data


Payload = (
    SaPayload
    | KePayload
    | IdPayload
    | CertPayload
    | CertReqPayload
    | AuthPayload
    | NoncePayload
    | NotifyPayload
    | DeletePayload
    | VendorPayload
    | TsPayload
    | CpPayload
    | EapPayload
    | UnknownPayload
)
