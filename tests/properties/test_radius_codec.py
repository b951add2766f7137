"""The RADIUS codec: what is emitted parses to what it was, and what parses is emitted as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto.radius import decrypt_mppe_key, is_response_authentic, seal_request
from ipsec.errors import ParseError
from ipsec.wire.radius import MICROSOFT, RadiusPacket, eap_attributes, parse_radius_packet, vendor_attributes
from tests.ike.radius_server import Request, answer, mppe, read

octet = st.integers(0, 255)
attribute = st.tuples(octet, st.binary(max_size=253))
attributes = st.lists(attribute, max_size=15)
authenticator = st.binary(min_size=16, max_size=16)
secrets = st.binary(min_size=1, max_size=40)
packets = st.builds(RadiusPacket, octet, octet, authenticator, attributes.map(tuple))


@given(packets, st.binary(max_size=20))
def test_round_trip(packet: RadiusPacket, padding: bytes) -> None:
    assert parse_radius_packet(packet.emit() + padding) == packet


@given(st.binary(max_size=300) | st.builds(lambda p, cut: p.emit()[:cut], packets, st.integers(0, 300)))
def test_what_parses_is_what_it_was(data: bytes) -> None:
    try:
        packet = parse_radius_packet(data)
    except ParseError:
        return
    assert data.startswith(packet.emit())
    try:
        found = vendor_attributes(packet, MICROSOFT)
    except ParseError:
        return
    assert len(found) * 2 <= len(data)


@given(st.binary(max_size=3800), octet, authenticator, secrets)
def test_an_eap_packet_arrives_in_a_request(eap: bytes, number: int, random: bytes, secret: bytes) -> None:
    request = read(seal_request(number, random, eap_attributes(eap), secret), secret)
    assert (request.identifier, request.authenticator, request.eap) == (number, random, eap)


no_mac = st.lists(attribute.filter(lambda one: one[0] != 80), max_size=10)


@given(no_mac, octet, authenticator, secrets, st.booleans(), st.integers(0), octet)
def test_an_answer_is_authentic_until_one_bit_changes(
    attributes: list[tuple[int, bytes]], number: int, random: bytes, secret: bytes, first: bool, place: int, bit: int
) -> None:
    data = answer(2, Request(number, random, []), *attributes, secret=secret, mac_first=first)
    assert is_response_authentic(parse_radius_packet(data), random, secret)
    changed = bytearray(data)
    changed[place % len(data)] ^= 1 << bit % 8
    try:
        packet = parse_radius_packet(bytes(changed))
    except ParseError:
        return
    assert not is_response_authentic(packet, random, secret)


@given(st.binary(min_size=1, max_size=200), authenticator, secrets, st.binary(min_size=2, max_size=2))
def test_a_key_is_deciphered(key: bytes, random: bytes, secret: bytes, salt: bytes) -> None:
    assert decrypt_mppe_key(mppe(key, Request(0, random, []), secret, salt), random, secret) == key
