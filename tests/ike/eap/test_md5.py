"""EAP-MD5: the digest, both ends, and everything that is no right answer."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.eap.md5 import Md5Peer, Md5Server
from ipsec.ike.eap.method import EapError
from ipsec.wire.iana import EapType
from tests.ike.eap.meddling import converse, instead_of, octet_changes, truncations

SECRET = b"Ar3etTnp01qlpOgb"


def make_server(secret: bytes = SECRET) -> Md5Server:
    return Md5Server(secret, random.Random(1).randbytes, b"gateway")


def test_the_digest() -> None:
    """RFC 1994 section 4.1: the Identifier, the secret, the challenge."""
    challenge = bytes.fromhex("5b0f6d2ecb2c3a1f")
    peer = Md5Peer(SECRET)
    response = peer.respond(0xA5, b"\x08" + challenge + b"whoever")
    assert response == b"\x10" + hashlib.md5(b"\xa5" + SECRET + challenge).digest()
    assert peer.finished


def test_both_ends() -> None:
    peer, server = Md5Peer(SECRET), make_server()
    outcome = converse(peer, server)
    assert outcome.accepted
    assert peer.finished
    assert peer.msk is server.msk is None
    assert outcome.messages[0] == b"\x10" + random.Random(1).randbytes(16) + b"gateway"
    assert peer.type == server.type == EapType.MD5


@pytest.mark.parametrize("other", [b"", SECRET[:-1], SECRET + b"\0", SECRET.lower()])
def test_another_secret(other: bytes) -> None:
    outcome = converse(Md5Peer(other), make_server())
    assert isinstance(outcome.error, EapError)
    assert not outcome.accepted
    assert SECRET.decode() not in str(outcome.error)


def test_the_identifier_counts() -> None:
    server = make_server()
    response = Md5Peer(SECRET).respond(8, server.begin(7))
    with pytest.raises(EapError):
        server.take(7, response, 8)


def test_a_challenge_is_good_for_one_response() -> None:
    server = make_server()
    right = Md5Peer(SECRET).respond(7, server.begin(7))
    with pytest.raises(EapError):
        server.take(7, b"\x10" + bytes(16), 8)
    with pytest.raises(EapError):
        server.take(7, right, 8)


def test_a_response_to_nothing() -> None:
    with pytest.raises(EapError):
        make_server().take(7, b"\x10" + hashlib.md5(b"\x07" + SECRET).digest(), 8)


def test_challenges_differ() -> None:
    server = make_server()
    assert server.begin(1) != server.begin(2)


@pytest.mark.parametrize("number", [0, 1])
def test_no_change_succeeds(number: int) -> None:
    first = converse(Md5Peer(SECRET), make_server()).messages[number]
    for data in truncations(first):
        # of the challenge, the name may be cut off
        outcome = converse(Md5Peer(SECRET), make_server(), instead_of(number, data))
        assert outcome.accepted == (number == 0 and len(data) >= 17)
    for at, data in octet_changes(first):
        outcome = converse(Md5Peer(SECRET), make_server(), instead_of(number, data))
        assert outcome.accepted == (number == 0 and at >= 17)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0name", b"\x01", b"\x10" + bytes(15), b"\xff" + bytes(254)])
def test_malformed(data: bytes) -> None:
    peer = Md5Peer(SECRET)
    with pytest.raises(ParseError):
        peer.respond(1, data)
    assert not peer.finished
    server = make_server()
    right = Md5Peer(SECRET).respond(7, server.begin(7))
    with pytest.raises(ParseError):
        server.take(7, data, 8)
    assert server.take(7, right, 8) is None


@given(st.integers(0, 255), st.binary(max_size=300))
def test_anything(identifier: int, data: bytes) -> None:
    for number in (0, 1):
        outcome = converse(Md5Peer(SECRET), make_server(), instead_of(number, data))
        assert not outcome.accepted
