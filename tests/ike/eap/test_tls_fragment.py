"""Flights of TLS cut into packets and put together again; what lies about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.eap.tls_fragment import (
    ACKNOWLEDGEMENT,
    FLIGHT_MAX,
    FRAGMENT_LEN,
    FRAGMENTS_MAX,
    Fragments,
    is_start,
)


def first(total: int, part: bytes, flags: int = 0xC0) -> bytes:
    return bytes((flags,)) + total.to_bytes(4, "big") + part


def collect(*packets: bytes) -> bytes | None:
    """What the last of these completes; the others are acknowledged."""
    taker = Fragments()
    for packet in packets[:-1]:
        assert taker.take(packet) is None
        assert taker.turn() == ACKNOWLEDGEMENT
    return taker.take(packets[-1])


@pytest.mark.parametrize(
    "size", [0, 1, FRAGMENT_LEN, FRAGMENT_LEN + 1, 2 * FRAGMENT_LEN, 5 * FRAGMENT_LEN + 7, FLIGHT_MAX]
)
def test_there_and_back(size: int) -> None:
    flight = bytes(n & 0xFF for n in range(size))
    near, far = Fragments(), Fragments()
    packets = [near.send(flight)]
    while (found := far.take(packets[-1])) is None:
        assert near.take(far.turn()) is None
        packets.append(near.turn())
    assert found == flight
    assert len(packets) == max(1, -(-size // FRAGMENT_LEN))
    assert max(map(len, packets)) <= FRAGMENT_LEN + 5
    # RFC 9190 section 2.1.9: L with the first of several, and nowhere else
    assert [packet[0] & 0x80 for packet in packets] == ([0x80] if len(packets) > 1 else [0]) + [0] * (len(packets) - 1)
    # and the other way round after that
    assert near.take(far.send(b"x")) == b"x"


@pytest.mark.parametrize(
    ("packets", "flight"),
    [
        ([b"\0abc"], b"abc"),
        ([b"\0"], b""),
        ([first(3, b"abc", 0x80)], b"abc"),
        ([first(3, b"ab"), b"\0c"], b"abc"),
        # L on each, as charon and others have it
        ([first(3, b"a"), first(3, b"b"), first(3, b"c", 0x80)], b"abc"),
        # libreswan 4.10 says how long nothing is
        ([first(0, b"", 0x80)], b""),
        # reserved bits
        ([b"\x1fabc"], b"abc"),
        ([first(3, b"ab", 0xDF), b"\x07c"], b"abc"),
    ],
)
def test_taken(packets: list[bytes], flight: bytes) -> None:
    assert collect(*packets) == flight


@pytest.mark.parametrize(
    "packets",
    [
        [b""],
        [b"\x20"],
        [b"\x80"],
        [b"\x80\0\0\0"],
        [first(0, b"a", 0x80)],
        [first(4, b"abc", 0x80)],
        [first(2, b"abc", 0x80)],
        [first(FLIGHT_MAX + 1, b"a")],
        [first(0xFFFFFFFF, b"a")],
        [b"\x40abc"],
        [first(3, b"")],
        [first(3, b"abc")],
        [first(3, b"abcd")],
        [first(3, b"a"), b"\0"],
        [first(3, b"a"), b"\x40"],
        [first(3, b"a"), b"\0b"],
        [first(3, b"a"), b"\0bcd"],
        [first(3, b"a"), b"\x40bc"],
        [first(3, b"a"), first(4, b"b")],
        [first(3, b"a"), first(2, b"b", 0x80)],
        [first(3, b"a"), b"\x20"],
    ],
)
def test_malformed(packets: list[bytes]) -> None:
    with pytest.raises(ParseError):
        collect(*packets)


def test_what_is_malformed_changes_nothing() -> None:
    taker = Fragments()
    for wrong in (b"", b"\x40", b"\0", b"\0b", b"\0bcd", first(4, b"b")):
        assert taker.take(first(3, b"a")) is None
        with pytest.raises(ParseError):
            taker.take(wrong)
        assert taker.take(b"\x40b") is None
        assert taker.take(b"\0c") == b"abc"


def test_data_in_place_of_an_acknowledgement() -> None:
    for wrong in (b"", b"\0a", b"\x40", b"\x40a", first(1, b"a", 0x80), b"\x20"):
        sender = Fragments()
        sender.send(bytes(FRAGMENT_LEN + 1))
        with pytest.raises(ParseError):
            sender.take(wrong)
        assert sender.take(ACKNOWLEDGEMENT) is None
        assert sender.turn() == b"\0\0"


def test_an_alert_in_place_of_an_acknowledgement() -> None:
    """charon does not hear a flight to the end when it has seen a certificate that it does not trust."""
    alert = b"\x15\x03\x03\x00\x02\x02\x2e"
    sender = Fragments()
    sender.send(bytes(3 * FRAGMENT_LEN))
    assert sender.take(b"\0" + alert) == alert
    assert sender.turn() == ACKNOWLEDGEMENT
    sender.send(bytes(3 * FRAGMENT_LEN))
    with pytest.raises(ParseError):
        sender.take(first(9, alert))


def test_fragments_that_never_end() -> None:
    taker = Fragments()
    assert taker.take(first(FLIGHT_MAX, b"a")) is None
    for _ in range(FRAGMENTS_MAX - 1):
        assert taker.take(b"\x40a") is None
    with pytest.raises(ParseError, match="more than 256"):
        taker.take(b"\x40a")


@pytest.mark.parametrize("data", [b"\x20\0", b"\x60", b"\xa0", first(1, b"a", 0xE0), b""])
def test_start_with_data(data: bytes) -> None:
    with pytest.raises(ParseError):
        is_start(data)


def test_start() -> None:
    assert is_start(b"\x20")
    assert is_start(b"\x3f")
    assert not is_start(b"\0")


@given(st.lists(st.binary(max_size=12) | st.builds(first, st.integers(0, 9), st.binary(max_size=4)), max_size=12))
def test_any_octets(packets: list[bytes]) -> None:
    taker = Fragments()
    for packet in packets:
        try:
            flight = taker.take(packet)
        except ParseError:
            continue
        assert flight is None or len(flight) <= sum(map(len, packets))


@given(st.binary(min_size=1, max_size=40), st.data())
def test_cut_anywhere(flight: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(flight) - 1), max_size=5))) if len(flight) > 1 else []
    parts = [flight[a:b] for a, b in zip([0, *cuts], [*cuts, len(flight)], strict=True)]
    packets = [b"\x40" + part for part in parts[:-1]] + [b"\0" + parts[-1]]
    if cuts:
        packets[0] = first(len(flight), parts[0])
    assert collect(*packets) == flight
