"""The grammar of swanctl.conf and strongswan.conf: text in, a tree of sections out.

    settings   := (section | key | include)*
    section    := NAME [":" reference ("," reference)*] "{" settings "}"
    key        := NAME "=" [value]           an empty value unsets the key
    reference  := NAME ("." NAME)*           from the top of the file
    include    := "include" PATTERN          relative to the file it stands in; ``\\`` quotes a character

A section that appears again is extended, a key that appears again is replaced. A section has the keys and sections
of those it references, unless it sets them itself; the first reference that has a key wins. References may point
forward. Values end at the line's end, at ``#`` or at ``}``; several words are joined by one space; double quotes keep
spaces, newlines and the escapes ``\\n \\r \\t``, and a backslash at the end of a line joins the lines.

Stricter than strongSwan 5.9 on purpose: a reference to no section, and an included file that is not there (unless
the name has wildcards), are errors; so is a file that does not close the sections it opens; control characters are
not part of names.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ipsec.config.sources import note, why_unread
from ipsec.errors import ConfigError

FILE_SIZE_MAX = 16 << 20
TOTAL_SIZE_MAX = 64 << 20
INCLUDE_DEPTH_MAX = 16
INCLUDE_FILES_MAX = 4096
SECTION_DEPTH_MAX = 32
REFERENCE_DEPTH_MAX = 64
RESOLVE_STEPS_MAX = 1_000_000
"references can multiply: this many sections may come out of resolving them"

_GAP = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_BLANK = re.compile(r"[ \t\r]*+")
_NAME = re.compile(r'[^\x00-\x20\x7f\udc80-\udcff.,:{}="#]++')
# not "*+": before Python 3.11.5 a possessive group keeps what it had begun to match (gh-106052), here a last dot
_REFERENCE = re.compile(r'[^\x00-\x20\x7f\udc80-\udcff.,:{}="#]++(?:\.[^\x00-\x20\x7f\udc80-\udcff.,:{}="#]++)*')
_WORD = re.compile(r'[^ \t\r\n#}"]++')
#: of a file to include: what follows a backslash stands for itself
_FILE_NAME = re.compile(r'(?:[^ \t\r\n#}"\\]++|\\.)*')
_ESCAPED = re.compile(r"\\(.)")
_STRING = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(\r?\n|.)|\r\n", re.DOTALL)
#: octets that are not UTF-8, as ``surrogateescape`` has them
_FOREIGN = re.compile(r"[\udc80-\udcff]")
_INCLUDE = re.compile(r"include[ \t]++(?!=)(?=[^ \t\r\n])")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "\n": "", "\r\n": "", None: "\n"}


@dataclass(frozen=True)
class Value:
    """What a key is set to, and where. ``text`` is None if it was unset. It may be a secret: never in ``repr``."""

    text: str | None = field(repr=False)
    file: str
    line: int | None
    "None if it does not stand in a file"


@dataclass(frozen=True)
class Reference:
    """A section to inherit from, by its path from the top."""

    path: str
    file: str
    line: int


@dataclass
class Section:
    """Keys and sections by name, in order of appearance; inherited ones follow the section's own."""

    path: str
    "dotted path from the top, '' for the top itself"
    file: str
    line: int | None
    values: dict[str, Value] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    references: list[Reference] = field(default_factory=list)
    "resolved: empty in what ``parse_file`` returns"
    referenced: bool = False
    "of sections at the top: another section inherits from here or from below"

    def child_path(self, name: str) -> str:
        """Dotted path of a key or section in this section."""
        return f"{self.path}.{shown(name)}" if self.path else shown(name)


def parse_file(path: str) -> Section:
    """The tree that a file and all it includes describe. ConfigError names file, line and key."""
    parser = _Parser()
    root = Section("", path, 1)
    parser.parse(_read_file(path, None), path, root, 0)
    return resolve(root)


def parse_text(text: str, file: str = "<text>") -> Section:
    """The same for a string; includes are relative to the directory of ``file``."""
    parser = _Parser()
    root = Section("", file, 1)
    parser.parse(text.removeprefix("\ufeff"), file, root, 0)
    return resolve(root)


def shown(name: str) -> str:
    """``name`` as errors may show it: a secret on a line of its own looks like a name."""
    return "(hidden)" if name[:2].lower() in ("0x", "0s") or len(name) > 64 else name


def _read_file(path: str, origin: _Cursor | None) -> str:
    """Contents of a file; errors are told at ``origin``, the include statement."""

    def fail(why: str) -> ConfigError:
        return origin.error(f"cannot include {path}: {why}") if origin else ConfigError(why, file=path)

    note(path)
    try:
        # O_NONBLOCK: an included FIFO without a writer must not hang us; the file named first may be a pipe
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if origin else 0))
        with open(fd, "rb") as file:
            if origin and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise fail("not a regular file")
            data = file.read(FILE_SIZE_MAX + 1)
    except (OSError, ValueError) as error:
        raise fail(why_unread(error)) from None
    if len(data) > FILE_SIZE_MAX:
        raise fail(f"larger than {FILE_SIZE_MAX >> 20} MiB")
    # comments may be in any encoding; elsewhere surrogates are errors
    return data.decode("utf-8-sig", "surrogateescape")


class _Cursor:
    """A place in one text."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.pos = 0
        self.line = 1

    def error(self, message: str, key: str | None = None) -> ConfigError:
        return ConfigError(message, file=self.file, line=self.line, key=key or None)

    def take(self, pattern: re.Pattern[str]) -> str:
        """What ``pattern`` matches here, '' for nothing; moves past it."""
        match = pattern.match(self.text, self.pos)
        if match is None:
            return ""
        self.line += self.text.count("\n", self.pos, match.end())
        self.pos = match.end()
        return match.group(match.lastindex or 0)

    def peek(self) -> str:
        """The next character, '' at the end."""
        return self.text[self.pos : self.pos + 1]

    def string(self, key: str) -> str:
        """A double-quoted string, its escapes resolved."""
        start = self.pos
        raw = self.take(_STRING)
        if self.pos == start:
            raise self.error("the string that begins here has no closing quote", key)
        return _ESCAPE.sub(_unescape, raw)

    def value(self, key: str) -> str | None:
        """The rest of an assignment; None if there is nothing."""
        words: list[str] = []
        while True:
            self.take(_BLANK)
            if self.peek() == '"':
                words.append(self.string(key))
            elif word := self.take(_WORD):
                words.append(word)
            else:
                break
        text = " ".join(words)
        if "\0" in text:
            raise self.error("the value has a NUL character", key)
        if _FOREIGN.search(text):
            raise self.error("not UTF-8; a secret of other octets can be written as 0x...", key)
        return text if words else None


    def file_name(self, key: str) -> tuple[str, str, bool]:
        """What an include statement names: as it is, as a pattern of ``glob``, and whether it has wildcards."""
        name = pattern = ""
        wild = False
        while True:
            raw = self.take(_FILE_NAME)
            name += _ESCAPED.sub(r"\1", raw)
            pattern += _ESCAPED.sub(lambda match: glob.escape(match[1]), raw)
            wild |= glob.has_magic(_ESCAPED.sub("", raw))
            if self.peek() != '"':
                return name, pattern, wild
            text = self.string(key)
            name, pattern, wild = name + text, pattern + text, wild or glob.has_magic(text)


def _unescape(match: re.Match[str]) -> str:
    char: str | None = match.group(1)
    return _CONTROL.get(char, char or "")


class _Parser:
    """Reads files into sections, within limits that hold for all of them together."""

    def __init__(self) -> None:
        self.files = 0
        self.size = 0

    def parse(self, text: str, file: str, top: Section, depth: int) -> None:
        """Add what ``text`` says to ``top``."""
        cursor = _Cursor(text, file)
        self.size += len(text)
        if self.size > TOTAL_SIZE_MAX:
            raise cursor.error(f"all files together are larger than {TOTAL_SIZE_MAX >> 20} MiB")
        stack = [top]
        opened: list[int] = []
        while True:
            cursor.take(_GAP)
            section = stack[-1]
            char = cursor.peek()
            if char == "":
                if opened:
                    cursor.line = opened[-1]
                    raise cursor.error("the section that begins here has no closing '}'", section.path)
                return
            if char == "}":
                if not opened:
                    raise cursor.error("'}' closes no section of this file")
                cursor.pos += 1
                stack.pop()
                opened.pop()
            elif cursor.take(_INCLUDE):
                self._include(cursor, section, depth)
            else:
                line = cursor.line
                child = self._statement(cursor, section)
                if child is not None:
                    stack.append(child)
                    opened.append(line)

    def _statement(self, cursor: _Cursor, section: Section) -> Section | None:
        """A key, or the head of a section: then that section."""
        line = cursor.line
        name = cursor.take(_NAME)
        if _FOREIGN.match(cursor.peek()):
            raise cursor.error("not UTF-8", section.path)
        if not name:
            raise cursor.error(f"unexpected {cursor.peek()!r}, a name must stand here", section.path)
        path = section.child_path(name)
        cursor.take(_GAP)
        char = cursor.peek()
        if char == "=":
            cursor.pos += 1
            section.values[name] = Value(cursor.value(path), cursor.file, line)
            return None
        if char not in (":", "{") or not char:
            cursor.line = line
            raise cursor.error("a name must be followed by '=', '{' or ':'", path)
        # the empty path is the top; each further level is one dot
        if section.path and section.path.count(".") + 2 > SECTION_DEPTH_MAX:
            raise cursor.error(f"more than {SECTION_DEPTH_MAX} sections inside each other", path)
        child = section.sections.setdefault(name, Section(path, cursor.file, line))
        if char == ":":
            child.references += [r for r in self._references(cursor, path) if r not in child.references]
        cursor.pos += 1
        return child

    def _references(self, cursor: _Cursor, path: str) -> Iterator[Reference]:
        """``: a, b.c`` up to the opening brace, which is left there."""
        while True:
            cursor.pos += 1
            cursor.take(_GAP)
            line = cursor.line
            target = cursor.take(_REFERENCE)
            if not target:
                raise cursor.error("the name of a section to inherit from must stand here", path)
            yield Reference(target, cursor.file, line)
            cursor.take(_GAP)
            if cursor.peek() == "{":
                return
            if cursor.peek() != ",":
                raise cursor.error("a reference must be followed by ',' or '{'", path)

    def _include(self, cursor: _Cursor, section: Section, depth: int) -> None:
        name, pattern, wild = cursor.file_name(section.path)
        if not name or "\0" in name:
            raise cursor.error("include needs the name of a file", section.path)
        if _FOREIGN.search(name):
            raise cursor.error("not UTF-8", section.path)
        if depth >= INCLUDE_DEPTH_MAX:
            raise cursor.error(f"more than {INCLUDE_DEPTH_MAX} files include each other", section.path)
        folder = os.path.dirname(cursor.file)
        name, pattern = os.path.join(folder, name), os.path.join(glob.escape(folder), pattern)
        if wild:
            note(os.path.dirname(name) or ".")
        names = sorted(glob.iglob(pattern)) if wild and not os.path.exists(name) else [name]
        for name in names:
            if wild and os.path.isdir(name):
                continue
            self.files += 1
            if self.files > INCLUDE_FILES_MAX:
                raise cursor.error(f"more than {INCLUDE_FILES_MAX} files are included", section.path)
            self.parse(_read_file(name, cursor), name, section, depth + 1)


def resolve(root: Section) -> Section:
    """A copy of the tree in which every section has what it inherits. ConfigError for references that cannot be."""
    resolver = _Resolver(root)
    merged = resolver.merge([root], "", 0)
    for name in resolver.referenced:
        merged.sections[name].referenced = True
    return merged


class _Resolver:
    """Walks the references. A section's *line* is itself and its ancestors, nearest first."""

    def __init__(self, root: Section) -> None:
        self.root = root
        self.steps = 0
        self.active: set[str] = set()
        "paths being looked up: a reference that comes back to one of them adds nothing"
        self.referenced: set[str] = set()
        "names at the top that references begin with"

    def merge(self, line: list[Section], path: str, depth: int) -> Section:
        """One section out of a line of them: the first that has a key or section says what it is."""
        first = line[0]
        if depth > SECTION_DEPTH_MAX:
            raise ConfigError("inherits a section that it is part of", file=first.file, line=first.line, key=path)
        merged = Section(path, first.file, first.line)
        names: dict[str, None] = {}
        for section in line:
            for key, value in section.values.items():
                merged.values.setdefault(key, value)
            names.update(dict.fromkeys(section.sections))
        for name in names:
            children = self.descend(line, name)
            merged.sections[name] = self.merge(children, merged.child_path(name), depth + 1)
        return merged

    def descend(self, line: list[Section], name: str) -> list[Section]:
        """The line of the section ``name`` inside a line."""
        found: dict[int, Section] = {}
        for section in line:
            child = section.sections.get(name)
            if child is None:
                continue
            self._count(child)
            found.setdefault(id(child), child)
            for reference in child.references:
                for ancestor in self.lookup(reference, child.path):
                    found.setdefault(id(ancestor), ancestor)
        return list(found.values())

    def lookup(self, reference: Reference, path: str) -> list[Section]:
        """The line of the section that a reference names; empty if we are looking it up already."""
        if reference.path in self.active:
            return []
        if len(self.active) >= REFERENCE_DEPTH_MAX:
            why = f"more than {REFERENCE_DEPTH_MAX} references lead to each other"
            raise ConfigError(why, file=reference.file, line=reference.line, key=path)
        self.active.add(reference.path)
        line = [self.root]
        for name in reference.path.split("."):
            line = self.descend(line, name)
            if not line:
                why = f"there is no section {shown(reference.path)!r} to inherit from"
                raise ConfigError(why, file=reference.file, line=reference.line, key=path)
        self.referenced.add(reference.path.partition(".")[0])
        self.active.discard(reference.path)
        return line

    def _count(self, section: Section) -> None:
        self.steps += 1
        if self.steps > RESOLVE_STEPS_MAX:
            raise ConfigError("too many sections come out of references", file=section.file, line=section.line)
