"""Bars and lines as SVG, coloured by the page around them or, in a file of their own, by light or dark mode.

Our own and not a plotting library's: colours follow the reader's mode, text stays text, and a page is a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 440
#: least and most room for the labels of bars
LABELS = (84, 186)
VALUE_WIDTH = 62
ROW = 26
GROUP_ROW = 24
PLOT_HEIGHT = 210
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 16, 40
LEGEND_ROW = 20
#: of the fonts that a system offers for sans-serif, at 13 px
CHARACTER = 7.5

#: colour names: (light, dark). Told apart with the common kinds of colour blindness too
COLOURS = {
    "ours": ("#1d5fd6", "#6ea8fe"),
    "ours2": ("#0f8a83", "#4fd1c5"),
    "ours3": ("#8fb3ea", "#3f5f94"),
    "orange": ("#d9730d", "#f6a04d"),
    "purple": ("#8b3fc9", "#c693f2"),
    "red": ("#c2255c", "#f06595"),
    "brown": ("#8a5a2b", "#cf9f6b"),
    "grey": ("#9aa3af", "#6b7480"),
}
#: by subject; others take what is left in turn
SUBJECTS = {
    "ipsec": "ours", "clients-ipsec": "ours", "engine": "ours3", "chacha": "ours2", "clients-chacha": "ours2",
    "copy": "ours3", "strongswan": "orange", "clients-strongswan": "orange", "wireguard-go": "purple",
    "clients-wireguard-go": "purple", "openvpn": "red", "xfrm": "brown", "wireguard": "brown", "plain": "grey",
    "clients-plain": "grey", "provider": "grey",
}  # fmt: skip
SPARE = ("ours", "orange", "purple", "ours2", "red", "brown", "ours3", "grey")

RULES = """\
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.soft{fill:var(--soft)}.strong{font-weight:600}.axis{stroke:var(--line);stroke-width:1}
.range{stroke:var(--ink);stroke-width:1.2;opacity:.55}.track{fill:var(--track)}
.curve{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}.dash{stroke-dasharray:2 5}
"""


def variables(dark: bool) -> str:
    """The colours as custom properties of CSS."""
    neutral = {"ink": ("#1a2029", "#e6eaf0"), "soft": ("#5b6573", "#9aa5b4"), "line": ("#dde2e9", "#333c48"),
               "track": ("#eef1f5", "#28313d"), "back": ("#ffffff", "#161c25"),
               "page": ("#f3f5f8", "#0c1016")}  # fmt: skip
    pairs = neutral | {f"c-{name}": pair for name, pair in COLOURS.items()}
    return ";".join(f"--{name}:{pair[dark]}" for name, pair in pairs.items())


def colour(subject: str, number: int = 0) -> str:
    """A CSS value for a subject, the ``number``-th of its chart."""
    return f"var(--c-{SUBJECTS.get(subject, SPARE[number % len(SPARE)])})"


@dataclass(frozen=True)
class Bar:
    """One row. ``parts`` instead of ``value`` makes it a stack of (name, value)."""

    label: str
    value: float
    colour: str
    text: str
    low: float | None = None
    high: float | None = None
    strong: bool = False
    parts: tuple[tuple[str, float, str], ...] = ()
    "name, value, colour"


@dataclass(frozen=True)
class Bars:
    """Bars in groups, each with a heading unless that is empty."""

    title: str
    unit: str
    groups: Sequence[tuple[str, Sequence[Bar]]]
    note: str = ""

    def render(self) -> str:
        """The SVG element."""
        rows = [bar for _, bars in self.groups for bar in bars]
        most = max((max(bar.value, bar.high or 0) for bar in rows), default=0) or 1
        longest = max((len(bar.label) for bar in rows), default=0) * CHARACTER + 10
        left = round(min(max(longest, LABELS[0]), LABELS[1]))
        scale = (WIDTH - left - VALUE_WIDTH) / most
        parts: list[str] = []
        y = 4.0
        for heading, bars in self.groups:
            if heading:
                parts.append(_text(0, y + 15, heading, "soft"))
                y += GROUP_ROW
            for bar in bars:
                parts.append(self._row(bar, y, left, scale))
                y += ROW
        legend = {name: paint for bar in rows for name, _, paint in bar.parts}
        y, drawn = _legend(list(legend.items()), y + 4) if legend else (y, [])
        return _element(parts + drawn, y + 2, f"{self.title}, {self.unit}")

    @staticmethod
    def _row(bar: Bar, y: float, left: int, scale: float) -> str:
        weight = " strong" if bar.strong else ""
        out = [f'<g><title>{escape(bar.label)}: {escape(bar.text)}</title>',
               _text(left - 8, y + 17, _short(bar.label), f"label{weight}", "end"),
               f'<rect class="track" x="{left}" y="{y + 5:g}" width="{WIDTH - left - VALUE_WIDTH}" '
               f'height="16" rx="3"/>']  # fmt: skip
        x = float(left)
        for name, value, paint in bar.parts or (("", bar.value, bar.colour),):
            width = max(value * scale, 1.5 if value else 0)
            tip = f"<title>{escape(name)}: {value:.3g}</title>" if name else ""
            out.append(f'<rect x="{x:.1f}" y="{y + 5:g}" width="{width:.1f}" height="16" rx="3" '
                       f'style="fill:{paint}">{tip}</rect>')  # fmt: skip
            x += width
        if bar.low is not None and bar.high is not None and (bar.high - bar.low) * scale > 2:
            x1, x2 = left + bar.low * scale, left + bar.high * scale
            out.append(f'<path class="range" d="M{x1:.1f} {y + 13:g}H{x2:.1f}M{x1:.1f} {y + 9:g}v8M{x2:.1f} '
                       f'{y + 9:g}v8"/>')  # fmt: skip
        end = max(x, left + (bar.high or 0) * scale)
        out.append(_text(end + 6, y + 17, bar.text, f"value{weight}"))
        return "".join(out) + "</g>"


@dataclass(frozen=True)
class Line:
    """One curve of (x, y); ``dashed`` for a variant of a solid one of the same colour."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis. ``ticks`` are (x, text)."""

    title: str
    unit: str
    x_title: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]
    log_x: bool = False
    log_y: bool = False
    note: str = ""

    def render(self) -> str:
        """The SVG element."""
        values = [y for line in self.lines for _, y in line.points]
        low, high, marks = _y_axis(values, self.log_y)
        right, bottom = WIDTH - RIGHT, TOP + PLOT_HEIGHT
        first, last = self.ticks[0][0], self.ticks[-1][0]

        def at_x(x: float) -> float:
            share = (_log(x, self.log_x) - _log(first, self.log_x)) / (
                (_log(last, self.log_x) - _log(first, self.log_x)) or 1)  # fmt: skip
            return LEFT + 8 + share * (right - LEFT - 16)

        def at_y(y: float) -> float:
            y = max(y, low)
            return bottom - (_log(y, self.log_y) - _log(low, self.log_y)) / (
                _log(high, self.log_y) - _log(low, self.log_y)) * PLOT_HEIGHT  # fmt: skip

        parts = []
        for mark in marks:
            y = at_y(mark)
            parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(_text(LEFT - 6, y + 4, number(mark), "soft", "end"))
        for x, text in self.ticks:
            parts.append(_text(at_x(x), bottom + 17, text, "soft", "middle"))
        parts.append(_text((LEFT + right) / 2, bottom + 34, self.x_title, "soft", "middle"))
        for line in self.lines:
            path = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in line.points)
            parts.append(f'<path class="curve{" dash" if line.dashed else ""}" style="stroke:{line.colour}" '
                         f'd="M{path}"/>')  # fmt: skip
            for x, y in line.points:
                text = f"{line.label}, {x:g}: {y:.4g} {self.unit}"
                parts.append(f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.2" style="fill:{line.colour}">'
                             f"<title>{escape(text)}</title></circle>")  # fmt: skip
        shown = {line.label: line.colour for line in self.lines if not line.dashed}
        end, drawn = _legend(list(shown.items()), bottom + BOTTOM + 4)
        return _element(parts + drawn, end + 2, f"{self.title}, {self.unit}")


def standalone(svg: str) -> str:
    """The same as a file of its own, readable on light and dark pages."""
    style = (f"<style>svg{{{variables(False)}}}@media(prefers-color-scheme:dark){{svg{{{variables(True)}}}}}"
             f"{RULES}</style>")  # fmt: skip
    opening, rest = svg.split(">", 1)
    back = '<rect width="100%" height="100%" rx="6" style="fill:var(--back)"/>'
    x, y, width, height = opening.split('viewBox="')[1].split('"')[0].split()
    pad = 14
    framed = opening.replace(
        f'viewBox="{x} {y} {width} {height}"',
        f'viewBox="{-pad} {-pad - 26} {float(width) + 2 * pad:g} {float(height) + 2 * pad + 26:g}" '
        f'width="{float(width) + 2 * pad:g}" height="{float(height) + 2 * pad + 26:g}"',
    )
    back = back.replace("<rect", f'<rect x="{-pad}" y="{-pad - 26}"')
    label = opening.split('aria-label="')[1].split('"')[0]
    return f'{framed}>{style}{back}<text class="strong" x="0" y="-14">{label}</text>{rest}\n'


def number(value: float) -> str:
    """Short, for an axis."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def _log(value: float, wanted: bool) -> float:
    return math.log10(max(value, 1e-9)) if wanted else value


def _y_axis(values: Sequence[float], log: bool) -> tuple[float, float, list[float]]:
    """Lowest and highest value of an axis, and where its lines are."""
    most = max(values, default=1.0) or 1.0
    if log:
        least = min((value for value in values if value > 0), default=1.0)
        bottom, top = math.floor(math.log10(least)), math.ceil(math.log10(most) - 1e-9)
        top = max(top, bottom + 1)
        steps = (1, 2, 5) if top - bottom <= 2 else (1, 3) if top - bottom <= 3 else (1,)
        marks = [step * 10.0**power for power in range(bottom, top + 1) for step in steps]
        low = max((mark for mark in marks if mark <= least), default=10.0**bottom)
        high = min((mark for mark in marks if mark >= most), default=10.0**top)
        return low, high, [mark for mark in marks if low <= mark <= high]
    raw = most / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    count = math.ceil(most / step - 1e-9)
    return 0.0, step * count, [step * n for n in range(count + 1)]


def _legend(items: Sequence[tuple[str, str]], y: float) -> tuple[float, list[str]]:
    """Where it ends, and its elements."""
    parts = []
    x = 4.0
    for label, paint in items:
        width = 22 + len(label) * CHARACTER + 10
        if x + width > WIDTH and x > 4:
            x, y = 4.0, y + LEGEND_ROW
        parts.append(f'<rect x="{x:.1f}" y="{y + 3:g}" width="12" height="12" rx="3" style="fill:{paint}"/>')
        parts.append(_text(x + 17, y + 13, label, "soft"))
        x += width
    return y + LEGEND_ROW, parts


def _short(label: str) -> str:
    fits = int(LABELS[1] / CHARACTER)
    return label if len(label) <= fits else label[: fits - 1] + "…"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    ends = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{ends}>{escape(text)}</text>'


def _element(parts: Sequence[str], height: float, label: str) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>')  # fmt: skip
