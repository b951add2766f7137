"""Numbers and foreign text as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.text import plural, printable


def test_plurals() -> None:
    assert [plural(n, "connection") for n in (0, 1, 2)] == ["0 connections", "1 connection", "2 connections"]
    assert plural(2, "policy", "policies") == "2 policies"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("CN=moon, O=\u00e9\u4e2d", "CN=moon, O=\u00e9\u4e2d"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\0\x1b[2J\x7f\x9b", r"\x00\x1b[2J\x7f\x9b"),
        ("\u2028\u202e\ufeff\udc80", r"\u2028\u202e\ufeff\udc80"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_texts_that_are_shown_do_nothing_else(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


@given(st.binary(max_size=40))
def test_all_bytes_can_be_printed(data: bytes) -> None:
    assert printable(data).isprintable()
    # and what could be printed is as it was
    if (text := data.decode("utf-8", "replace")).isprintable() and "\ufffd" not in text:
        assert printable(data) == text
