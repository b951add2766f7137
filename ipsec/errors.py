"""Every exception this package raises on purpose.

    IpsecError
     +-- ConfigError        a configuration file, environment or argument is wrong; names file, line and key
     +-- ParseError         bytes from the network are malformed
     +-- SuiteError         an algorithm is unknown, switched off, or its key has the wrong size
     +-- SaError            an SA cannot be added, found or used (duplicate SPI, reserved SPI, ...)
     +-- PolicyError        a policy cannot be added or found
     +-- BackendError       the operating system refused something the backend needs; says how to mend it
          +-- SequenceError a key whose sequence numbers cannot be kept safe: in use, used up, or not known

Packets that are dropped raise nothing: a drop is a counter with a reason (``ipsec.esp.drops``).
"""

from __future__ import annotations

from collections.abc import Sequence


class IpsecError(Exception):
    """Base of all errors of this package."""


class ConfigError(IpsecError):
    """A configuration value is wrong. ``str()`` reads ``FILE:LINE: KEY: what is wrong``.

    ``file``, ``line`` (1-based) and ``key`` (dotted path) are None where they do not apply. ``others`` are what else is
    wrong in the same configuration, as far as it was read.
    """

    #: of as many errors somebody is told; who has more has one cause for most of them
    LINES_MAX = 20

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.key = key
        self.others: tuple[ConfigError, ...] = ()
        where = f"{file}:{line}: " if file and line is not None else f"{file}: " if file else ""
        super().__init__(f"{where}{key + ': ' if key else ''}{message}")

    @classmethod
    def together(cls, errors: Sequence[ConfigError]) -> ConfigError:
        """The first of them, which has the others."""
        first, *others = errors
        first.others += tuple(others)
        return first

    def lines(self) -> list[str]:
        """This one and the others, a line for each; of too many how many more there are."""
        found = [str(error) for error in (self, *self.others)]
        more = len(found) - self.LINES_MAX
        return found if more <= 0 else [*found[: self.LINES_MAX], f"and {more} more of the kind"]

    def in_short(self) -> str:
        """This one, and that there are others, where there is room for one line."""
        return f"{self} (and {len(self.others)} more: ipsecd --check)" if self.others else str(self)


class ParseError(IpsecError):
    """Bytes from the network are malformed."""


class SuiteError(IpsecError):
    """An algorithm is unknown, switched off, or its key has the wrong size."""


class SaError(IpsecError):
    """An SA cannot be added, found or used."""


class PolicyError(IpsecError):
    """A policy cannot be added or found."""


class BackendError(IpsecError):
    """The operating system refused something the backend needs. ``remedy`` is the one thing that mends it."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}" if remedy else message)


class SequenceError(BackendError):
    """A key whose sequence numbers cannot be kept safe: it is in use elsewhere, used up, or its mark is lost."""
