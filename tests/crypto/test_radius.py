"""Authenticators and keys of RADIUS: the example of RFC 2865, scapy, and what is not authentic."""

from __future__ import annotations

import hashlib
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.layers.radius import Radius, RadiusAttr_Message_Authenticator

from ipsec.crypto.radius import decrypt_mppe_key, is_response_authentic, seal_request
from ipsec.errors import ParseError
from ipsec.wire.radius import parse_radius_packet
from tests.ike.radius_server import ACCEPT, MAC, SECRET, Request, answer, mppe
from tests.wire.test_radius import ACCEPT as RFC_ACCEPT
from tests.wire.test_radius import REQUEST as RFC_REQUEST

REQUEST = Request(7, bytes(range(16)), [])


def authentic(data: bytes, secret: bytes = SECRET) -> bool:
    return is_response_authentic(parse_radius_packet(data), REQUEST.authenticator, secret)


def test_an_answer_without_a_message_authenticator_is_not_authentic() -> None:
    # the Response Authenticator is right, as RFC 2865 section 7.1 has it
    body = RFC_ACCEPT[:4] + RFC_REQUEST[4:20] + RFC_ACCEPT[20:] + b"xyzzy5461"
    assert hashlib.md5(body).digest() == RFC_ACCEPT[4:20]
    assert not is_response_authentic(parse_radius_packet(RFC_ACCEPT), RFC_REQUEST[4:20], b"xyzzy5461")
    assert not authentic(answer(ACCEPT, REQUEST, (1, b"alice"), mac=False))


def test_an_answer_is_authentic_wherever_its_message_authenticator_is() -> None:
    assert authentic(answer(ACCEPT, REQUEST, (1, b"alice")))
    assert authentic(answer(ACCEPT, REQUEST, (1, b"alice"), mac_first=False))


def test_both_authenticators_have_to_be_right() -> None:
    data = answer(ACCEPT, REQUEST, (1, b"alice"))
    assert not authentic(data, b"another")
    assert not is_response_authentic(parse_radius_packet(data), bytes(16), SECRET)
    assert not authentic(data[:4] + bytes(16) + data[20:])
    # the Response Authenticator alone is made anew
    wrong = data[:22] + bytes(16) + data[38:]
    digest = hashlib.md5(wrong[:4] + REQUEST.authenticator + wrong[20:] + SECRET).digest()
    assert not authentic(wrong[:4] + digest + wrong[20:])


@pytest.mark.parametrize("extra", [(MAC, bytes(16)), (MAC, b""), (MAC, bytes(15))])
def test_a_second_message_authenticator_is_one_too_many(extra: tuple[int, bytes]) -> None:
    assert not authentic(answer(ACCEPT, REQUEST, extra))
    assert not authentic(answer(ACCEPT, REQUEST, extra, mac=False))


def test_scapy_makes_the_same_authenticators() -> None:
    attributes = ((1, b"alice"), (79, b"\x02\x01\x00\x0a\x01alice"), (61, bytes((0, 0, 0, 5))))
    octets = seal_request(9, bytes(range(16)), attributes, SECRET)
    theirs = Radius(octets)
    assert theirs.attributes[0].type == MAC
    mac = RadiusAttr_Message_Authenticator.compute_message_authenticator(theirs, bytes(range(16)), SECRET)
    assert mac == octets[22:38]
    data = answer(ACCEPT, REQUEST, (1, b"alice"))
    assert Radius(data).compute_authenticator(REQUEST.authenticator, SECRET) == data[4:20]


def test_a_key_of_each_length() -> None:
    for size in (1, 15, 16, 31, 32, 64):
        assert decrypt_mppe_key(mppe(bytes(range(size)), REQUEST), REQUEST.authenticator, SECRET) == bytes(range(size))


@pytest.mark.parametrize("value", [b"", b"\x80", b"\x80\x01", b"\x80\x01" + bytes(15), b"\x80\x01" + bytes(33)])
def test_a_key_that_is_malformed(value: bytes) -> None:
    with pytest.raises(ParseError, match="is not enciphered in blocks of 16"):
        decrypt_mppe_key(value, bytes(16), SECRET)


@pytest.mark.parametrize("length", [0, 16, 255])
def test_a_key_with_a_length_that_is_none(length: int) -> None:
    pad = hashlib.md5(SECRET + bytes(16) + b"\x80\x01").digest()
    sealed = b"\x80\x01" + bytes((pad[0] ^ length,)) + pad[1:]
    with pytest.raises(ParseError, match="whose length is not one"):
        decrypt_mppe_key(sealed, bytes(16), SECRET)
