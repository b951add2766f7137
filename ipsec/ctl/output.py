"""What people read: tables, amounts with units, times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

GAP = 2
"columns between two columns"

GOOD, BAD, WARN, DIM = "green", "bold red", "yellow", "dim"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    align: Literal["left", "right"] = "left"
    drop: int = 0
    "on a terminal that is too narrow, those with the highest number go first; 0 stays"
    least: int = 8
    "columns that are left of it if it has to be cut"


class Table:
    """Rows under titles: as wide as it needs to be, on a terminal not wider than that."""

    def __init__(self, *columns: Column | str, heads: bool = True) -> None:
        self.heads = heads
        self.columns = [Column(one) if isinstance(one, str) else one for one in columns]
        self.rows: list[list[Text]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row; missing cells at its end are empty."""
        row = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        row += [Text()] * (len(self.columns) - len(row))
        if style:
            for cell in row:
                cell.stylize(style)
        self.rows.append(row)

    def print(self, console: Console) -> None:
        """Print it."""
        if console.is_terminal:
            console.print(self.rich(console.width))
        else:
            for line in self.lines():
                console.print(line, soft_wrap=True)

    def lines(self) -> list[str]:
        """Plain lines, nothing cut."""
        widths = self._widths()
        shown = [i for i, _ in enumerate(self.columns) if self._filled(i)]
        lines = []
        heads = [[column.title for column in self.columns]] if self.heads else []
        for row in [*heads, *([cell.plain for cell in row] for row in self.rows)]:
            parts = []
            for i in shown:
                space = " " * (widths[i] - cell_len(row[i]))
                parts.append(space + row[i] if self.columns[i].align == "right" else row[i] + space)
            lines.append((" " * GAP).join(parts).rstrip())
        return lines

    def rich(self, width: int) -> RichTable:
        """For a terminal of that width."""
        table = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", show_header=self.heads)
        shown = self._shown(width)
        widths = self._fitted(shown, width)
        for i in shown:
            column = self.columns[i]
            table.add_column(column.title, justify=column.align, no_wrap=True, overflow="ellipsis", width=widths[i])
        for row in self.rows:
            table.add_row(*(row[i] for i in shown))
        return table

    def _filled(self, i: int) -> bool:
        return not self.columns[i].title or not self.rows or any(row[i].plain for row in self.rows)

    def _widths(self) -> list[int]:
        return [
            max([cell_len(column.title), *(row[i].cell_len for row in self.rows)])
            for i, column in enumerate(self.columns)
        ]

    def _shown(self, width: int) -> list[int]:
        """Columns that have something, without those that there is no room for."""
        widths = self._widths()
        shown = [i for i, _ in enumerate(self.columns) if self._filled(i)]
        while sum(widths[i] + GAP for i in shown) - GAP > width:
            last = max(shown, key=lambda i: self.columns[i].drop, default=0)
            if not shown or not self.columns[last].drop:
                break
            shown.remove(last)
        return shown

    def _fitted(self, shown: list[int], width: int) -> dict[int, int]:
        """The widths of what is shown; the widest ones give way first."""
        natural = self._widths()
        widths = {i: natural[i] for i in shown}
        over = sum(widths.values()) + GAP * (len(shown) - 1) - width
        while over > 0:
            widest = max(shown, key=lambda i: widths[i] - self.columns[i].least, default=0)
            if not shown or widths[widest] <= self.columns[widest].least:
                break
            widths[widest] -= 1
            over -= 1
        return widths


def titled(console: Console, title: str, table: Table) -> None:
    """A table under a title."""
    console.print(Text(title, style="bold"))
    table.print(console)


def amount(value: float, unit: str) -> str:
    """``12.3 Mbit/s``: three digits and a prefix of SI."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    text = f"{value:.0f}" if not prefix or value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return f"{text} {prefix}{unit}".rstrip()


def bits(per_second: float) -> str:
    """A rate."""
    return amount(per_second, "bit/s")


def octets(number: int) -> str:
    """An amount of data."""
    return amount(number, "B")


def count(number: float) -> str:
    """A large number."""
    return f"{number:.0f}" if number < 10_000 else amount(number, "")


def duration(seconds: float | None) -> str:
    """Two units at most: ``3d 4h``, ``22m``, ``45s``; empty for None."""
    if seconds is None:
        return ""
    left = max(int(seconds), 0)
    if left < 60:
        return f"{left}s"
    if left < 600:
        return f"{left // 60}m {left % 60:02}s"
    minutes = left // 60
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}h"


def plural(number: int, noun: str, many: str = "") -> str:
    """``1 child``, ``2 children``."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"
