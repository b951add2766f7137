"""How numbers and what others wrote are shown, in logs and on the screen."""

from __future__ import annotations


def plural(number: int, noun: str, many: str = "") -> str:
    """``1 child``, ``2 children``."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"


def printable(value: bytes | str) -> str:
    """On one line, with everything escaped that could do more to a terminal or a log than a character does."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
