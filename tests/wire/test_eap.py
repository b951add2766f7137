"""EAP packets: octets and what they mean, as RFC 3748 draws them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.wire.eap import PACKET_MAX, EapPacket, eap_name, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

MICROSOFT = 311


@pytest.mark.parametrize(
    ("octets", "packet"),
    [
        ("01 05 0005 01", EapPacket(EapCode.REQUEST, 5, EapType.IDENTITY)),
        ("02 05 0008 01 6d6f65", EapPacket(EapCode.RESPONSE, 5, EapType.IDENTITY, b"moe")),
        ("02 ff 0006 03 1a", EapPacket(EapCode.RESPONSE, 255, EapType.NAK, b"\x1a")),
        ("03 00 0004", EapPacket(EapCode.SUCCESS, 0)),
        ("04 80 0004", EapPacket(EapCode.FAILURE, 128)),
        # section 5.7
        ("01 07 000e fe 000137 00000006 6162", EapPacket(EapCode.REQUEST, 7, 6, b"ab", MICROSOFT)),
        ("01 07 000c fe 000137 0000011a", EapPacket(EapCode.REQUEST, 7, 282, b"", MICROSOFT)),
    ],
)
def test_there_and_back(octets: str, packet: EapPacket) -> None:
    assert parse_eap_packet(bytes.fromhex(octets)) == packet
    assert packet.emit() == bytes.fromhex(octets)


def test_an_expanded_type_of_the_ietf_is_the_plain_one() -> None:
    found = parse_eap_packet(bytes.fromhex("01 07 000d fe 000000 0000001a 78"))
    assert found == EapPacket(EapCode.REQUEST, 7, EapType.MSCHAPV2, b"x")
    assert found.emit() == bytes.fromhex("01 07 0006 1a 78")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        ("", "0 octets is shorter than its header"),
        ("03 00 00", "3 octets is shorter than its header"),
        ("01 05 0006 01", "5 octets says it has 6"),
        # a layer below may pad (section 4.1); those that we have do not
        ("01 05 0005 01 00", "6 octets says it has 5"),
        ("03 05 0004 00", "5 octets says it has 4"),
        ("01 05 0003 01", "5 octets says it has 3"),
        ("01 05 0000 01", "5 octets says it has 0"),
        ("00 05 0004", "code 0"),
        ("05 05 0005 01", "code 5"),
        ("01 05 0004", "REQUEST without a type"),
        ("02 05 0004", "RESPONSE without a type"),
        # section 4.2: who could say what is in there?
        ("03 05 0005 00", "SUCCESS has 5 octets"),
        ("04 05 0006 01 00", "FAILURE has 6 octets"),
        ("01 05 0005 fe", "too short for an expanded type"),
        ("01 05 000b fe 000137 000000", "too short for an expanded type"),
    ],
)
def test_malformed(octets: str, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse_eap_packet(bytes.fromhex(octets))


@given(st.binary(max_size=40) | st.builds(lambda head, rest: head + bytes((0, 4 + len(rest))) + rest,
                                          st.binary(min_size=2, max_size=2), st.binary(max_size=20)))  # fmt: skip
def test_any_octets(octets: bytes) -> None:
    try:
        found = parse_eap_packet(octets)
    except ParseError:
        return
    assert parse_eap_packet(found.emit()) == found


def test_no_more_than_the_length_can_say() -> None:
    room = PACKET_MAX - 5
    assert len(EapPacket(EapCode.RESPONSE, 1, EapType.GTC, bytes(room)).emit()) == PACKET_MAX
    with pytest.raises(ValueError, match=f"EAP packet of {PACKET_MAX + 1} octets"):
        EapPacket(EapCode.RESPONSE, 1, EapType.GTC, bytes(room + 1)).emit()


def test_in_words() -> None:
    """Without what is shown in it."""
    assert (eap_name(26), eap_name(99), eap_name(6, MICROSOFT)) == ("MSCHAPV2", "EapType(99)", "type 6 of vendor 311")
    packet = EapPacket(EapCode.RESPONSE, 3, EapType.GTC, b"secret")
    assert str(packet) == "RESPONSE 3 GTC"
    assert str(EapPacket(EapCode.SUCCESS, 3)) == "SUCCESS 3"
    assert "secret" not in repr(packet)
