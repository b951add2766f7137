"""RADIUS packets (RFC 2865 sections 3 and 5), as far as they carry EAP (RFC 3579) or accounting (RFC 2866).

    code identifier length authenticator attributes     length: two octets, of all of it; authenticator: 16 octets
    type length value                                   each attribute; length is that of all three
    26 length vendor (type length value)*               the vendor-specific ones of Microsoft (RFC 2548 section 2)

What parses and is emitted again gives the same octets, so that what an authenticator covers can be put together anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from ipsec.errors import ParseError
from ipsec.wire.iana import name_of

_HEADER = struct.Struct(">BBH16s")
#: octets before the attributes
HEADER_LEN = _HEADER.size
#: of the largest packet (RFC 2865 section 3)
PACKET_MAX = 4096
AUTHENTICATOR_LEN = 16
#: octets of the largest value of one attribute
VALUE_MAX = 253
#: SMI number of Microsoft
MICROSOFT = 311


class RadiusCode(IntEnum):
    """RFC 2865 section 3, RFC 2866 section 3."""

    ACCESS_REQUEST = 1
    ACCESS_ACCEPT = 2
    ACCESS_REJECT = 3
    ACCOUNTING_REQUEST = 4
    ACCOUNTING_RESPONSE = 5
    ACCESS_CHALLENGE = 11


class RadiusAttribute(IntEnum):
    """RFC 2865 section 5, of ACCT_STATUS_TYPE to ACCT_TERMINATE_CAUSE RFC 2866 section 5, and, where said, others."""

    USER_NAME = 1
    NAS_IP_ADDRESS = 4
    SERVICE_TYPE = 6
    FRAMED_IP_ADDRESS = 8
    FILTER_ID = 11
    REPLY_MESSAGE = 18
    STATE = 24
    CLASS = 25
    VENDOR_SPECIFIC = 26
    SESSION_TIMEOUT = 27
    CALLED_STATION_ID = 30
    CALLING_STATION_ID = 31
    NAS_IDENTIFIER = 32
    PROXY_STATE = 33
    ACCT_STATUS_TYPE = 40
    ACCT_INPUT_OCTETS = 42
    ACCT_OUTPUT_OCTETS = 43
    ACCT_SESSION_ID = 44
    ACCT_AUTHENTIC = 45
    ACCT_SESSION_TIME = 46
    ACCT_INPUT_PACKETS = 47
    ACCT_OUTPUT_PACKETS = 48
    ACCT_TERMINATE_CAUSE = 49
    ACCT_INPUT_GIGAWORDS = 52  # RFC 2869
    ACCT_OUTPUT_GIGAWORDS = 53  # RFC 2869
    EVENT_TIMESTAMP = 55  # RFC 2869
    NAS_PORT_TYPE = 61
    EAP_MESSAGE = 79  # RFC 3579
    MESSAGE_AUTHENTICATOR = 80  # RFC 3579
    ACCT_INTERIM_INTERVAL = 85  # RFC 2869
    NAS_PORT_ID = 87  # RFC 2869
    NAS_IPV6_ADDRESS = 95  # RFC 3162
    FRAMED_IPV6_ADDRESS = 168  # RFC 6911
    DNS_SERVER_IPV6_ADDRESS = 169  # RFC 6911


class MicrosoftAttribute(IntEnum):
    """RFC 2548 section 2."""

    MPPE_SEND_KEY = 16
    MPPE_RECV_KEY = 17
    PRIMARY_DNS_SERVER = 28
    SECONDARY_DNS_SERVER = 29


@dataclass(frozen=True, slots=True)
class RadiusPacket:
    """One packet. Its attributes are in no ``repr``: there are keys among them."""

    code: int
    identifier: int
    authenticator: bytes = field(repr=False)
    attributes: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    "type and value of each, in their order"

    def emit(self) -> bytes:
        """The octets. ValueError if an attribute, or all together, are longer than a length can say."""
        body = bytearray()
        for kind, value in self.attributes:
            if len(value) > VALUE_MAX:
                raise ValueError(f"{name_of(RadiusAttribute, kind)} of {len(value)} octets, {VALUE_MAX} are possible")
            body += bytes((kind, len(value) + 2)) + value
        size = HEADER_LEN + len(body)
        if size > PACKET_MAX:
            raise ValueError(f"RADIUS packet of {size} octets, {PACKET_MAX} are possible")
        return _HEADER.pack(self.code, self.identifier, size, self.authenticator) + bytes(body)

    def all(self, kind: int) -> list[bytes]:
        """The values of the attributes of a type."""
        return [value for one, value in self.attributes if one == kind]

    def only(self, kind: int) -> bytes | None:
        """The value of an attribute that may be there once; None if it is not. ParseError if there are several."""
        found = self.all(kind)
        if len(found) > 1:
            raise ParseError(f"{len(found)} attributes {name_of(RadiusAttribute, kind)}, there may be one")
        return found[0] if found else None

    def eap_packet(self) -> bytes:
        """What all EAP-Message attributes have together, empty without one (RFC 3579 section 3.1)."""
        return b"".join(self.all(RadiusAttribute.EAP_MESSAGE))

    def __str__(self) -> str:
        return f"{name_of(RadiusCode, self.code)} {self.identifier}"


def parse_radius_packet(data: bytes) -> RadiusPacket:
    """The packet at the start of a datagram; what is behind it is padding (RFC 2865 section 3). ParseError."""
    if len(data) < HEADER_LEN:
        raise ParseError(f"RADIUS packet of {len(data)} octets is shorter than its header")
    code, identifier, length, authenticator = _HEADER.unpack_from(data)
    if not HEADER_LEN <= length <= PACKET_MAX:
        raise ParseError(f"RADIUS packet says that it has {length} octets")
    if length > len(data):
        raise ParseError(f"RADIUS packet of {len(data)} octets says it has {length}")
    return RadiusPacket(code, identifier, authenticator, tuple(_attributes(data[HEADER_LEN:length])))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, length, value, one behind the other. ParseError if they do not fill ``data`` exactly."""
    at = 0
    while at < len(data):
        left = len(data) - at
        size = data[at + 1] if left > 1 else 0
        if not 2 <= size <= left:
            raise ParseError(f"RADIUS attribute of {size} octets where {left} are left")
        yield data[at], data[at + 2 : at + size]
        at += size


def vendor_attributes(packet: RadiusPacket, vendor: int) -> list[tuple[int, bytes]]:
    """Type and value of what a vendor has put in, in the format that RFC 2865 section 5.26 suggests. ParseError."""
    found: list[tuple[int, bytes]] = []
    for value in packet.all(RadiusAttribute.VENDOR_SPECIFIC):
        if len(value) < 4:
            raise ParseError(f"RADIUS attribute of a vendor with {len(value)} octets does not say whose it is")
        if int.from_bytes(value[:4], "big") == vendor:
            found += _attributes(value[4:])
    return found


def eap_attributes(eap: bytes) -> tuple[tuple[int, bytes], ...]:
    """An EAP packet as attributes that follow each other (RFC 3579 section 3.1)."""
    pieces = (eap[at : at + VALUE_MAX] for at in range(0, len(eap), VALUE_MAX))
    return tuple((int(RadiusAttribute.EAP_MESSAGE), piece) for piece in pieces)
