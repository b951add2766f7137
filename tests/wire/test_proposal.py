"""The SA payload: octets, values, text, and what is refused."""

from __future__ import annotations

import itertools
import struct

import pytest

from ipsec.errors import ParseError
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Prf, Protocol, TransformType
from ipsec.wire.proposal import (
    MAX_PROPOSALS,
    UNKNOWN_ATTRIBUTE,
    Proposal,
    Transform,
    emit_proposals,
    parse_proposals,
)

GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
PRF = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)
X25519 = Transform(TransformType.KE, KeMethod.CURVE_25519)


def parse(data: bytes) -> list[Proposal]:
    return parse_proposals(data, 0, len(data))


def proposal(transforms: str, count: int, *, protocol: int = 1, spi: str = "", last: int = 0, number: int = 1) -> bytes:
    body = bytes.fromhex(spi + transforms)
    return (
        bytes((last, 0)) + (8 + len(body)).to_bytes(2, "big") + bytes((number, protocol, len(spi) // 2, count)) + body
    )


# --- values ---


def test_of_type_and_first() -> None:
    other = Transform(TransformType.ENCR, Encr.AES_CBC, 256)
    value = Proposal(Protocol.IKE, [GCM, PRF, other])
    assert value.of_type(TransformType.ENCR) == [GCM, other]
    assert value.first(TransformType.ENCR) is GCM
    assert value.of_type(TransformType.KE) == []
    assert value.first(TransformType.KE) is None


def test_offset_and_end_are_respected() -> None:
    octets = emit_proposals([Proposal(Protocol.IKE, [GCM, PRF])])
    assert parse_proposals(b"xyz" + octets + b"tail", 3, 3 + len(octets)) == parse(octets)


def test_numbers_go_by_position_unless_given() -> None:
    octets = emit_proposals([Proposal(1, [GCM]), Proposal(1, [PRF], number=7), Proposal(1, [X25519])])
    assert [value.number for value in parse(octets)] == [1, 7, 3]


def test_emit_golden() -> None:
    """Section 3.3: the same octets as in the diagrams."""
    value = Proposal(Protocol.ESP, [GCM, Transform(TransformType.ESN, Esn.NO)], spi=b"\xca\xfe\xba\xbe")
    expected = proposal("0300000c01000014800e00800000000805000000", 2, protocol=3, spi="cafebabe")
    assert emit_proposals([value]) == expected
    value.number = 1
    assert parse(expected) == [value]


def test_equal_transforms_of_different_attributes_differ() -> None:
    assert Transform(1, 12, 128) != Transform(1, 12, 256)
    assert parse(proposal("0000000c0100000c800e0100", 1)) == [Proposal(1, [Transform(1, 12, 256)], 1)]


def test_reserved_octets_are_ignored() -> None:
    """OB-49."""
    octets = bytearray(proposal("0300000c01000014800e00800000000802000005", 2))
    clean = parse(bytes(octets))
    octets[1] = octets[8 + 1] = octets[8 + 5] = octets[20 + 1] = octets[20 + 5] = 0xFF
    assert parse(bytes(octets)) == clean == [Proposal(1, [GCM, PRF], 1)]


def test_every_protocol_and_spi_size() -> None:
    """A wrong size for a protocol we know is malformed; of one we do not know, any is passed on."""
    for protocol, size in itertools.product(range(256), range(256)):
        octets = proposal("0000000802000005", 1, protocol=protocol, spi="ab" * size)
        good = {1: (0, 8), 2: (4,), 3: (4,)}.get(protocol, range(256))
        if size in good:
            assert parse(octets) == [Proposal(protocol, [PRF], 1, b"\xab" * size)]
        else:
            with pytest.raises(ParseError, match="SPI of"):
                parse(octets)


def test_every_combination_of_transforms_parses() -> None:
    """Legal or not: a choice is for negotiation (the keys of one that makes no sense must never be derived)."""
    combinations = itertools.product(
        [None, *Encr, 999], [None, *Integ, 999], [None, *Esn, 2], [None, KeMethod.NONE, KeMethod.CURVE_25519, 1025]
    )
    seen = 0
    for number in combinations:
        kinds = (TransformType.ENCR, TransformType.INTEG, TransformType.ESN, TransformType.KE)
        transforms = [Transform(k, n) for k, n in zip(kinds, number, strict=True) if n is not None]
        value = Proposal(Protocol.ESP, transforms, 1, b"\1\2\3\4")
        assert parse(emit_proposals([value])) == [value]
        assert str(value).startswith("ESP:")
        seen += 1
    assert seen >= 2000


def test_all_transform_ids_survive() -> None:
    """Numbers that we use nowhere, private ones too, come out as they are."""
    for type_ in (1, 2, 3, 4, 5, 6, 12, 13, 241, 255):
        for start in range(0, 0x10000, 0x1000):
            transforms = [Transform(type_, start + step) for step in range(0, 0x1000, 0x11)]
            assert parse(emit_proposals([Proposal(1, transforms)]))[0].transforms == transforms


def test_what_was_parsed_belongs_to_whoever_parsed_it() -> None:
    """Equal octets are read once."""
    data = emit_proposals([Proposal(Protocol.IKE, [Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)])])
    (one,), (other,) = (parse_proposals(data, 0, len(data)) for _ in range(2))
    one.transforms.clear()
    assert len(other.transforms) == 1
    assert len(parse_proposals(data, 0, len(data))[0].transforms) == 1


def test_no_transforms() -> None:
    assert parse(proposal("", 0)) == [Proposal(1, [], 1)]
    assert emit_proposals([Proposal(1, [])]) == proposal("", 0)


# --- attributes ---


@pytest.mark.parametrize(
    "attributes",
    [
        "800d0080",  # another number
        "000e00020080",  # the key length in the long form
        "000e0000",  # ... of no octets
        "800e0000",  # a key of no bits
        "800e0080800e0080",  # twice
        "800e0080800e0100",
        "800e0080800d0001",
        "800d0001800e0080",
        "00010000" * 40,
    ],
)
def test_attributes_we_do_not_understand_mark_the_transform(attributes: str) -> None:
    """Section 3.3.6: such a transform must not be chosen, the others may."""
    size = 8 + len(attributes) // 2
    octets = proposal(f"0300{size:04x}0100000c{attributes}0000000802000005", 2)
    assert parse(octets) == [Proposal(1, [Transform(1, 12, UNKNOWN_ATTRIBUTE), PRF], 1)]


def test_what_is_not_understood_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not known"):
        emit_proposals([Proposal(1, [Transform(1, 12, UNKNOWN_ATTRIBUTE)])])


@pytest.mark.parametrize("attributes", ["80", "800e00", "800e0080ff", "000e0001", "000effff", "000e000201"])
def test_attributes_that_do_not_fit(attributes: str) -> None:
    size = 8 + len(attributes) // 2
    with pytest.raises(ParseError, match="attribute"):
        parse(proposal(f"0000{size:04x}0100000c{attributes}", 1))


# --- chains ---


@pytest.mark.parametrize(
    ("transforms", "count"),
    [
        ("0000000802000005", 0),
        ("0000000802000005", 2),
        ("0300000802000005", 1),
        ("0300000802000005", 2),
        ("00000008020000050000000802000005", 2),
        ("03000008020000050300000802000005", 2),
        ("02000008020000050000000802000005", 2),
        ("0000000702000005", 1),
        ("0000000002000005", 1),
        ("0000000902000005", 1),
        ("0000ffff02000005", 1),
        ("00000008020000", 1),
        ("00", 1),
        ("000000080200000500", 1),
    ],
)
def test_chains_of_transforms_that_do_not_fit(transforms: str, count: int) -> None:
    with pytest.raises(ParseError):
        parse(proposal(transforms, count))


@pytest.mark.parametrize("last", [1, 3, 255])
def test_other_marks_of_the_last_proposal(last: int) -> None:
    with pytest.raises(ParseError, match="chain of proposals"):
        parse(proposal("", 0, last=last))


def test_chains_of_proposals_that_do_not_fit() -> None:
    one, more = proposal("0000000802000005", 1), proposal("0000000802000005", 1, last=2)
    for octets in (b"", b"\0", more, one + one, one + b"\0", more + more, more + one[:-1], one[:-1]):
        with pytest.raises(ParseError):
            parse(octets)
    for length in (*range(len(one)), len(one) + 1, 0xFFFF):
        with pytest.raises(ParseError):
            parse(one[:2] + length.to_bytes(2, "big") + one[4:])


@pytest.mark.parametrize("count", [MAX_PROPOSALS - 1, MAX_PROPOSALS, MAX_PROPOSALS + 1])
def test_the_number_of_proposals_is_bounded(count: int) -> None:
    octets = emit_proposals([Proposal(1, [PRF])] * count)
    if count <= MAX_PROPOSALS:
        assert len(parse(octets)) == count
    else:
        with pytest.raises(ParseError, match="more than"):
            parse(octets)


def test_255_transforms_are_the_most_a_proposal_can_have() -> None:
    assert len(parse(emit_proposals([Proposal(1, [PRF] * 255)]))[0].transforms) == 255
    with pytest.raises(struct.error):
        emit_proposals([Proposal(1, [PRF] * 256)])


def test_an_sa_payload_needs_a_proposal() -> None:
    with pytest.raises(ValueError, match="needs a proposal"):
        emit_proposals([])


# --- text ---


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (GCM, "AES_GCM_16_128"),
        (Transform(1, 3), "3DES_CBC"),
        (Transform(1, 28), "CHACHA20_POLY1305"),
        (Transform(1, 21, 128), "NULL_AES_GMAC_128"),
        (Transform(1, 12, UNKNOWN_ATTRIBUTE), "AES_CBC_?"),
        (Transform(1, 999), "Encr(999)"),
        (PRF, "PRF_HMAC_SHA2_256"),
        (Transform(2, 4), "PRF_AES128_XCBC"),
        (Transform(2, 99), "Prf(99)"),
        (Transform(3, 12), "HMAC_SHA2_256_128"),
        (Transform(4, 31), "CURVE_25519"),
        (Transform(4, 14), "MODP_2048"),
        (Transform(4, 28), "ECP_256_BP"),
        (Transform(4, 1025), "KeMethod(1025)"),
        (Transform(5, 0), "NO_EXT_SEQ"),
        (Transform(5, 1), "EXT_SEQ"),
        (Transform(6, 36), "KE1_ML_KEM_768"),
        (Transform(12, 0), "KE7_KE_NONE"),
        (Transform(13, 1), "TransformType(13)(1)"),
        (Transform(0, 1), "TransformType(0)(1)"),
    ],
)
def test_text_of_transforms(transform: Transform, text: str) -> None:
    assert str(transform) == text


def test_text_of_proposals() -> None:
    """The order is charon's, whatever the peer's was."""
    cbc, mac = Transform(1, 12, 256), Transform(3, 12)
    assert str(Proposal(1, [GCM, PRF, X25519])) == "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519"
    assert str(Proposal(3, [Transform(5, 0), mac, cbc])) == "ESP:AES_CBC_256/HMAC_SHA2_256_128/NO_EXT_SEQ"
    assert (
        str(Proposal(1, [X25519, PRF, mac, cbc])) == "IKE:AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519"
    )
    assert str(Proposal(77, [])) == "Protocol(77):"
