"""Amounts, times and tables."""

from __future__ import annotations

import pytest
from rich.text import Text

from ipsec.ctl.output import Column, Table, amount, count, duration


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bit/s"),
        (999.4, "999 bit/s"),
        (999.6, "1.00 kbit/s"),
        (1_234, "1.23 kbit/s"),
        (9_996, "10.0 kbit/s"),
        (99_960, "100 kbit/s"),
        (999_600, "1.00 Mbit/s"),
        (7.6e9, "7.60 Gbit/s"),
        (1e15, "1000 Tbit/s"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value, "bit/s") == text


def test_counts() -> None:
    assert [count(9_999), count(10_000), count(123_456_789)] == ["9999", "10.0 k", "123 M"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-5, "0s"),
        (59.9, "59s"),
        (61, "1m 01s"),
        (600, "10m"),
        (3599, "59m"),
        (3660, "1h 01m"),
        (90_000, "1d 01h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def table() -> Table:
    """Two columns that stay, one that goes, one without anything in it."""
    found = Table(Column("NAME", least=4, enough=6), Column("N", "right"), Column("MORE", drop=1), "EMPTY")
    found.add("a longer name", "1", "something")
    found.note(Text("a note across all columns, as long as it likes"))
    found.add("b", "100")
    return found


def test_plain_tables_are_not_cut() -> None:
    assert [line.plain for line in table().lines()] == [
        "NAME             N  MORE",
        "a longer name    1  something",
        "a note across all columns, as long as it likes",
        "b              100",
    ]


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (40, "a longer name    1  something"),
        (24, "a longe…    1  something"),
        (20, "a longer name    1"),
        (9, "a l…    1"),
    ],
)
def test_tables_fit(width: int, row: str) -> None:
    lines = [line.plain for line in table().lines(width)]
    assert lines[1] == row
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [*range(36, 90), 10])
def test_the_last_column_goes_on_in_the_next_line(width: int) -> None:
    """What mends a thing is of no use if its end is cut."""
    found = Table(Column(""), Column("", least=4), Column("", least=20, wrap=True), heads=False)
    detail = "/var/lib/ipsecd: Permission denied"
    remedy = "set ipsecd.state_dir to a directory that this user can write"
    found.add("  missing", "state directory", detail)
    found.add("", "", Text(f"-> {remedy}", style="bold"))
    lines = found.lines(width)
    assert all(line.cell_len <= width for line in lines)
    if width == 60:
        assert [line.plain for line in lines] == [
            "  missing  state directory  /var/lib/ipsecd: Permission",
            "                               denied",
            "                            -> set ipsecd.state_dir to a",
            "                               directory that this user can",
            "                               write",
        ]
    if width >= 36:
        arrow = next(i for i, line in enumerate(lines) if "->" in line.plain)
        start = lines[arrow].plain.index("->") + 3
        # nothing is lost, and all of it begins in one place
        assert " ".join(line.plain[start:] for line in lines[arrow:]) == remedy
        assert all(not line.plain[:start].strip() and line.plain[start] != " " for line in lines[arrow + 1 :])
        assert "bold" in {str(lines[-1].style), *(str(span.style) for span in lines[-1].spans)}
    assert [line.plain for line in found.lines(200)] == [
        f"  missing  state directory  {detail}",
        f"                            -> {remedy}",
    ]
