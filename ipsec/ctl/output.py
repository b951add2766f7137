"""What people read: tables, amounts with units, times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = 2
"columns between two columns"
HANG = 3
"columns that what goes on in the next line is indented by: as much as an arrow takes"

GOOD, BAD, WARN, DIM = "green", "bold red", "yellow", "dim"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    align: Literal["left", "right"] = "left"
    drop: int = 0
    "on a terminal that is too narrow, those with the highest number go first; 0 stays"
    least: int = 8
    "characters that are left of it if it has to be cut"
    enough: int = 999
    "characters that it is cut to before other columns go"
    wrap: bool = False
    "what has no room goes on in the next line: for the last column alone"


class Table:
    """Rows under titles, and notes between them: on a terminal as wide as that at most, elsewhere nothing is cut."""

    def __init__(self, *columns: Column | str, heads: bool = True) -> None:
        self.heads = heads
        self.columns = [Column(one) if isinstance(one, str) else one for one in columns]
        self.rows: list[list[Text] | Text] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row; missing cells at its end are empty."""
        row = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self.rows.append(row + [Text()] * (len(self.columns) - len(row)))

    def note(self, line: Text) -> None:
        """Add a line as wide as it needs to be."""
        self.rows.append(line)

    def print(self, console: Console) -> None:
        """Print it."""
        for line in self.lines(console.width if console.is_terminal else None):
            console.print(line, soft_wrap=True)

    def lines(self, width: int | None = None) -> list[Text]:
        """All lines, none longer than ``width``."""
        natural = [
            max([cell_len(column.title), *(row[i].cell_len for row in self.rows if isinstance(row, list))])
            for i, column in enumerate(self.columns)
        ]
        shown = [i for i, _ in enumerate(self.columns) if self._filled(i)]
        if width is not None:
            shown = self._that_fit(shown, natural, width)
            natural = self._narrowed(shown, natural, width)
        heads = [[Text(column.title, style="bold") for column in self.columns]] if self.heads else []
        found = []
        for row in [*heads, *self.rows]:
            for line in [row] if isinstance(row, Text) else self._wrapped(row, shown, natural):
                if width is not None and line.cell_len > width:
                    line.truncate(width, overflow="ellipsis")
                found.append(line)
        return found

    def _wrapped(self, row: list[Text], shown: list[int], widths: list[int]) -> list[Text]:
        """The lines of a row; those after the first are indented a little more than the column that they belong to."""
        last = shown[-1]
        if not self.columns[last].wrap or row[last].cell_len <= widths[last]:
            return [self._line(row, shown, widths)]
        cell, room, console = row[last], max(widths[last], HANG + 1), Console()
        lines = [cell.wrap(console, room)[0]]
        indent = " " * (sum(widths[i] + GAP for i in shown[:-1]) + HANG)
        # the space between the two may be in the first or not
        start = len(cell) - len(cell.plain[len(lines[0]) :].lstrip())
        for line in cell[start:].wrap(console, room - HANG):
            lines.append(Text(indent).append_text(line))
        for line in lines:
            line.rstrip()
        return [self._line([*row[:last], lines[0]], shown, widths), *lines[1:]]

    def _line(self, row: list[Text], shown: list[int], widths: list[int]) -> Text:
        line = Text()
        for i in shown:
            cell, space = row[i].copy(), widths[i] - row[i].cell_len
            if space < 0:
                cell.truncate(widths[i], overflow="ellipsis")
            if space > 0 and self.columns[i].align == "right":
                cell.pad_left(space)
            elif space > 0:
                cell.pad_right(space)
            line.append_text(cell).append(" " * GAP)
        line.rstrip()
        return line

    def _filled(self, i: int) -> bool:
        """Whether a column has anything in it; one without a title is always there."""
        rows = [row for row in self.rows if isinstance(row, list)]
        return not self.columns[i].title or not rows or any(row[i].plain for row in rows)

    def _that_fit(self, shown: list[int], widths: list[int], width: int) -> list[int]:
        """Columns without those that there is no room for."""
        kept = list(shown)
        while kept and sum(min(widths[i], self.columns[i].enough) + GAP for i in kept) - GAP > width:
            last = max(self.columns[i].drop for i in kept)
            if not last:
                break
            kept = [i for i in kept if self.columns[i].drop != last]
        return kept

    def _narrowed(self, shown: list[int], natural: list[int], width: int) -> list[int]:
        """Widths that fit; one that is wrapped gives way first, since it loses nothing, then what can spare most."""
        widths = list(natural)
        over = sum(widths[i] + GAP for i in shown) - GAP - width
        while over > 0:
            spare = [i for i in shown if self.columns[i].wrap and widths[i] > self.columns[i].least]
            widest = max(spare or shown, key=lambda i: widths[i] - self.columns[i].least)
            if widths[widest] <= self.columns[widest].least:
                break
            widths[widest] -= 1
            over -= 1
        return widths


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


def endpoint(host: str, port: int) -> str:
    """``192.0.2.1:4500`` or ``[2001:db8::1]:4500``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
