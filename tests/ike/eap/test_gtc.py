"""EAP-GTC: a question, a password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.ike.eap.gtc import GtcPeer, GtcServer
from ipsec.ike.eap.method import EapError
from ipsec.wire.iana import EapType
from tests.ike.eap.meddling import converse, instead_of, octet_changes, truncations

SECRET = "schlüssel".encode()


def test_both_ends() -> None:
    peer, server = GtcPeer(SECRET), GtcServer(SECRET)
    outcome = converse(peer, server)
    assert outcome.accepted
    assert peer.finished
    assert peer.msk is server.msk is None
    assert outcome.messages == [b"Password", SECRET]
    assert peer.type == server.type == EapType.GTC


def test_another_question() -> None:
    assert GtcServer(SECRET, b"Token?").begin(1) == b"Token?"


def test_no_change_succeeds() -> None:
    for data in (b"", SECRET + b"\0", *truncations(SECRET), *(data for _, data in octet_changes(SECRET))):
        outcome = converse(GtcPeer(SECRET), GtcServer(SECRET), instead_of(1, data))
        assert isinstance(outcome.error, EapError)
        assert not outcome.accepted
        assert SECRET.decode() not in str(outcome.error)


def test_one_answer_to_one_question() -> None:
    server = GtcServer(SECRET)
    with pytest.raises(EapError, match="no question"):
        server.take(6, SECRET, 7)
    server.begin(7)
    with pytest.raises(EapError, match="wrong"):
        server.take(7, b"guess", 8)
    with pytest.raises(EapError, match="no question"):
        server.take(7, SECRET, 8)


def test_the_password_is_shown_once() -> None:
    peer = GtcPeer(SECRET)
    assert peer.respond(1, b"Password") == SECRET
    with pytest.raises(EapError):
        peer.respond(2, b"Next token")


@given(st.binary(max_size=300))
def test_anything(data: bytes) -> None:
    assert converse(GtcPeer(SECRET), GtcServer(SECRET), instead_of(0, data)).accepted
    assert not converse(GtcPeer(SECRET), GtcServer(SECRET), instead_of(1, data)).accepted
