"""EAP packets (RFC 3748 section 4): what is inside an EAP payload of IKEv2, and an EAP-Message of RADIUS.

    code identifier length                    Success, Failure
    code identifier length type type-data     Request, Response

An expanded type (section 5.7) that names no vendor is the same as the plain one, and is read and written as that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ipsec.errors import ParseError
from ipsec.wire.iana import EapCode, EapType, name_of

_HEADER = struct.Struct(">BBH")
#: octets of code, identifier and length
HEADER_LEN = _HEADER.size
#: the largest packet that the length field can say
PACKET_MAX = 0xFFFF


@dataclass(frozen=True, slots=True)
class EapPacket:
    """One packet. ``type`` is 0 for Success and Failure, which have no ``data`` either."""

    code: int
    identifier: int
    type: int = 0
    data: bytes = field(default=b"", repr=False)
    "Type-Data: what follows the type"
    vendor: int = 0
    "SMI number of who defined an expanded type, 0 for the IETF"

    def emit(self) -> bytes:
        """The octets. ValueError if that is more than the length can say."""
        body = b""
        if self.code in (EapCode.REQUEST, EapCode.RESPONSE):
            if self.vendor:
                first = EapType.EXPANDED << 24 | self.vendor
                body = struct.pack(">II", first, self.type) + self.data
            else:
                body = bytes((self.type,)) + self.data
        size = HEADER_LEN + len(body)
        if size > PACKET_MAX:
            raise ValueError(f"EAP packet of {size} octets, there is room for {PACKET_MAX}")
        return _HEADER.pack(self.code, self.identifier, size) + body

    def __str__(self) -> str:
        text = f"{name_of(EapCode, self.code)} {self.identifier}"
        if self.code in (EapCode.REQUEST, EapCode.RESPONSE):
            text += f" {eap_name(self.type, self.vendor)}"
        return text


def parse_eap_packet(data: bytes) -> EapPacket:
    """The packet that ``data`` is, no octet less or more. ParseError."""
    if len(data) < HEADER_LEN:
        raise ParseError(f"EAP packet of {len(data)} octets is shorter than its header")
    code, identifier, length = _HEADER.unpack_from(data)
    if length != len(data):
        raise ParseError(f"EAP packet of {len(data)} octets says it has {length}")
    if code in (EapCode.SUCCESS, EapCode.FAILURE):
        # section 4.2: nothing else is in there; what is, nobody vouches for
        if length != HEADER_LEN:
            raise ParseError(f"EAP {EapCode(code).name} has {length} octets instead of {HEADER_LEN}")
        return EapPacket(code, identifier)
    if code not in (EapCode.REQUEST, EapCode.RESPONSE):
        raise ParseError(f"EAP packet with code {code}")
    if length == HEADER_LEN:
        raise ParseError(f"EAP {EapCode(code).name} without a type")
    kind, at = data[HEADER_LEN], HEADER_LEN + 1
    if kind != EapType.EXPANDED:
        return EapPacket(code, identifier, kind, data[at:])
    if length < at + 7:
        raise ParseError(f"EAP {EapCode(code).name} of {length} octets is too short for an expanded type")
    vendor, kind = int.from_bytes(data[at : at + 3], "big"), int.from_bytes(data[at + 3 : at + 7], "big")
    return EapPacket(code, identifier, kind, data[at + 7 :], vendor)


def eap_name(kind: int, vendor: int = 0) -> str:
    """``MSCHAPV2``, ``EapType(99)``, ``type 3 of vendor 311``."""
    return f"type {kind} of vendor {vendor}" if vendor else name_of(EapType, kind)
