"""IKE fragmentation: every order, every silly number, and bounds (RFC 7383; CVE-2013-6076, 2016-1287, 2016-1344)."""

from __future__ import annotations

import sys
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.fragment import BYTES_MAX, FRAGMENTS_MAX, Reassembly, split

SA, NOTIFY = 33, 41


def test_split_fills_all_pieces_but_the_last() -> None:
    assert split(b"abcdefgh", 3) == [b"abc", b"def", b"gh"]
    assert split(b"abcdef", 3) == [b"abc", b"def"]
    assert split(b"abc", 100) == [b"abc"]


def test_split_of_nothing_is_one_piece() -> None:
    assert split(b"", 100) == [b""]


@pytest.mark.parametrize("room", [-5, 0, 1, 200])
def test_split_never_makes_too_many_pieces(room: int) -> None:
    content = bytes(65000)
    pieces = split(content, room)
    assert len(pieces) <= FRAGMENTS_MAX
    assert b"".join(pieces) == content


@given(content=st.binary(max_size=600), room=st.integers(1, 700), order=st.randoms())
def test_what_was_split_comes_together_in_any_order(content: bytes, room: int, order: Random) -> None:
    pieces = list(enumerate(split(content, room), 1))
    total = len(pieces)
    order.shuffle(pieces)
    reassembly = Reassembly()
    found = [reassembly.add(number, total, SA if number == 1 else 0, piece) for number, piece in pieces]
    assert found == [None] * (total - 1) + [(SA, content)]


@pytest.mark.parametrize("total", range(1, 7))
def test_every_permutation(total: int) -> None:
    pieces = {number: bytes((number,)) * number for number in range(1, total + 1)}
    whole = b"".join(pieces.values())
    for order in permutations(pieces):
        reassembly = Reassembly()
        found = [reassembly.add(number, total, NOTIFY if number == 1 else 0, pieces[number]) for number in order]
        assert found == [None] * (total - 1) + [(NOTIFY, whole)]


def test_only_the_first_fragment_tells_the_first_payload() -> None:
    reassembly = Reassembly()
    assert reassembly.add(2, 2, SA, b"b") is None
    assert reassembly.add(1, 2, NOTIFY, b"a") == (NOTIFY, b"ab")


def test_duplicates_change_nothing() -> None:
    reassembly = Reassembly()
    assert reassembly.add(1, 2, SA, b"a") is None
    assert reassembly.add(1, 2, NOTIFY, b"other") is None
    assert len(reassembly) == 1
    assert reassembly.add(2, 2, 0, b"b") == (SA, b"ab")


def test_empty_fragments_count() -> None:
    reassembly = Reassembly()
    assert reassembly.add(2, 3, 0, b"") is None
    assert reassembly.add(2, 3, 0, b"") is None
    assert reassembly.add(1, 3, SA, b"a") is None
    assert reassembly.add(3, 3, 0, b"") == (SA, b"a")


def test_larger_total_begins_anew() -> None:
    # RFC 7383 section 2.6: the sender has found a smaller path MTU
    reassembly = Reassembly()
    assert reassembly.add(1, 2, SA, b"abcd") is None
    assert reassembly.add(1, 3, SA, b"ab") is None
    assert len(reassembly) == 2
    assert reassembly.add(2, 3, 0, b"cd") is None
    assert reassembly.add(3, 3, 0, b"ef") == (SA, b"abcdef")


def test_smaller_total_is_ignored() -> None:
    reassembly = Reassembly()
    assert reassembly.add(1, 3, SA, b"ab") is None
    assert reassembly.add(2, 2, 0, b"efgh") is None
    assert reassembly.add(1, 1, SA, b"whole") is None
    assert len(reassembly) == 2


def test_nothing_comes_after_the_whole() -> None:
    reassembly = Reassembly()
    assert reassembly.add(1, 1, SA, b"a") == (SA, b"a")
    for total in (1, 2, FRAGMENTS_MAX):
        assert reassembly.add(1, total, SA, b"a") is None
    assert len(reassembly) == 0


def test_numbers_that_cannot_be() -> None:
    values = (0, 1, 2, 254, 255, 256, 65535)
    for total in values:
        for number in (*values, total + 1):
            reassembly = Reassembly()
            if 0 < number <= total <= FRAGMENTS_MAX:
                reassembly.add(number, total, SA, b"a")
                assert len(reassembly) == (0 if total == 1 else 1)
            else:
                with pytest.raises(ParseError):
                    reassembly.add(number, total, SA, b"a")
                assert len(reassembly) == 0


def test_an_error_keeps_what_was_there() -> None:
    reassembly = Reassembly(max_bytes=10)
    assert reassembly.add(1, 2, SA, b"a") is None
    for number, total, piece in ((0, 2, b""), (3, 2, b""), (1, 256, b""), (2, 2, bytes(10)), (1, 3, bytes(11))):
        with pytest.raises(ParseError):
            reassembly.add(number, total, 0, piece)
    assert reassembly.add(2, 2, 0, b"b") == (SA, b"ab")


def test_announcing_many_fragments_costs_nothing() -> None:
    reassembly = Reassembly()
    reassembly.add(FRAGMENTS_MAX, FRAGMENTS_MAX, 0, b"a")
    size = sum(sys.getsizeof(getattr(reassembly, name)) for name in reassembly.__slots__)
    assert size < 1000


def test_bytes_are_bounded() -> None:
    reassembly = Reassembly()
    piece = bytes(65535)
    for number in range(1, BYTES_MAX // len(piece) + 1):
        assert reassembly.add(number, FRAGMENTS_MAX, SA, piece) is None
    with pytest.raises(ParseError):
        reassembly.add(200, FRAGMENTS_MAX, 0, b"a")
    assert len(reassembly) == BYTES_MAX


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 255), st.binary(max_size=8))))
def test_any_sequence_is_bounded_and_gives_one_message_at_most(
    fragments: list[tuple[int, int, int, bytes]],
) -> None:
    reassembly = Reassembly(max_total=6, max_bytes=20)
    results = []
    for fragment in fragments:
        try:
            results.append(reassembly.add(*fragment))
        except ParseError:
            number, total, _, piece = fragment
            assert number == 0 or number > total or total > 6 or len(reassembly) + len(piece) > 20 or len(piece) > 20
        assert len(reassembly) <= 20
    assert sum(result is not None for result in results) <= 1


def test_views_are_copied() -> None:
    buffer = bytearray(b"ab")
    reassembly = Reassembly()
    reassembly.add(1, 2, SA, memoryview(buffer)[:1])  # type: ignore[arg-type]
    buffer[0] = 0
    assert reassembly.add(2, 2, 0, b"b") == (SA, b"ab")
