"""RADIUS packets: the examples of RFC 2865, scapy, and what is none."""

from __future__ import annotations

import struct
import warnings
from random import Random

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.layers.radius import Radius, RadiusAttribute

from ipsec.errors import ParseError
from ipsec.wire.radius import (
    MICROSOFT,
    RadiusCode,
    RadiusPacket,
    eap_attributes,
    parse_radius_packet,
    vendor_attributes,
)

#: RFC 2865 section 7.1; the secret is xyzzy5461
REQUEST = bytes.fromhex(
    "01000038 0f403f9473978057bd83d5cb98f4227a 01066e656d6f 02120dbe708d93d413ce3196e43f782a0aee"
    "0406c0a80110 050600000003"
)
ACCEPT = bytes.fromhex("02000026 86fe220e7624ba2a1005f6bf9b55e0b2 060600000001 0f0600000000 0e06c0a80103")


def packet(*attributes: bytes, code: int = 2) -> bytes:
    body = b"".join(attributes)
    return struct.pack(">BBH", code, 7, 20 + len(body)) + bytes(range(16)) + body


def test_the_examples_of_rfc_2865() -> None:
    request = parse_radius_packet(REQUEST)
    assert (request.code, request.identifier, request.authenticator) == (1, 0, REQUEST[4:20])
    assert request.attributes[0] == (1, b"nemo")
    assert request.attributes[2:] == ((4, bytes((192, 168, 1, 16))), (5, bytes((0, 0, 0, 3))))
    assert request.emit() == REQUEST
    assert parse_radius_packet(ACCEPT).emit() == ACCEPT
    assert [str(request), str(RadiusPacket(99, 1, bytes(16)))] == ["ACCESS_REQUEST 0", "RadiusCode(99) 1"]


def test_scapy_reads_what_we_emit_and_we_read_what_it_emits() -> None:
    ours = RadiusPacket(
        RadiusCode.ACCESS_CHALLENGE, 9, bytes(range(16)), ((1, b"alice"), (24, bytes(30)), *eap_attributes(bytes(600)))
    )
    theirs = Radius(ours.emit())
    assert (theirs.code, theirs.id, bytes(theirs.authenticator)) == (ours.code, ours.identifier, ours.authenticator)
    assert [(one.type, bytes(one)[2:]) for one in theirs.attributes] == list(ours.attributes)
    made = Radius(
        code=2, id=200, authenticator=bytes(16),
        attributes=[RadiusAttribute(type=1, value=b"bob"), RadiusAttribute(type=25, value=b"staff")],
    )  # fmt: skip
    read = parse_radius_packet(bytes(made))
    assert (read.code, read.identifier, read.attributes) == (2, 200, ((1, b"bob"), (25, b"staff")))


def test_an_eap_packet_is_split_and_joined() -> None:
    eap = bytes(range(256)) * 3
    pieces = eap_attributes(eap)
    assert [len(value) for _, value in pieces] == [253, 253, 253, 9]
    assert RadiusPacket(1, 1, bytes(16), ((1, b"x"), *pieces, (24, b"y"))).eap_packet() == eap
    assert eap_attributes(b"") == ()
    assert RadiusPacket(1, 1, bytes(16)).eap_packet() == b""


def test_what_is_behind_the_length_is_padding() -> None:
    assert parse_radius_packet(ACCEPT + b"\x00" * 9) == parse_radius_packet(ACCEPT)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "of 0 octets is shorter than its header"),
        (ACCEPT[:19], "of 19 octets is shorter than its header"),
        (ACCEPT[:-1], "of 37 octets says it has 38"),
        (b"\x02\x00\x00\x13" + bytes(20), "says that it has 19 octets"),
        (b"\x02\x00\x00\x00" + bytes(20), "says that it has 0 octets"),
        (b"\x02\x00\x10\x01" + bytes(4093), "says that it has 4097 octets"),
        (packet(b"\x01\x00"), "attribute of 0 octets where 2 are left"),
        (packet(b"\x01\x01"), "attribute of 1 octets where 2 are left"),
        (packet(b"\x01\x00" * 2000), "attribute of 0 octets where 4000 are left"),
        (packet(b"\x01\x03a", b"\x01\x04a"), "attribute of 4 octets where 3 are left"),
        (packet(b"\x01\x03a", b"\x01"), "attribute of 0 octets where 1 are left"),
    ],
)
def test_what_is_no_packet(data: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse_radius_packet(data)


def test_an_attribute_may_be_empty() -> None:
    # RFC 3579 section 3.1: EAP-Start
    assert parse_radius_packet(packet(b"\x4f\x02")).attributes == ((79, b""),)


def test_what_is_too_long_to_be_emitted() -> None:
    assert len(RadiusPacket(1, 1, bytes(16), ((1, bytes(253)),) * 15).emit()) == 20 + 15 * 255
    with pytest.raises(ValueError, match="USER_NAME of 254 octets, 253 are possible"):
        RadiusPacket(1, 1, bytes(16), ((1, bytes(254)),)).emit()
    with pytest.raises(ValueError, match="RADIUS packet of 4100 octets, 4096 are possible"):
        RadiusPacket(1, 1, bytes(16), ((1, bytes(253)),) * 16).emit()


def test_one_of_a_kind() -> None:
    found = RadiusPacket(2, 1, bytes(16), ((24, b"a"), (25, b"b"), (25, b"c")))
    assert [found.only(24), found.only(1), found.all(25)] == [b"a", None, [b"b", b"c"]]
    with pytest.raises(ParseError, match="2 attributes CLASS, there may be one"):
        found.only(25)


def vendor(*values: bytes) -> RadiusPacket:
    return RadiusPacket(2, 1, bytes(16), tuple((26, value) for value in values))


def test_attributes_of_a_vendor() -> None:
    ours = struct.pack(">I", MICROSOFT)
    found = vendor(ours + b"\x10\x04ab\x11\x03c", b"\x00\x00\x00\x09\x01\x00", ours + b"\x1c\x02")
    # of whom we know nothing, the format is theirs
    assert vendor_attributes(found, MICROSOFT) == [(16, b"ab"), (17, b"c"), (28, b"")]


@pytest.mark.parametrize(
    "value", [b"", b"\x00\x00\x01", struct.pack(">IBB", MICROSOFT, 16, 0), struct.pack(">IBB", MICROSOFT, 16, 9),
              struct.pack(">IB", MICROSOFT, 16)]
)  # fmt: skip
def test_attributes_of_a_vendor_that_are_malformed(value: bytes) -> None:
    with pytest.raises(ParseError):
        vendor_attributes(vendor(value), MICROSOFT)


def test_no_value_is_in_a_repr() -> None:
    assert "alice" not in repr(RadiusPacket(1, 1, bytes(16), ((1, b"alice"),)))


def test_random_octets_raise_nothing_else() -> None:
    rng = Random(1)
    parsed = 0
    for _ in range(10_000):
        # a length that fits half of the time, so that attributes are looked at
        body = rng.randbytes(rng.randrange(60))
        data = bytes((rng.choice((2, 3, 11)), 1)) + struct.pack(">H", 20 + len(body)) + bytes(16) + body
        try:
            found = parse_radius_packet(data if rng.random() < 0.5 else rng.randbytes(rng.randrange(100)))
            assert found.emit() == data
            vendor_attributes(found, MICROSOFT)
        except ParseError:
            continue
        parsed += 1
    assert parsed > 50
