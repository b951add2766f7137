"""The grammar of swanctl.conf. What ``GOOD`` expects is what strongSwan 5.9.8 reads from the same text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.config import grammar
from ipsec.config.grammar import Section, parse_file, parse_text
from ipsec.errors import ConfigError


def flat(section: Section, prefix: str = "") -> dict[str, str]:
    """All keys that are set, by dotted path."""
    found = {prefix + name: value.text for name, value in section.values.items() if value.text is not None}
    for name, child in section.sections.items():
        found |= flat(child, f"{prefix}{name}.")
    return found


GOOD = [
    # keys and values
    ("", {}),
    ("\n\n\n", {}),
    ("# only a comment", {}),
    ("a = b", {"a": "b"}),
    ("a=b\nc\t=\td\n", {"a": "b", "c": "d"}),
    ("a\n= c\n", {"a": "c"}),
    ("a = b\r\nc = d\r\n", {"a": "b", "c": "d"}),
    ("a = b   \t \nc=1\n", {"a": "b", "c": "1"}),
    ("a = b   c\td\n", {"a": "b c d"}),
    ("a = b # comment\n", {"a": "b"}),
    ("a = b#c\n", {"a": "b"}),
    ("a = b=c:d,e.f{g\n", {"a": "b=c:d,e.f{g"}),
    ("a = 'b  c'\n", {"a": "'b c'"}),
    ("a = x\\y\n", {"a": "x\\y"}),
    ("# x \\\na = b\n", {"a": "b"}),
    ("a = 1\na = 2\n", {"a": "2"}),
    ("A = 1\na = 2\n", {"A": "1", "a": "2"}),
    ("\u00e9 = \u00fc\n", {"\u00e9": "\u00fc"}),
    ("a-b_c*@/[]|%()<>!$&;+?^~`' = 1\n", {"a-b_c*@/[]|%()<>!$&;+?^~`'": "1"}),
    # unset and empty
    ("a =\nb = c\n", {"b": "c"}),
    ("a = # x\nb = 1\n", {"b": "1"}),
    ("a = b\na =\n", {}),
    ('a = b\na = ""\n', {"a": ""}),
    # quoting
    ('a = "b  c"\n', {"a": "b  c"}),
    ('a = "b # } { = c"\n', {"a": "b # } { = c"}),
    ('a = "b" "c"\n', {"a": "b c"}),
    ('a = x"b"y\n', {"a": "x b y"}),
    ('a = "x"b = 1\n', {"a": "x b = 1"}),
    ('a = "" x\n', {"a": " x"}),
    ('a = "n\\nt\\tr\\rq\\"b\\\\o\\q\\x41"\n', {"a": 'n\nt\tr\rq"b\\oqx41'}),
    ('a = "b\nc" d\n', {"a": "b\nc d"}),
    ('a = "b\r\nc"\n', {"a": "b\nc"}),
    ('a = "b\\\n  c"\n', {"a": "b  c"}),
    ('a = "b\\\r\nc"\n', {"a": "bc"}),
    ('a = "x" # c\nb=1\n', {"a": "x", "b": "1"}),
    # sections
    ("s {}", {}),
    ("s\n\n{\na=1\n}\n", {"s.a": "1"}),
    ("s { a = b } c = d\n", {"s.a": "b", "c": "d"}),
    ("s { a = }\nb=2\n", {"b": "2"}),
    ("s { a = # }\n}\nb=2\n", {"b": "2"}),
    ("s { a=1; b=2 }\n", {"s.a": "1; b=2"}),
    ("s { t { u { a = 1\n} } }", {"s.t.u.a": "1"}),
    ("s { a = 1\n}\ns { b = 2\n}\n", {"s.a": "1", "s.b": "2"}),
    ("s { a = 1\n}\ns { a = 2\n}\n", {"s.a": "2"}),
    ("a = 1\na { k = 1\n}\n", {"a": "1", "a.k": "1"}),
    ("include = /x\n", {"include": "/x"}),
    ("include=/x\nincludes = 1\n", {"include": "/x", "includes": "1"}),
    # references
    ("s : t { }\nt { a = 1\n}\n", {"s.a": "1", "t.a": "1"}),
    ("s:t{}t{a = 1\n}\n", {"s.a": "1", "t.a": "1"}),
    ("s\n: t\n,u # c\n{ }\nt { a = 1\n}\nu { b = 2\n}\n", {"s.a": "1", "s.b": "2", "t.a": "1", "u.b": "2"}),
    ("s : t { a = 2\n}\nt { a = 1\n}\n", {"s.a": "2", "t.a": "1"}),
    ("s : t { a =\n}\nt { a = 1\n}\n", {"t.a": "1"}),
    ("s : t, u { }\nt { k=1\n}\nu { k=2\n}\n", {"s.k": "1", "t.k": "1", "u.k": "2"}),
    ("s : u { }\ns : t { }\nt { k=1\n}\nu { k=2\n}\n", {"s.k": "2", "t.k": "1", "u.k": "2"}),
    ("s : t, t { }\nt { k = 3\n}\n", {"s.k": "3", "t.k": "3"}),
    ("s : t,u { }\nt : v { }\nv { k=3\n}\nu { k=2\n}\n", {"s.k": "3", "t.k": "3", "v.k": "3", "u.k": "2"}),
    ("s : t {}\nt { x { k = 1\n}\n}\n", {"s.x.k": "1", "t.x.k": "1"}),
    ("s : t { x : y { }\n}\nt { x { k=1\n}\n}\ny { k=2\n}\n", {"s.x.k": "2", "t.x.k": "1", "y.k": "2"}),
    ("c { a : c.b { }\nb { k = 1\n}\n}\n", {"c.a.k": "1", "c.b.k": "1"}),
    ("s { u : t { }\nt { k = 1\n}\n}\nt { k = 2\n}\n", {"s.u.k": "2", "s.t.k": "1", "t.k": "2"}),
    ("s : p.x { }\np : q { }\nq { x { k = 1\n}\n}\n", {"s.k": "1", "p.x.k": "1", "q.x.k": "1"}),
    (
        "s : t { x { }\n}\nt : u { }\nu { x : w { }\n}\nw { k = 7\n}\n",
        {"s.x.k": "7", "t.x.k": "7", "u.x.k": "7", "w.k": "7"},
    ),
    # circles add nothing
    ("s : s { a = 1\n }\n", {"s.a": "1"}),
    ("s : t { b = 2\n}\nt : s { a = 1\n}\n", {"s.a": "1", "s.b": "2", "t.a": "1", "t.b": "2"}),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_reads_as_strongswan(text: str, expected: dict[str, str]) -> None:
    assert flat(parse_text(text)) == expected


BAD = [
    ("a", 1, "a", "must be followed by"),
    ("x = 1\n\na b = c\n", 3, "a", "must be followed by"),
    ("a.b = c\n", 1, "a", "must be followed by"),
    ("s {\n a\n}\n", 2, "s.a", "must be followed by"),
    ("a = b } c = d\n", 1, None, "'}' closes no section"),
    ("s { a = 1\n}}\n", 2, None, "'}' closes no section"),
    ("x = 1\ns {\nt {\na = 1\n}\n", 2, "s", "no closing '}'"),
    ("\n s {\n\n t {\n", 4, "s.t", "no closing '}'"),
    ('x=1\na = "b\n\n', 2, "a", "no closing quote"),
    ('a = "b\\', 1, "a", "no closing quote"),
    ('a = "x\ny" "z\n', 2, "a", "no closing quote"),
    ('s {\na = \\"x\n}\n', 2, "s.a", "no closing quote"),
    ('"a b" = c\n', 1, None, "unexpected '\"'"),
    (", = b\n", 1, None, "unexpected ','"),
    ("s {\n {\n", 2, "s", "unexpected '{'"),
    ("\x01a = b\n", 1, None, "unexpected '\\x01'"),
    ("a\n\n: = b\n", 3, "a", "must stand here"),
    ("s : t, { }\n", 1, "s", "must stand here"),
    ("s : .t { }\n", 1, "s", "must stand here"),
    ("s : t\n u { }\n", 2, "s", "must be followed by ',' or '{'"),
    ("s : t. { }\n", 1, "s", "must be followed by ',' or '{'"),
    ("s : t . u { }\n", 1, "s", "must be followed by ',' or '{'"),
    ("s : t", 1, "s", "must be followed by ',' or '{'"),
    ("s :\n t,\n nope.x { }\nt {}\n", 3, "s", "there is no section 'nope.x'"),
    ("a { s : t { }\n}\n", 1, "a.s", "there is no section 't'"),
    ("a = x\0y\n", 1, "a", "NUL"),
    ("s { x : s { }\n}\n", 1, None, "part of"),
    ('include ""\n', 1, None, "needs the name of a file"),
]


@pytest.mark.parametrize(("text", "line", "key", "why"), BAD)
def test_errors(text: str, line: int, key: str | None, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_text(text, "/etc/test.conf")
    error = caught.value
    assert (error.file, error.line) == ("/etc/test.conf", line)
    assert why in error.message
    if "part of" not in why:
        assert error.key == key
    assert str(error).startswith(f"/etc/test.conf:{line}: ")


def test_places_survive_inheritance() -> None:
    root = parse_text("base {\n  k = 1\n}\n\ns : base {\n  own = 2\n}\n", "f")
    section = root.sections["s"]
    assert (section.file, section.line, section.path) == ("f", 5, "s")
    assert list(section.values) == ["own", "k"]
    assert (section.values["k"].line, section.values["own"].line) == (2, 6)
    assert root.sections["base"].referenced
    assert not section.referenced


def test_line_numbers_count_newlines_in_strings() -> None:
    root = parse_text('a = "1\n2\n3"\nb = 1\n')
    assert (root.values["a"].line, root.values["b"].line) == (1, 4)


def test_values_are_not_in_repr() -> None:
    assert "hunter2" not in repr(parse_text("s { a = hunter2\n}"))


# --- limits ---------------------------------------------------------------------------------------------------------


def test_depth_is_bounded() -> None:
    with pytest.raises(ConfigError, match="inside each other"):
        parse_text("a {\n" * 10_000)
    deepest = "a {" * grammar.SECTION_DEPTH_MAX + "}" * grammar.SECTION_DEPTH_MAX
    assert parse_text(deepest).sections["a"]


def test_reference_chain_is_bounded() -> None:
    with pytest.raises(ConfigError, match="references lead to each other"):
        parse_text("".join(f"s{i} : s{i + 1} {{ }}\n" for i in range(500)) + "s500 { }\n")


def test_reference_explosion_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "RESOLVE_STEPS_MAX", 10_000)
    layers = "".join(f"a{i} : a{i + 1}, b{i + 1} {{ }}\nb{i} : a{i + 1}, b{i + 1} {{ }}\n" for i in range(40))
    with pytest.raises(ConfigError, match="too many sections"):
        parse_text(layers + "a40 { }\nb40 { }\n")
    doubling = "".join(f"s{i} {{ x : s{i + 1} {{ }}\n y : s{i + 1} {{ }}\n }}\n" for i in range(25))
    with pytest.raises(ConfigError, match="too many sections"):
        parse_text(doubling + "s25 { }\n")


def test_many_sections_are_quick() -> None:
    text = "base { k = 1\n}\n" + "".join(f"s{i} : base {{ a = {i}\n}}\n" for i in range(20_000))
    root = parse_text(text)
    assert root.sections["s19999"].values["k"].text == "1"


# --- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_include(tmp_path: Path) -> None:
    write(tmp_path / "conf.d" / "b.conf", "i = 2\nj = 2")
    write(tmp_path / "conf.d" / "a.conf", "i = 1\nsub { include ../deep/x.conf }\n")
    write(tmp_path / "conf.d" / ".hidden.conf", "i = 3\n")
    (tmp_path / "conf.d" / "dir.conf").mkdir()
    write(tmp_path / "deep" / "x.conf", "include y.conf\n")
    write(tmp_path / "deep" / "y.conf", "deep = 1\n")
    write(tmp_path / "sp ace" / "f.conf", "sp = 1\n")
    main = write(
        tmp_path / "main.conf",
        'i = 0\ninclude conf.d/*.conf # all of them\ninclude "sp ace/f.conf" after = 1\n'
        f's {{ include {tmp_path}/conf.d/[b].conf }}\ninclude none/*.conf\ninclude "deep/"y.conf\n',
    )
    root = parse_file(main)
    assert flat(root) == {
        "i": "2",
        "j": "2",
        "sp": "1",
        "after": "1",
        "deep": "1",
        "sub.deep": "1",
        "s.i": "2",
        "s.j": "2",
    }
    assert root.values["i"].file == str(tmp_path / "conf.d" / "b.conf")
    assert root.sections["sub"].values["deep"].line == 1


def test_include_name_with_brackets(tmp_path: Path) -> None:
    write(tmp_path / "a[1].conf", "a = 1\n")
    assert flat(parse_file(write(tmp_path / "main.conf", "include a[1].conf\n"))) == {"a": "1"}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("sp ace.conf", "sp\\ ace.conf"),
        ("sp ace.conf", "sp\\ *.conf"),
        ("sp ace.conf", "sp\\ ace.co\"nf\""),
        ("ha#sh.conf", "ha\\#sh.conf"),
        ("back\\slash.conf", "back\\\\slash.conf"),
        ('qu"ote.conf', 'qu\\"ote.conf'),
        ("a*.conf", "a\\*.conf"),
        ("plain.conf", "pl\\ain.conf"),
    ],
)
def test_include_with_backslashes(tmp_path: Path, name: str, written: str) -> None:
    """As libstrongswan reads it: the character after one means nothing but itself."""
    write(tmp_path / "dir[1]" / name, "a = 1\n")
    write(tmp_path / "dir[1]" / "ab.conf", "b = 1\n")
    for rest in ("\n", " }", " # comment\n"):
        main = write(tmp_path / "dir[1]" / "main", f"s {{ include {written}{rest}" + ("}" if "}" not in rest else ""))
        assert flat(parse_file(main)) == {"s.a": "1"}


def test_an_escaped_wildcard_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot include .*a\*\.conf"):
        parse_file(write(tmp_path / "main.conf", "include a\\*.conf\n"))


def test_byte_order_mark_of_an_included_file_and_of_a_text(tmp_path: Path) -> None:
    """Editors on Windows put one there; charon takes it for a part of the first name."""
    write(tmp_path / "more.conf", "\ufeffb = 2\n")
    main = write(tmp_path / "main.conf", "\ufeffa = 1\ninclude more.conf\n")
    assert flat(parse_file(main)) == {"a": "1", "b": "2"}
    assert flat(parse_text("\ufeffs { a = 1\n}")) == {"s.a": "1"}


@pytest.mark.parametrize("name", ["missing.conf", "folder", "/dev/null", "fifo", "x\\y"])
def test_include_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    main = write(tmp_path / "main.conf", f"\ns {{\n include {name}\n}}\n")
    with pytest.raises(ConfigError, match="cannot include") as caught:
        parse_file(main)
    assert (caught.value.file, caught.value.line) == (main, 3)


def test_error_in_included_file(tmp_path: Path) -> None:
    part = write(tmp_path / "part.conf", "ok = 1\nsec {\n")
    main = write(tmp_path / "main.conf", "s {\ninclude part.conf\n}\n}\n")
    with pytest.raises(ConfigError, match="no closing") as caught:
        parse_file(main)
    assert (caught.value.file, caught.value.line, caught.value.key) == (part, 2, "s.sec")


def test_included_file_cannot_close_our_section(tmp_path: Path) -> None:
    part = write(tmp_path / "part.conf", "}\n")
    with pytest.raises(ConfigError, match="closes no section") as caught:
        parse_file(write(tmp_path / "main.conf", "s {\ninclude part.conf\n"))
    assert caught.value.file == part


def test_include_loop(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="include each other"):
        parse_file(write(tmp_path / "main.conf", "include main.conf\n"))


def test_include_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "INCLUDE_FILES_MAX", 3)
    for i in range(4):
        write(tmp_path / f"{i}.inc", "")
    with pytest.raises(ConfigError, match="more than 3 files"):
        parse_file(write(tmp_path / "main.conf", "include *.inc\n"))


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "FILE_SIZE_MAX", 1 << 20)
    monkeypatch.setattr(grammar, "TOTAL_SIZE_MAX", 2 << 20)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        parse_file(write(tmp_path / "big.conf", "#" * ((1 << 20) + 1)))
    write(tmp_path / "half.conf", "#" * (1 << 20))
    with pytest.raises(ConfigError, match="all files together"):
        parse_file(write(tmp_path / "main.conf", "include half.conf\n" * 3))


def test_missing_and_binary(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.conf")
    with pytest.raises(ConfigError) as caught:
        parse_file(missing)
    assert str(caught.value) == f"{missing}: No such file or directory"
    binary = tmp_path / "bin.conf"
    binary.write_bytes(b"a = 1\n\xff\n")
    with pytest.raises(ConfigError) as caught:
        parse_file(str(binary))
    assert str(caught.value) == f"{binary}:2: not UTF-8"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a = 1\nb = t\xfcr", "2: b: not UTF-8; a secret"),
        (b'b = "x\n\xfc"', "2: b: not UTF-8; a secret"),
        (b"c {\n t\xfcr = 1\n}", "2: c: not UTF-8"),
        (b"c {\n}\nt\xfcr : c {\n}", "3: not UTF-8"),
        (b"c {\n}\nd : \xfcr {\n}", "3: d: the name of a section to inherit from must stand here"),
        (b"include t\xfcr", "1: not UTF-8"),
    ],
)
def test_latin_1_is_for_comments(tmp_path: Path, data: bytes, why: str) -> None:
    """As a file may have them that strongSwan has read for years; there it has no business elsewhere either."""
    file = tmp_path / "latin.conf"
    file.write_bytes(b"# T\xfcr\na = 1 # T\xfcr\nb : # T\xfcr\na {\n}\na {\n} # \xfc")
    assert parse_file(str(file)).values["a"].text == "1"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        parse_file(str(file))
    assert str(caught.value).startswith(f"{file}:{why}")
    str(caught.value).encode()


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.conf"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert flat(parse_file(str(path))) == {"a": "1"}


# --- properties -----------------------------------------------------------------------------------------------------

NAMES = st.text("abcxyz-_%/0189\u00e9", min_size=1, max_size=6)
TREES = st.recursive(
    st.dictionaries(NAMES, st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=20)),
    lambda inner: st.dictionaries(NAMES, st.one_of(inner, st.text("ab \n", max_size=5))),
    max_leaves=20,
)


def emit(tree: dict[str, object]) -> str:
    """Configuration text for nested dicts of strings."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{name} {{\n{emit(value)}}}\n")
        else:
            escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'{name} = "{escaped}"\n')
    return "".join(lines)


def plain(section: Section) -> dict[str, object]:
    found: dict[str, object] = {name: value.text for name, value in section.values.items()}
    return found | {name: plain(child) for name, child in section.sections.items()}


def config_error(call: Callable[[], object]) -> ConfigError | None:
    """The ConfigError that a call ends with, if any; other exceptions go on."""
    try:
        call()
    except ConfigError as error:
        return error
    return None


@given(TREES)
def test_round_trip(tree: dict[str, object]) -> None:
    assert plain(parse_text(emit(tree))) == tree


@given(st.one_of(st.text(), st.text('ab{}=#:.,"\\\n \t', max_size=60)))
def test_only_config_errors(text: str) -> None:
    error = config_error(lambda: parse_text(text, "/nonexistent/f"))
    if error:
        assert error.file
        assert error.line is not None
        assert 1 <= error.line <= text.count("\n") + 1


@given(st.binary(max_size=200))
def test_only_config_errors_from_files(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("g") / "f"
    path.write_bytes(data)
    error = config_error(lambda: parse_file(str(path)))
    if error:
        assert error.file == str(path)
