"""POSIX extended regular expressions (IEEE Std 1003.1, chapter 9.4), matched in time that the text cannot blow up.

``re`` tries one way after another; what a stranger sends can make that take for ever. Here all ways are followed at
once: Glushkov's automaton, one bit for each position of the pattern. Back references, which no automaton can follow,
and all that POSIX leaves undefined or that ``re`` understands in another way are refused.

A pattern is ``^...$``, or several such with ``|`` between them, and is held against the whole text. ASCII letters match
in either case.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import reduce
from operator import getitem, or_
from typing import NamedTuple

LENGTH_MAX = 4096
"characters of a pattern: bounds what building it costs"
POSITIONS_MAX = 2048
"characters of a pattern once its repetitions are written out: bounds what one character of a text costs"
DEPTH_MAX = 32
REPEAT_MAX = 255
"RE_DUP_MAX"

_CLASSES = {
    "alpha": "AZaz",
    "digit": "09",
    "alnum": "AZaz09",
    "upper": "AZ",
    "lower": "az",
    "space": "\t\r  ",
    "blank": "\t\t  ",
    "xdigit": "09AFaf",
    "punct": "!/:@[`{~",
    "graph": "!~",
    "print": " ~",
    "cntrl": "\0\x1f\x7f\x7f",
}
"first and last of each range"
_WORD = "AZaz09__"


class RegexError(ValueError):
    """The text is no pattern, or not one that is taken; ``str()`` says why and how to write it."""


class _Chars(NamedTuple):
    """What one position matches."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def has(self, char: str) -> bool:
        code = ord(char)
        # not those of Unicode: the Kelvin sign is no k
        other = code ^ 0x20 if char.isascii() and char.isalpha() else code
        return any(low <= code <= high or low <= other <= high for low, high in self.ranges) != self.negated


def _ranges(pairs: str) -> tuple[tuple[int, int], ...]:
    return tuple((ord(pairs[at]), ord(pairs[at + 1])) for at in range(0, len(pairs), 2))


_ANY = _Chars((), negated=True)
_ESCAPES = {
    "w": _Chars(_ranges(_WORD)),
    "W": _Chars(_ranges(_WORD), negated=True),
    "s": _Chars(_ranges(_CLASSES["space"])),
    "S": _Chars(_ranges(_CLASSES["space"]), negated=True),
}


class _Part(NamedTuple):
    """A piece of the automaton: the positions that it begins and ends with, and whether it matches nothing as well."""

    first: int
    last: int
    empty: bool


_NOTHING = _Part(0, 0, True)


class _Builder:
    def __init__(self) -> None:
        self.chars: dict[_Chars, int] = {}
        self.follow: list[int] = []

    def position(self, chars: _Chars) -> _Part:
        if len(self.follow) == POSITIONS_MAX:
            raise RegexError(f"with its repetitions written out it is longer than {POSITIONS_MAX} characters")
        bit = 1 << len(self.follow)
        self.follow.append(0)
        self.chars[chars] = self.chars.get(chars, 0) | bit
        return _Part(bit, bit, False)

    def _link(self, last: int, first: int) -> None:
        for number in _bits(last):
            self.follow[number] |= first

    def join(self, one: _Part, other: _Part) -> _Part:
        self._link(one.last, other.first)
        first = one.first | other.first if one.empty else one.first
        last = one.last | other.last if other.empty else other.last
        return _Part(first, last, one.empty and other.empty)

    def loop(self, part: _Part) -> _Part:
        self._link(part.last, part.first)
        return part


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        bit = mask & -mask
        found.append(bit.bit_length() - 1)
        mask ^= bit
    return found


_Node = Callable[[_Builder], _Part]
"makes its positions anew each time, so that it can be repeated"


def _leaf(chars: _Chars) -> _Node:
    return lambda builder: builder.position(chars)


def _sequence(nodes: list[_Node]) -> _Node:
    def build(builder: _Builder) -> _Part:
        part = nodes[0](builder)
        for node in nodes[1:]:
            part = builder.join(part, node(builder))
        return part

    return build


def _alternatives(nodes: list[_Node]) -> _Node:
    def build(builder: _Builder) -> _Part:
        first = last = 0
        empty = False
        for node in nodes:
            part = node(builder)
            first, last, empty = first | part.first, last | part.last, empty or part.empty
        return _Part(first, last, empty)

    return build


def _repeat(node: _Node, least: int, most: int | None) -> _Node:
    """``most`` None: without end."""

    def build(builder: _Builder) -> _Part:
        copies = max(least, 1) if most is None else most
        if not copies:
            return _NOTHING
        parts = [node(builder)]
        if not parts[0].first:
            # a{0} again and again: no positions, and so no bound
            return parts[0]
        parts += [node(builder) for _ in range(copies - 1)]
        if most is None:
            parts[-1] = builder.loop(parts[-1])
        whole = _NOTHING
        for number in reversed(range(copies)):
            # a(a(a)?)? and not a?a?a?, which has a link from each to all that follow
            whole = builder.join(parts[number], whole)
            whole = whole if number < least else whole._replace(empty=True)
        return whole

    return build


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> _Node:
        branches = [self._anchored()]
        while self._take("|"):
            branches.append(self._anchored())
        if self.at < len(self.text):
            raise RegexError(f"{self.text[self.at :][:20]!r} follows its end: a bracket too many, or write \\$")
        return _alternatives(branches)

    def _anchored(self) -> _Node:
        begins = self._take("^")
        node = self._branch()
        if not begins or not self._take("$"):
            raise RegexError("every alternative has to begin with ^ and end with $: write ^(a|b)$ for ^a|b$")
        return node

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, char: str) -> bool:
        found = self.text.startswith(char, self.at)
        self.at += len(char) if found else 0
        return found

    def _next(self, where: str) -> str:
        char = self._peek()
        if not char:
            raise RegexError(f"it ends in {where}")
        self.at += 1
        return char

    def _branch(self) -> _Node:
        nodes = []
        while self._peek() not in ("", "|", ")", "$"):
            nodes.append(self._repeated())
        if not nodes:
            raise RegexError("there is nothing where something has to be: write (a)? for (a|)")
        return _sequence(nodes)

    def _repeated(self) -> _Node:
        node = self._atom()
        if self._take("*"):
            node = _repeat(node, 0, None)
        elif self._take("+"):
            node = _repeat(node, 1, None)
        elif self._take("?"):
            node = _repeat(node, 0, 1)
        elif self._take("{"):
            node = _repeat(node, *self._interval())
        else:
            return node
        if self._peek() in ("*", "+", "?", "{"):
            raise RegexError("one repetition follows another: write (a*)* with brackets; there are no lazy ones")
        return node

    def _interval(self) -> tuple[int, int | None]:
        inside, closed, _ = self.text[self.at :].partition("}")
        least, comma, most = inside.partition(",")
        digits = (least + most).isascii() and (least + most).isdigit() and len(inside) <= 7
        if not closed or not digits or not least:
            raise RegexError("{ does not begin an interval such as {1,3}: write \\{ for the character")
        self.at += len(inside) + 1
        low, high = int(least), int(most) if most else None if comma else int(least)
        if max(low, high or 0) > REPEAT_MAX or (high is not None and high < low):
            raise RegexError(f"the interval {{{inside}}} is not within 0 to {REPEAT_MAX}, or ends before it begins")
        return low, high

    def _atom(self) -> _Node:
        char = self._next("the middle")
        if char == "(":
            return self._group()
        if char == "[":
            return _leaf(self._bracket())
        if char == "\\":
            return _leaf(self._escape())
        if char == ".":
            return _leaf(_ANY)
        if char == "^":
            raise RegexError("there is a ^ that is not at its beginning: write \\^ for the character")
        if char in "*+?{":
            raise RegexError(f"there is nothing for {char} to repeat: write \\{char} for the character")
        return _leaf(_Chars(((ord(char), ord(char)),)))

    def _group(self) -> _Node:
        if self._peek() == "?":
            raise RegexError("(? is not POSIX")
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise RegexError(f"more than {DEPTH_MAX} brackets are within one another")
        branches = [self._branch()]
        while self._take("|"):
            branches.append(self._branch())
        if not self._take(")"):
            raise RegexError("a bracket is not closed, or there is a $ within it")
        self.depth -= 1
        return _alternatives(branches)

    def _escape(self) -> _Chars:
        char = self._next("a backslash")
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isdigit():
            raise RegexError(f"\\{char} refers back, which cannot be matched in bounded time")
        if char.isalpha() or char in "<>`'":
            raise RegexError(f"\\{char} is not POSIX: write [[:digit:]], [[:alnum:]] and so on")
        return _Chars(((ord(char), ord(char)),))

    def _bracket(self) -> _Chars:
        negated = self._take("^")
        ranges = self._bracket_item()  # a ] here stands for itself
        while not self._take("]"):
            ranges += self._bracket_item()
        return _Chars(ranges, negated)

    def _bracket_item(self) -> tuple[tuple[int, int], ...]:
        if self._take("[:"):
            name, closed, _ = self.text[self.at :].partition(":]")
            if not closed or name not in _CLASSES:
                raise RegexError(f"[:{name[:20]}:] is no class of characters: {', '.join(_CLASSES)} are")
            self.at += len(name) + 2
            return _ranges(_CLASSES[name])
        low = high = self._bracket_char()
        if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            high = self._bracket_char()
            if high < low:
                raise RegexError(f"the range {low}-{high} ends before it begins")
        return ((ord(low), ord(high)),)

    def _bracket_char(self) -> str:
        char, following = self._next("[ without ]"), self._peek()
        if char == "[" and following in ("=", ".", ":"):
            raise RegexError(f"[{following} is not taken here")
        if char == "\\" and self._take("\\"):
            # two are one, whether a backslash stands for itself, as in POSIX, or for the next
            return char
        if char == "\\" and (following.isalnum() or following == "]"):
            # in POSIX it stands for itself here, and hardly anybody means that
            raise RegexError(f"\\{following} within [] is not POSIX: write [[:alnum:]_] for [\\w], []a] for [\\]a]")
        return char


def _tables(follow: list[int]) -> tuple[dict[str, int], ...]:
    """What follows each set of four positions, by its hexadecimal digit: a step for each is what would cost most."""
    tables = []
    for at in range(0, len(follow), 4):
        reach = [0]
        for one in (*follow[at : at + 4], 0, 0, 0)[:4]:
            reach += [one | other for other in reach]
        tables.append(dict(zip("0123456789abcdef", reach, strict=True)))
    return tuple(tables)


class Regex:
    """A pattern."""

    __slots__ = ("_bounds", "_chars", "_masks", "_tables", "_whole")

    def __init__(self, text: str) -> None:
        """RegexError."""
        if len(text) > LENGTH_MAX:
            raise RegexError(f"it is longer than {LENGTH_MAX} characters")
        builder = _Builder()
        self._whole = _Parser(text).whole()(builder)
        self._chars = tuple(builder.chars.items())
        self._tables = _tables(builder.follow)
        ranges = [one for chars in builder.chars for one in chars.ranges]
        self._bounds = sorted({128, *(edge for low, high in ranges for edge in (low, high + 1) if edge > 128)})
        self._masks: dict[int, int] = {}
        "of characters that were met; beyond ASCII one for all that no range tells apart, so that they stay few"

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text matches. Each character costs at most a step for four positions of the pattern."""
        if not text:
            return self._whole.empty
        beyond: dict[int, int] = {}
        reach, states = self._whole.first, 0
        for char in text:
            states = reach & self._mask(ord(char))
            if not states:
                return False
            if states not in beyond:
                beyond[states] = reduce(or_, map(getitem, self._tables, f"{states:x}"[::-1]))
            reach = beyond[states]
        return bool(states & self._whole.last)

    def _mask(self, code: int) -> int:
        """The positions that match a character."""
        code = code if code < 128 else self._bounds[bisect_right(self._bounds, code) - 1]
        found = self._masks.get(code)
        if found is None:
            found = sum(mask for chars, mask in self._chars if chars.has(chr(code)))
            self._masks[code] = found
        return found
