"""Redirection (RFC 5685): contents of the notifications, and its end."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.redirect import (
    LOOP_PERIOD_S,
    REDIRECTS_MAX,
    Gateway,
    LoopGuard,
    parse_redirect,
    parse_redirected_from,
    redirect,
    redirected_from,
)
from ipsec.wire.iana import NotifyType

NONCE = bytes(range(32))
GATEWAYS: list[tuple[Gateway, bytes]] = [
    (ip_address("192.0.2.1"), b"\x01\x04\xc0\x00\x02\x01"),
    (ip_address("2001:db8::1"), b"\x02\x10\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
    ("gw2.example.org", b"\x03\x0fgw2.example.org"),
]


@pytest.mark.parametrize(("gateway", "octets"), GATEWAYS)
def test_redirect(gateway: Gateway, octets: bytes) -> None:
    payload = redirect(gateway, NONCE)
    assert payload.notify == NotifyType.REDIRECT
    assert payload.data == octets + NONCE
    assert parse_redirect(payload.data, NONCE) == gateway
    assert parse_redirect(redirect(gateway).data) == gateway


@pytest.mark.parametrize(("gateway", "octets"), GATEWAYS)
def test_redirected_from(gateway: Gateway, octets: bytes) -> None:
    payload = redirected_from(gateway)
    assert (payload.notify, payload.data) == (NotifyType.REDIRECTED_FROM, octets)
    assert parse_redirected_from(payload.data) == gateway
    with pytest.raises(ParseError):
        parse_redirected_from(payload.data + b"x")


@pytest.mark.parametrize("wrong", [b"", NONCE[:-1], NONCE + b"\0", NONCE[::-1]])
def test_nonce_must_be_ours(wrong: bytes) -> None:
    # OB-76
    with pytest.raises(ParseError, match="nonce"):
        parse_redirect(redirect("gw2.example.org", wrong).data, NONCE)


def test_no_nonce_where_none_is_expected() -> None:
    with pytest.raises(ParseError):
        parse_redirect(redirect("gw2.example.org", NONCE).data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x01\x04\xc0\x00\x02",
        b"\x01\x03\xc0\x00\x02",
        b"\x01\x10" + bytes(15) + b"\x01",
        b"\x02\x04\xc0\x00\x02\x01",
        b"\x00\x04\xc0\x00\x02\x01",
        b"\x04\x04\xc0\x00\x02\x01",
        b"\x01\x04" + bytes(4),
        b"\x01\x04\xe0\x00\x00\x01",
        b"\x02\x10" + bytes(16),
        b"\x02\x10" + b"\xff" * 16,
        b"\x03\x00",
        b"\x03\x03a b",
        b"\x03\x02a\n",
        b"\x03\x02a\x00",
        b"\x03\x04a..b",
        b"\x03\x02-a",
        b"\x03\x02a-",
        b"\x03\x02\xc3\xa4",
        b"\x03\x40" + b"a" * 64,
        b"\x03\xff" + b"a." * 127 + b"a",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(ParseError):
        parse_redirect(data)
    with pytest.raises(ParseError):
        parse_redirected_from(data)


def test_a_name_that_is_none_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not the name"):
        redirect("a b")


@given(st.binary(max_size=40), st.binary(max_size=8))
def test_anything_is_parsed_or_refused(data: bytes, nonce: bytes) -> None:
    try:
        gateway = parse_redirect(data, nonce)
    except ParseError:
        return
    assert redirect(gateway, nonce).data == data


def test_loops_end() -> None:
    guard = LoopGuard()
    assert all(guard.follow(100.0 + number) for number in range(REDIRECTS_MAX))
    assert not guard.follow(110.0)
    assert not guard.follow(100.0 + LOOP_PERIOD_S - 0.1)
    # the oldest is forgotten, the others are not
    assert guard.follow(100.0 + LOOP_PERIOD_S)
    assert not guard.follow(100.0 + LOOP_PERIOD_S)
