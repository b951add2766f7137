"""Proposals and transforms of the SA payload (RFC 7296 section 3.3): values, octets, text.

Text is what charon logs: ``IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ipsec.errors import ParseError
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Prf, Protocol, TransformAttribute, TransformType, name_of

MAX_PROPOSALS = 100
"of one SA payload"

UNKNOWN_ATTRIBUTE = -1
"``Transform.key_bits`` of a transform with an attribute that we do not know: it is never chosen (3.3.6)"

#: octets of SPI that each protocol has in a proposal: none in the first exchanges, 8 where an IKE SA is rekeyed (3.3.1)
SPI_SIZES: dict[int, tuple[int, ...]] = {Protocol.IKE: (0, 8), Protocol.AH: (4,), Protocol.ESP: (4,)}

_PROPOSAL = struct.Struct("!BxHBBBB")  # last, length, number, protocol, SPI size, number of transforms
_TRANSFORM = struct.Struct("!BxHBxH")  # last, length, type, id
_PAIR = struct.Struct("!HH")  # attribute format and type, value or length
_LAST, _MORE_PROPOSALS, _MORE_TRANSFORMS = 0, 2, 3
_USUAL_OCTETS = 256
"of the transforms of one proposal"
_TV = 0x8000  # attribute format bit: the value is in the length field (3.3.5)
_KEY_LENGTH = _TV | TransformAttribute.KEY_LENGTH

#: where charon's name of a transform is not the enum's
_CHARON_NAMES: dict[tuple[int, int], str] = {
    (TransformType.ENCR, Encr.TRIPLE_DES_CBC): "3DES_CBC",
    (TransformType.ENCR, Encr.NULL_AUTH_AES_GMAC): "NULL_AES_GMAC",
    (TransformType.KE, KeMethod.NONE): "KE_NONE",
    (TransformType.KE, KeMethod.BRAINPOOL_P224R1): "ECP_224_BP",
    (TransformType.KE, KeMethod.BRAINPOOL_P256R1): "ECP_256_BP",
    (TransformType.KE, KeMethod.BRAINPOOL_P384R1): "ECP_384_BP",
    (TransformType.KE, KeMethod.BRAINPOOL_P512R1): "ECP_512_BP",
    (TransformType.ESN, Esn.NO): "NO_EXT_SEQ",
    (TransformType.ESN, Esn.YES): "EXT_SEQ",
}
_ENUMS: dict[int, type[Encr | Prf | Integ | KeMethod | Esn]] = {
    TransformType.ENCR: Encr,
    TransformType.PRF: Prf,
    TransformType.INTEG: Integ,
    TransformType.KE: KeMethod,
    TransformType.ESN: Esn,
}
#: the order in which charon writes the types of a proposal
_TEXT_ORDER: dict[int, int] = {TransformType.ENCR: 0, TransformType.INTEG: 1, TransformType.PRF: 2}


class Transform(NamedTuple):
    """One algorithm of a proposal. ``str()`` reads ``AES_GCM_16_128``, ``CURVE_25519``, ``NO_EXT_SEQ``."""

    type: int
    "TransformType, or a number we do not know"
    id: int
    key_bits: int = 0
    "the Key Length attribute; 0 for none, UNKNOWN_ATTRIBUTE where there is one that we do not understand"

    def __str__(self) -> str:
        name = _transform_name(self.type, self.id)
        if self.key_bits == UNKNOWN_ATTRIBUTE:
            return f"{name}_?"
        return f"{name}_{self.key_bits}" if self.key_bits else name


@dataclass(slots=True)
class Proposal:
    """One alternative of an SA payload: transforms of a type are alternatives, types are all needed (3.3)."""

    protocol: int
    "Protocol, or a number we do not know"
    transforms: list[Transform]
    number: int = 0
    "1 and up on the wire; 0 has ``emit_proposals`` number by position"
    spi: bytes = b""

    def of_type(self, type: int) -> list[Transform]:
        """The transforms of one type, in order of preference."""
        return [transform for transform in self.transforms if transform[0] == type]

    def first(self, type: int) -> Transform | None:
        """The preferred transform of one type."""
        for transform in self.transforms:
            if transform[0] == type:
                return transform
        return None

    def __str__(self) -> str:
        ordered = sorted(self.transforms, key=lambda transform: _TEXT_ORDER.get(transform.type, 2 + transform.type))
        return f"{name_of(Protocol, self.protocol)}:{'/'.join(map(str, ordered))}"


def parse_proposals(data: bytes, offset: int, end: int) -> list[Proposal]:
    """The proposals in ``data[offset:end]``, the body of an SA payload. Raises ParseError.

    Proposal numbers are not judged: an answer keeps the number of the offer (3.3.1). Nor are combinations of
    transforms: those that make no sense match nothing of ours.
    """
    proposals: list[Proposal] = []
    more = True
    while more:
        if end - offset < _PROPOSAL.size:
            raise ParseError("SA payload: proposal cut short")
        last, length, number, protocol, spi_size, count = _PROPOSAL.unpack_from(data, offset)
        start, stop = offset + _PROPOSAL.size + spi_size, offset + length
        if stop > end or start > stop:
            raise ParseError(f"SA payload: proposal of {length} octets does not fit")
        if spi_size not in SPI_SIZES.get(protocol, (spi_size,)):
            raise ParseError(f"SA payload: SPI of {spi_size} octets for protocol {protocol}")
        more = last == _MORE_PROPOSALS
        if last not in (_LAST, _MORE_PROPOSALS) or more is (stop == end):
            raise ParseError("SA payload: the chain of proposals does not end where the payload does")
        if len(proposals) == MAX_PROPOSALS:
            raise ParseError(f"SA payload: more than {MAX_PROPOSALS} proposals")
        # peers offer the same again and again; only usual sizes are worth the memory of the cache
        parse = _parse_usual_transforms if stop - start <= _USUAL_OCTETS else _parse_transforms
        transforms = list(parse(data[start:stop], count))
        proposals.append(Proposal(protocol, transforms, number, data[start - spi_size : start]))
        offset = stop
    return proposals


def emit_proposals(proposals: Sequence[Proposal]) -> bytes:
    """The body of an SA payload. Raises ValueError, struct.error where a field is too large for it."""
    if not proposals:
        raise ValueError("an SA payload needs a proposal")
    parts: list[bytes] = []
    remaining = len(proposals)
    for position, proposal in enumerate(proposals, 1):
        remaining -= 1
        transforms = proposal.transforms
        octets = [_emit_transform(transform, False) for transform in transforms[:-1]]
        if transforms:
            octets.append(_emit_transform(transforms[-1], True))
        body = b"".join(octets)
        parts.append(
            _PROPOSAL.pack(
                _MORE_PROPOSALS if remaining else _LAST,
                _PROPOSAL.size + len(proposal.spi) + len(body),
                proposal.number or position,
                proposal.protocol,
                len(proposal.spi),
                len(transforms),
            )
        )
        parts.append(proposal.spi)
        parts.append(body)
    return b"".join(parts)


def _parse_transforms(data: bytes, count: int) -> tuple[Transform, ...]:
    """``count`` transforms that fill ``data`` exactly."""
    transforms = []
    unpack, size = _PAIR.unpack_from, _TRANSFORM.size
    offset, end = 0, len(data)
    for remaining in range(count - 1, -1, -1):
        if end - offset < size:
            raise ParseError("SA payload: transform cut short")
        last, length = unpack(data, offset)
        if length < size or length > end - offset:
            raise ParseError(f"SA payload: transform of {length} octets does not fit")
        # the low octet of ``last`` is reserved
        if last >> 8 != (_MORE_TRANSFORMS if remaining else _LAST):
            raise ParseError("SA payload: the chain of transforms does not have the length the proposal says")
        # only the two usual sizes are worth the memory of the cache, which lives as long as the process
        parse = _parse_usual_transform if length <= size + _PAIR.size else _parse_transform
        transforms.append(parse(data[offset + _PAIR.size : offset + length]))
        offset += length
    if offset != end:
        raise ParseError("SA payload: octets after the last transform")
    return tuple(transforms)


_parse_usual_transforms = lru_cache(maxsize=512)(_parse_transforms)


def _parse_transform(body: bytes) -> Transform:
    """A transform without its first four octets, and its attributes (3.3.5)."""
    type_, ident = body[0], body[2] << 8 | body[3]
    key_bits = 0
    offset = 4
    while offset < len(body):
        if len(body) - offset < _PAIR.size:
            raise ParseError("SA payload: transform attribute cut short")
        attribute, value = _PAIR.unpack_from(body, offset)
        offset += _PAIR.size
        if attribute == _KEY_LENGTH and value and not key_bits:
            key_bits = value
            continue
        # unknown, given twice, in the long form, or a key of no bits
        key_bits = UNKNOWN_ATTRIBUTE
        if not attribute & _TV:
            if value > len(body) - offset:
                raise ParseError("SA payload: transform attribute does not fit")
            offset += value
    return Transform(type_, ident, key_bits)


_parse_usual_transform = lru_cache(maxsize=512)(_parse_transform)


@lru_cache(maxsize=512)
def _emit_transform(transform: Transform, last: bool) -> bytes:
    type_, ident, key_bits = transform
    if key_bits < 0:
        raise ValueError(f"{transform} has an attribute that is not known")
    attribute = _PAIR.pack(_KEY_LENGTH, key_bits) if key_bits else b""
    return _TRANSFORM.pack(_LAST if last else _MORE_TRANSFORMS, 8 + len(attribute), type_, ident) + attribute


def _transform_name(type_: int, ident: int) -> str:
    """Charon's name of a transform, without its key length."""
    step = type_ - TransformType.ADDKE1 + 1
    if 1 <= step <= 7:
        return f"KE{step}_{_transform_name(TransformType.KE, ident)}"
    numbers = _ENUMS.get(type_)
    if numbers is None:
        return f"{name_of(TransformType, type_)}({ident})"
    name = _CHARON_NAMES.get((type_, ident)) or name_of(numbers, ident)
    return f"PRF_{name}" if numbers is Prf and ident in Prf._value2member_map_ else name
