"""Values of swanctl.conf: text to bool, time, size, list, address and secret; and reading a section by a table.

Parsers raise ConfigError without a place; ``read_keys`` adds file, line and key.
"""

from __future__ import annotations

import base64
import difflib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any, TypeVar

from ipsec.config.grammar import Section, Value, shown
from ipsec.config.sources import note, why_unread
from ipsec.errors import ConfigError

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
IpAddress = IPv4Address | IPv6Address

TRUE = ("yes", "true", "enabled", "1")
FALSE = ("no", "false", "disabled", "0")
LIST_MAX = 1024
KEY_FILE_SIZE_MAX = 4096

_TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_ITEM = re.compile(r"""\s*+(?:(['"])(.*?)\1\s*+|([^,]*+)),?""", re.DOTALL)


class Switch(Enum):
    """A feature that can be forced, forbidden, or left to a probe."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


def quoted(text: str) -> str:
    """``text`` for an error message: short, and hidden if it looks like a secret in the wrong place."""
    if re.match(r"0[xXsS].{8}", text) or len(text) > 80:
        return "this value"
    return repr(text)


def parse_bool(text: str) -> bool:
    """yes/true/enabled/1 or no/false/disabled/0."""
    word = text.lower()
    if word not in TRUE + FALSE:
        raise ConfigError(f"{quoted(text)} is neither yes nor no")
    return word in TRUE


def parse_switch(text: str) -> Switch:
    """auto, or a bool."""
    if text.lower() == "auto":
        return Switch.AUTO
    if text.lower() not in TRUE + FALSE:
        raise ConfigError(f"{quoted(text)} is not one of auto, yes, no")
    return Switch.YES if parse_bool(text) else Switch.NO


def parse_time(text: str) -> int:
    """``N[s|m|h|d]`` in seconds; as in charon there may be blanks before the unit."""
    return _parse_scaled(text, _TIME_UNITS, "a time such as 90, 30s, 15m, 4h or 1d")


def parse_size(text: str) -> int:
    """``N[k|m|g]`` in octets, units of 1024."""
    return _parse_scaled(text, _SIZE_UNITS, "a size such as 1500, 64k, 500m or 4g")


def _parse_scaled(text: str, units: Mapping[str, int], what: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})[ \t]*([a-zA-Z]?)", text)
    if match is None or match[2].lower() not in units:
        raise ConfigError(f"{quoted(text)} is not {what}")
    value = _decimal(match[1]) * units[match[2].lower()]
    if value >= 1 << 63:
        raise ConfigError(f"{quoted(text)} is too large")
    return value


def _decimal(digits: str) -> int:
    """A number from its digits. ConfigError where charon would take it for octal, and for another one."""
    value = int(digits)
    if value > 7 and digits[0] == "0":
        raise ConfigError(f"{quoted(digits)} begins with 0, which makes it octal for strongSwan: write it without")
    return value


def parse_number(text: str) -> int:
    """A number without sign, decimal or 0x hexadecimal."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return _decimal(text)
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,15}", text):
        return int(text, 16)
    raise ConfigError(f"{quoted(text)} is not a number")


def number_in(low: int, high: int, *, also: Collection[int] = (), hexadecimal: bool = False) -> Callable[[str], int]:
    """A parser for numbers in ``low..high``, or one of ``also``."""

    def parse(text: str) -> int:
        value = parse_number(text)
        if not low <= value <= high and value not in also:
            form = "#x" if hexadecimal else "d"
            extra = "".join(f"{number} or " for number in also)
            raise ConfigError(f"{quoted(text)} is not {extra}in {low:{form}}..{high:{form}}")
        return value

    return parse


def parse_tfc(text: str) -> int:
    """``tfc_padding``: octets to pad to; -1 is up to the path MTU."""
    return -1 if text.lower() == "mtu" else number_in(0, 65535)(text)


def one_of(kind: type[E], *, unnamed: Collection[E] = ()) -> Callable[[str], E]:
    """A parser for the values of an enumeration of words. Errors do not name those that are ``unnamed``."""

    def parse(text: str) -> E:
        for member in kind:
            if member.value == text.lower():
                return member
        words = [str(member.value) for member in kind if member not in unnamed]
        raise ConfigError(f"{quoted(text)} is not one of {', '.join(words)}{suggestion(text, words)}")

    return parse


def one_of_words(words: Mapping[str, T]) -> Callable[[str], T]:
    """A parser for words that mean something else; bools have all their spellings where yes or no is among them."""

    def parse(text: str) -> T:
        word = text.lower()
        for name, spellings in (("yes", TRUE), ("no", FALSE)):
            if name in words and word in spellings:
                word = name
        if word not in words:
            raise ConfigError(f"{quoted(text)} is not one of {', '.join(words)}{suggestion(text, words)}")
        return words[word]

    return parse


def split_list(text: str) -> list[str]:
    """The items of a list as swanctl tells them apart."""
    items = (match[2] if match[1] else match[3].strip() for match in _ITEM.finditer(text))
    return [item for item in items if item]


def join_list(items: Collection[str]) -> str:
    """The text that ``split_list`` makes these items of. ConfigError if there is none."""
    return ", ".join(_quote(item) if "," in item or item[:1] in ("'", '"') else item for item in items)


def _quote(item: str) -> str:
    quote = "'" if "'" not in item else '"'
    if quote in item:
        raise ConfigError(f"{quoted(item)} has quotes of both kinds, which no list can have")
    return f"{quote}{item}{quote}"


def list_of(parse_item: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A parser for items between commas; quotes around an item, single or double, keep the commas in it."""

    def parse(text: str) -> tuple[T, ...]:
        items = split_list(text)
        if not items:
            raise ConfigError("the list is empty")
        if len(items) > LIST_MAX:
            raise ConfigError(f"the list has more than {LIST_MAX} items")
        return tuple(parse_item(item) for item in items)

    return parse


def parse_address(text: str) -> IpAddress:
    """One IPv4 or IPv6 address; no name, prefix or zone."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"{quoted(text)} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id:
        raise ConfigError(f"{quoted(text)}: an address with a zone cannot be used here")
    return address


def parse_interface(text: str) -> IPv4Interface | IPv6Interface:
    """``address/prefix``; without a prefix the address alone."""
    try:
        return ip_interface(text)
    except ValueError:
        raise ConfigError(f"{quoted(text)} is not an address such as 10.1.0.1/24") from None


def parse_secret(text: str) -> bytes:
    """``0x`` hexadecimal or ``0s`` Base64. The text is in no error message."""
    try:
        if text[:2] in ("0x", "0X"):
            return bytes.fromhex(text[2:])
        if text[:2] in ("0s", "0S"):
            return base64.b64decode(text[2:], validate=True)
    except ValueError:
        raise ConfigError(f"not valid {'hexadecimal' if text[1] in 'xX' else 'Base64'}") from None
    raise ConfigError("a key must begin with 0x (hexadecimal) or 0s (Base64)")


def read_secret_file(path: str, origin: str) -> bytes:
    """The key in a file, relative to the directory of ``origin``; whoever else may read the file has the key too."""
    path = os.path.join(os.path.dirname(origin), path)
    data, open_to = read_regular(path, KEY_FILE_SIZE_MAX)
    if open_to:
        raise ConfigError(open_to)
    try:
        return parse_secret(data.decode("ascii").strip())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: a key must begin with 0x (hexadecimal) or 0s (Base64)") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def read_regular(path: str, limit: int) -> tuple[bytes, str]:
    """Contents of a regular file of at most ``limit`` octets; who else can read it and what mends that, or nothing.

    ConfigError says which file and why.
    """
    note(path)
    try:
        # O_NONBLOCK: a FIFO without a writer must not hang us
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"cannot read {path}: not a regular file")
            open_to = "" if is_mounted(file.fileno()) else _open_to(path, status)
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {why_unread(error)}") from None
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} octets"
        raise ConfigError(f"cannot read {path}: larger than {size}")
    return data, open_to


def _open_to(path: str, status: os.stat_result) -> str:
    """Who but the owner can read a file with a key."""
    if status.st_uid:
        return f"{path} is open to group or others, run: chmod 600 {path}" if status.st_mode & 0o077 else ""
    # root's group is how a daemon without privileges, whose user may be another at each start, gets to read a file
    return f"{path} is open to others, run: chmod o= {path}" if status.st_mode & 0o007 else ""


def is_mounted(file: int | str) -> bool:
    """Whether a file lies in a read-only mount of its own, as secrets of Docker and Kubernetes do.

    Their modes are the orchestrator's (0444 or 0644) and cannot be changed from inside.
    """
    status = os.stat(file)
    return bool(os.statvfs(file).f_flag & os.ST_RDONLY) and status.st_dev != os.stat("/").st_dev


def suggestion(word: str, known: Collection[str]) -> str:
    """``, did you mean ...?`` if something known is close to ``word``."""
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def error_at(section: Section, name: str, message: str) -> ConfigError:
    """An error about a key or a section of ``section``, at the place where that was written."""
    place: Section | Value = section.values.get(name) or section.sections.get(name) or section
    return ConfigError(message, file=place.file, line=place.line, key=section.child_path(name))


def read_keys(
    section: Section, parsers: Mapping[str, Callable[[str], object]], sections: Collection[str] = ()
) -> dict[str, Any]:
    """The values of a section by key, parsed; what is not set is left out. ConfigError for whatever is unknown."""
    values: dict[str, Any] = {}
    for name in section.sections:
        if name not in sections:
            what = f"{name!r} is a key, write {name} = ..." if name in parsers else "unknown section"
            raise error_at(section, name, what + suggestion(shown(name), sections))
    for name, value in section.values.items():
        if name not in parsers:
            what = f"{name!r} is a section, write {name} {{ ... }}" if name in sections else "unknown key"
            known = [*parsers, *sections]
            close = suggestion(name, known) if what == "unknown key" and shown(name) == name else ""
            raise ConfigError(what + close, file=value.file, line=value.line, key=section.child_path(name))
        if value.text is None:
            continue
        try:
            values[name] = parsers[name](value.text)
        except ConfigError as error:
            raise error_at(section, name, error.message) from None
    return values
