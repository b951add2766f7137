"""Cookies (RFC 7296 section 2.6) and the account of half-open IKE_SAs."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.ike.cookie import FRUITLESS_PER_S, INSIST_S, SECRET_LIFETIME_S, CookieJar, HalfOpenLimiter

NONCE, SPI = bytes(range(32)), bytes(range(8))
A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")
A6 = ip_address("2001:db8::1")


def jar(seed: int = 1) -> CookieJar:
    return CookieJar(random.Random(seed).randbytes)


def test_a_cookie_is_known_again() -> None:
    cookies = jar()
    for address in (A, A6):
        cookie = cookies.make(5.0, NONCE, address, SPI)
        assert 1 <= len(cookie) <= 64
        assert cookies.verify(5.0, cookie, NONCE, address, SPI)


def test_it_is_for_one_nonce_address_and_spi() -> None:
    # OB-46
    cookies = jar()
    cookie = cookies.make(5.0, NONCE, A, SPI)
    assert not cookies.verify(5.0, cookie, NONCE[:-1], A, SPI)
    assert not cookies.verify(5.0, cookie, NONCE, B, SPI)
    assert not cookies.verify(5.0, cookie, NONCE, A, SPI[::-1])
    assert not jar(2).verify(5.0, cookie, NONCE, A, SPI)


def test_every_bit_counts() -> None:
    cookies = jar()
    cookie = cookies.make(5.0, NONCE, A, SPI)
    for bit in range(8 * len(cookie)):
        wrong = bytearray(cookie)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not cookies.verify(5.0, bytes(wrong), NONCE, A, SPI)


@pytest.mark.parametrize("length", [0, 1, 16, 18, 64, 65, 1000])
def test_wrong_lengths(length: int) -> None:
    cookies = jar()
    cookie = cookies.make(5.0, NONCE, A, SPI)
    assert not cookies.verify(5.0, (cookie * 60)[:length], NONCE, A, SPI)


def test_no_cookie_before_the_first_was_made() -> None:
    assert not jar().verify(0.0, bytes(17), NONCE, A, SPI)
    assert not jar().verify(0.0, b"\x01" + bytes(16), NONCE, A, SPI)


def test_secret_rotates_and_the_previous_one_is_accepted() -> None:
    cookies = jar()
    first = cookies.make(1000.0, NONCE, A, SPI)
    assert cookies.make(1000.0 + SECRET_LIFETIME_S - 1, NONCE, A, SPI) == first
    second = cookies.make(1000.0 + SECRET_LIFETIME_S, NONCE, A, SPI)
    assert second != first
    assert second[0] != first[0]
    assert cookies.verify(1000.0 + SECRET_LIFETIME_S, first, NONCE, A, SPI)
    assert cookies.verify(1000.0 + 2 * SECRET_LIFETIME_S - 1, first, NONCE, A, SPI)
    assert not cookies.verify(1000.0 + 2 * SECRET_LIFETIME_S, first, NONCE, A, SPI)
    assert cookies.verify(1000.0 + 2 * SECRET_LIFETIME_S, second, NONCE, A, SPI)


def test_a_long_silence_ends_a_cookie() -> None:
    cookies = jar()
    cookie = cookies.make(0.0, NONCE, A, SPI)
    assert not cookies.verify(86400.0, cookie, NONCE, A, SPI)


def test_versions_wrap() -> None:
    cookies = jar()
    now = 0.0
    for _ in range(600):
        cookie = cookies.make(now, NONCE, A, SPI)
        now += SECRET_LIFETIME_S
        assert cookies.verify(now, cookie, NONCE, A, SPI)


def test_no_secret_in_repr() -> None:
    assert repr(jar()).startswith("<ipsec.ike.cookie.CookieJar object")


# -- half-open IKE_SAs


def test_threshold_overall() -> None:
    limiter = HalfOpenLimiter(3, None)
    for number in range(3):
        assert not limiter.needs_cookie(A, 0.0)
        limiter.add(IPv4Address(number))
    assert limiter.needs_cookie(A, 0.0)
    limiter.remove(IPv4Address(0))
    # for a while everybody still is asked: those who were have another message 1 now
    assert limiter.needs_cookie(B, INSIST_S - 0.1)
    assert not limiter.needs_cookie(B, INSIST_S)


def test_threshold_per_source() -> None:
    limiter = HalfOpenLimiter()
    for _ in range(3):
        assert not limiter.needs_cookie(A, 0.0)
        limiter.add(A)
    assert limiter.count(A) == 3
    assert limiter.needs_cookie(A, 0.0)
    assert not limiter.needs_cookie(B, 0.0)
    # strongSwan #2791: all clients behind one NAT are still let in, with a cookie
    assert limiter.admits(A)
    limiter.remove(A)
    assert limiter.needs_cookie(A, INSIST_S - 0.1)
    assert not limiter.needs_cookie(B, INSIST_S - 0.1)
    assert not limiter.needs_cookie(A, INSIST_S)


def test_the_memory_of_sources_is_bounded() -> None:
    limiter = HalfOpenLimiter(None, 1, 8)
    for number in range(100):
        address = IPv4Address(number)
        limiter.add(address)
        assert limiter.needs_cookie(address, 0.0)
        limiter.remove(address)
    assert [number for number in range(100) if limiter.needs_cookie(IPv4Address(number), 1.0)] == list(range(92, 100))


def test_requests_that_lead_nowhere_bring_cookies_on() -> None:
    limiter = HalfOpenLimiter()
    for number in range(3 * FRUITLESS_PER_S):
        limiter.read_in_full(0.5)
        limiter.add(IPv4Address(number))
        limiter.remove(IPv4Address(number))
    assert not limiter.needs_cookie(A, 0.5)
    for _ in range(FRUITLESS_PER_S):
        limiter.read_in_full(0.6)
    assert not limiter.needs_cookie(A, 0.6)
    limiter.read_in_full(0.7)
    assert limiter.needs_cookie(A, 0.7)
    assert limiter.needs_cookie(A, 10.0)
    assert not limiter.needs_cookie(A, 11.0)
    never = HalfOpenLimiter(None, None)
    for _ in range(10 * FRUITLESS_PER_S):
        never.read_in_full(0.5)
    assert not never.needs_cookie(A, 0.5)


def test_zero_is_always_and_none_is_never() -> None:
    assert HalfOpenLimiter(0, None).needs_cookie(A, 0.0)
    assert HalfOpenLimiter(None, 0).needs_cookie(A, 0.0)
    never = HalfOpenLimiter(None, None, 10_000)
    for _ in range(1000):
        never.add(A)
    assert not never.needs_cookie(A, 0.0)


def test_hard_limit() -> None:
    limiter = HalfOpenLimiter(limit=100)
    for number in range(100):
        assert not limiter.full
        assert limiter.admits(IPv4Address(number))
        limiter.add(IPv4Address(number))
    assert limiter.full
    assert not limiter.admits(IPv4Address(1000))
    limiter.remove(IPv4Address(5))
    assert limiter.admits(IPv4Address(1000))


def test_one_source_cannot_take_all_places() -> None:
    limiter = HalfOpenLimiter(limit=800)
    while limiter.admits(A):
        limiter.add(A)
    assert limiter.count(A) == 400
    assert limiter.admits(B)
    while limiter.admits(B):
        limiter.add(B)
    assert limiter.count(B) == 100


def test_a_tiny_limit_still_lets_somebody_in() -> None:
    limiter = HalfOpenLimiter(limit=1)
    assert limiter.admits(A)
    limiter.add(A)
    assert not limiter.admits(B)


def test_ipv6_is_counted_by_64_bits() -> None:
    limiter = HalfOpenLimiter()
    for number in range(3):
        limiter.add(IPv6Address(int(A6) + number))
    assert limiter.needs_cookie(IPv6Address(int(A6) + 99), 0.0)
    assert not limiter.needs_cookie(IPv6Address("2001:db8:0:1::1"), 0.0)
    # an IPv4 address is not taken for the prefix of the same number
    assert limiter.count(IPv4Address(0)) == 0


def test_removing_what_was_not_added_changes_nothing() -> None:
    limiter = HalfOpenLimiter()
    limiter.add(A)
    limiter.remove(B)
    assert len(limiter) == 1
    limiter.remove(A)
    limiter.remove(A)
    assert len(limiter) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5))))
def test_counts_are_those_of_a_counter_and_the_table_is_bounded(steps: list[tuple[bool, int]]) -> None:
    limiter, model, now = HalfOpenLimiter(5, 2, 8), Counter[int](), 0.0
    for adding, number in steps:
        address = IPv4Address(number)
        if adding and limiter.admits(address):
            limiter.add(address)
            model[number] += 1
        elif not adding:
            limiter.remove(address)
            model[number] = max(0, model[number] - 1)
        assert len(limiter) == model.total() <= 8
        assert len(limiter._counts) == len(+model)
        now += INSIST_S
        assert limiter.needs_cookie(address, now) == (model.total() >= 5 or model[number] >= 2)
