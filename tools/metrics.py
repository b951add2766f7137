"""Writes the tables of docs/metrics.md: the metrics there are.

python -m tools.metrics
"""

from __future__ import annotations

from pathlib import Path

from ipsec.daemon import families

FILE = Path(__file__).parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: python -m tools.metrics -->\n", "<!-- end -->\n"


def text() -> str:
    """The whole file, with the table between its marks made anew."""
    head, _, rest = FILE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for family in families.FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.shown}` | {family.kind} | {labels} | {family.help} |")
    return head + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + tail


if __name__ == "__main__":
    FILE.write_text(text())
