"""POSIX extended regular expressions: as ``re`` matches them where both agree, and never for long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto.regex import POSITIONS_MAX, Regex, RegexError

_ATOMS = st.sampled_from(("a", "b", "c", "-", ".", "[ab]", "[^a]", "[a-c-]", "\\.", "\\w", "[^]a]", "[[:digit:]b]"))
_REPEATS = st.sampled_from(("*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}", "{2,4}"))
_PATTERNS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, _REPEATS).map(lambda two: f"({two[0]}){two[1]}"),
    ),
    max_leaves=8,
)


@given(_PATTERNS, st.lists(st.text("abcABd-.]1\n", max_size=8), max_size=8))
def test_as_re_does(pattern: str, texts: list[str]) -> None:
    try:
        ours = Regex(f"^{pattern}$")
    except RegexError as error:
        assert "longer" in str(error)  # noqa: PT017 - what else is wrong with it?
        return
    theirs = re.compile(pattern.replace("[^]a]", "[^\\]a]").replace("[:digit:]", "0-9"), re.I | re.A | re.S)
    for text in texts:
        assert ours.fullmatch(text) == bool(theirs.fullmatch(text))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^a$", "aA", ("", "b", "aa", "a\n")),
        ("^a$|^b$", "ab", ("ab", "")),
        ("^[]-]$", "]-", "a\\"),
        ("^[a\\.]$", "a.\\", "b"),
        ("^[+--]$", "+,-", ".*"),
        ("^[a-]$", "a-", "b"),
        ("^[^[:upper:]]$", "1", "aA"),
        ("^[[:punct:]]$", "!/:@[`{~", "a1 "),
        ("^[[:space:]]$", "\t\n\r ", "a"),
        ("^.$", "a\nä", ("", "ab")),
        ("^k$", "kK", "\u212a"),
        ("^s$", "sS", "\u017f"),
        ("^ß$", "ß", ("ss", "S")),
        ("^(a?){3}$", ("", "a", "aaa"), ("aaaa",)),
        ("^a{2,}$", ("aa", "aaa"), ("a",)),
        ("^(a*)*$", ("", "aaa"), ("b",)),
        ("^}]$", ("}]",), ("}",)),
        ("^[\\\\]$", "\\", ("", "\\\\", "]")),
        ("^[\\\\w]$", "\\w", "a"),
        ("^[+-\\\\]$", "+A[\\", "]*"),
        ("^a{0}$", ("",), "a"),
        ("^a{0}b{0,0}c(d{0}|e)$", ("c", "ce"), ("ac", "bc", "cd", "")),
        ("^((a{0}){255}){255}(b{0})*(c{0})+$", ("",), ("b",)),
        ("^[^ä-ö]$", "aßø", "äåö"),
        ("^" + "[a-z0-9-]{1,63}\\." * 9 + "org$", ("a1." * 9 + "org",), ("a." * 8 + "org", "a." * 10 + "org")),
        ("^(a{2,5}b?){1,2}$", ("aa", "aabaaaaab", "aaaaaaaaaa"), ("a", "ab", "aab" * 3, "a" * 11)),
        ("^\\$\\{\\^$", ("${^",), ("$",)),
        ("^\\W\\S\\s$", ("-a ",), ("a- ",)),
    ],
)
def test_matches(pattern: str, yes: tuple[str, ...] | str, no: tuple[str, ...] | str) -> None:
    regex = Regex(pattern)
    assert [text for text in yes if not regex.fullmatch(text)] == []
    assert [text for text in no if regex.fullmatch(text)] == []


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("^a|b$", "every alternative"),
        ("^a\\$", "every alternative"),
        ("^(a|)$", "nothing where something"),
        ("^()$", "nothing where something"),
        ("^$", "nothing where something"),
        ("^(a$", "not closed"),
        ("^(a$)$", "not closed, or there is a"),
        ("^a)$", "every alternative"),
        ("^a$)", "a bracket too many"),
        ("^a^b$", "not at its beginning"),
        ("^*a$", "nothing for"),
        ("^a+?$", "no lazy ones"),
        ("^a**$", "one repetition follows"),
        ("^a{x}$", "interval"),
        ("^a{,2}$", "interval"),
        ("^a{1$", "interval"),
        ("^a{1,2,3}$", "interval"),
        ("^a{²}$", "interval"),
        ("^a{3,2}$", "ends before"),
        ("^a{256}$", "not within"),
        ("^(?i)a$", "not POSIX"),
        ("^(a)\\1$", "refers back"),
        ("^\\d$", "is not POSIX"),
        ("^\\<a$", "is not POSIX"),
        ("^[\\w]$", "within"),
        ("^[\\]]$", "within"),
        ("^[[:word:]]$", "no class"),
        ("^[[=a=]]$", "not taken"),
        ("^[[.a.]]$", "not taken"),
        ("^[a-[:digit:]]$", "not taken"),
        ("^[z-a]$", "ends before"),
        ("^[a$", "without"),
        ("^a\\", "ends in a backslash"),
        ("^a", "every alternative"),
        (f"^{'(' * 40}a{')' * 40}$", "within one another"),
        ("^((a{30}){30}){30}$", "longer than"),
        # nothing written out, and yet looked at again and again
        (f"^({'a{0}|' * 1000}a){{255}}$", "longer than 4096 characters"),
        (f"^{'a' * (POSITIONS_MAX + 1)}$", "longer than"),
    ],
)
def test_refused(pattern: str, why: str) -> None:
    with pytest.raises(RegexError, match=re.escape(why)):
        Regex(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^([a-z0-9]+-?)+\\.example\\.org$", "a" * 511 + "!"),
        ("^(a|a)*$", "a" * 511 + "b"),
        ("^(.*)*(.*)*(.*)*x$", "ab" * 256),
        (f"^{'a?' * 255}a{{255}}b$", "a" * 512),
        ("^((a|b)?(b|a)?){128}$", "ab" * 255 + "aac"),
        (f"^{'a?' * (POSITIONS_MAX - 2)}bc$", "a" * 512),
        ("^((((((a{0}){255}){255}){255}){255}){255}){255}$", "a"),
    ],
)
def test_no_text_takes_long(pattern: str, text: str) -> None:
    regex = Regex(pattern)
    begun = time.process_time()
    assert not regex.fullmatch(text)
    # some milliseconds; a backtracking matcher takes years
    assert time.process_time() - begun < 2
