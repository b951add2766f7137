"""Strict DER (X.690): reading and writing the few shapes that certificates, names and signatures need.

Readers take definite, minimal lengths and tag numbers below 31, and raise ParseError for everything else. None of them
recurses, and none copies more than the value it returns.
"""

from __future__ import annotations

from functools import lru_cache

from ipsec.errors import ParseError

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID, ENUMERATED = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0A
SEQUENCE, SET = 0x30, 0x31
UTF8_STRING, NUMERIC_STRING, PRINTABLE_STRING, T61_STRING, IA5_STRING = 0x0C, 0x12, 0x13, 0x14, 0x16
VISIBLE_STRING, UNIVERSAL_STRING, BMP_STRING = 0x1A, 0x1C, 0x1E
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18

ITEMS_MAX = 4096
"elements read from one SEQUENCE or SET"


def context(number: int, *, constructed: bool = True) -> int:
    """The tag ``[number]`` of class context-specific."""
    return 0x80 | (0x20 if constructed else 0) | number


def read(data: bytes, offset: int = 0) -> tuple[int, int, int]:
    """Tag, start and end of the contents of the element at ``offset``."""
    if offset + 2 > len(data):
        raise ParseError("DER: element is cut off")
    tag, length = data[offset], data[offset + 1]
    start = offset + 2
    if tag & 0x1F == 0x1F:
        raise ParseError("DER: tag number above 30")
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or start + count > len(data):
            raise ParseError("DER: length is indefinite, too long or cut off")
        length = int.from_bytes(data[start : start + count], "big")
        if length < 0x80 or length >> 8 * (count - 1) == 0:
            raise ParseError("DER: length is not minimal")
        start += count
    if start + length > len(data):
        raise ParseError("DER: element is longer than what holds it")
    return tag, start, start + length


def items(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and contents of the elements that fill ``data``."""
    found: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(data):
        tag, start, offset = read(data, offset)
        found.append((tag, data[start:offset]))
        if len(found) > ITEMS_MAX:
            raise ParseError("DER: too many elements")
    return found


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """As ``items``, with the whole element (header and contents) in place of the contents."""
    found: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(data):
        begin = offset
        tag, _, offset = read(data, offset)
        found.append((tag, data[begin:offset]))
        if len(found) > ITEMS_MAX:
            raise ParseError("DER: too many elements")
    return found


def contents(data: bytes, tag: int) -> bytes:
    """The contents of the single element of that tag that ``data`` is."""
    found, start, end = read(data)
    if found != tag or end != len(data):
        raise ParseError("DER: not the one element that was expected")
    return data[start:end]


def read_bool(value: bytes) -> bool:
    """Contents of a BOOLEAN."""
    if value not in (b"\x00", b"\xff"):
        raise ParseError("DER: malformed BOOLEAN")
    return value == b"\xff"


def read_int(value: bytes, *, octets_max: int = 4096) -> int:
    """Contents of an INTEGER, which is minimal."""
    if not 1 <= len(value) <= octets_max:
        raise ParseError("DER: INTEGER is empty or too large")
    if len(value) > 1 and (value[0], value[1] >> 7) in ((0, 0), (0xFF, 1)):
        raise ParseError("DER: INTEGER is not minimal")
    return int.from_bytes(value, "big", signed=True)


def read_bits(value: bytes) -> bytes:
    """Contents of a BIT STRING that is whole octets."""
    if not value or value[0] != 0:
        raise ParseError("DER: BIT STRING is not whole octets")
    return value[1:]


def read_flags(value: bytes) -> frozenset[int]:
    """The numbers of the bits set in the contents of a BIT STRING of named bits."""
    if not value or value[0] > 7 or (value[0] and len(value) == 1) or len(value) > 16:
        raise ParseError("DER: malformed BIT STRING")
    octets = value[1:]
    return frozenset(8 * i + j for i, octet in enumerate(octets) for j in range(8) if octet & 0x80 >> j)


@lru_cache(512)
def read_oid(value: bytes) -> str:
    """Contents of an OBJECT IDENTIFIER in dotted form."""
    if not value or len(value) > 64 or value[-1] & 0x80:
        raise ParseError("DER: malformed OBJECT IDENTIFIER")
    arcs: list[int] = []
    number = 0
    fresh = True
    for octet in value:
        if fresh and octet == 0x80:
            raise ParseError("DER: malformed OBJECT IDENTIFIER")
        number = number << 7 | octet & 0x7F
        fresh = octet < 0x80
        if fresh:
            arcs.append(number)
            number = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def emit(tag: int, *parts: bytes) -> bytes:
    """An element whose contents are ``parts``."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def emit_oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER. ValueError if the text is not one."""
    arcs = [int(arc) if arc.isascii() and arc.isdigit() else -1 for arc in dotted.split(".")]
    if len(arcs) < 2 or min(arcs) < 0 or arcs[0] > 2 or (arcs[0] < 2 and arcs[1] > 39):
        raise ValueError(f"{dotted!r} is not an object identifier")
    body = bytearray()
    for arc in (40 * arcs[0] + arcs[1], *arcs[2:]):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        body += bytes(reversed(septets))
    return emit(OID, bytes(body))


def emit_int(number: int) -> bytes:
    """An INTEGER."""
    # the sign takes one bit more: 128 is 0080, -128 is 80
    bits = (number if number >= 0 else ~number).bit_length()
    return emit(INTEGER, number.to_bytes(bits // 8 + 1, "big", signed=True))
