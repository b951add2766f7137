"""``python -m bench compare OLD NEW``: what changed beyond the noise."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import Key, Metric, Params, ResultError, Results, key_of, load
from bench.stats import Change, change, paired_ratios

#: a difference in one of these makes two runs two experiments
SAME = ("cpu", "cpus", "cpu_flags", "kernel")


@dataclass(frozen=True)
class Row:
    """One series that both runs have."""

    metric: Metric
    subject: str
    params: Params
    old: float
    new: float
    change: Change

    @property
    def verdict(self) -> str:
        """In a word."""
        if math.isinf(self.change.noise):
            return "too few rounds"
        if not self.change.significant:
            return "same"
        return "better" if (self.change.ratio > 1) == self.metric.more_is_better else "worse"


def compare(old: Results, new: Results, relative_to: str | None = None) -> Iterator[Row]:
    """Every series of both. With ``relative_to`` each round is divided by that subject's in the same run first."""
    for key in old.series:
        if key not in new.series:
            continue
        metric, subject, params = new.metrics[key[0]], key[1], dict(key[2])
        before, after = _values(old, key, relative_to), _values(new, key, relative_to)
        if not before or not after:
            continue
        try:
            found = change(before, after)
        except ValueError:
            continue
        yield Row(metric, subject, params, statistics.median(before), statistics.median(after), found)


def _values(results: Results, key: Key, relative_to: str | None) -> list[float]:
    values = [sample.value for sample in results.series[key]]
    if relative_to is None:
        return values
    base = results.series.get(key_of(key[0], relative_to, dict(key[2])), [])
    return paired_ratios(values, [sample.value for sample in base]) if key[1] != relative_to else []


def warnings(old: Results, new: Results) -> list[str]:
    """Why the two should perhaps not be compared."""
    found = [f"{name} differs: {old.machine.get(name)} and {new.machine.get(name)}"
             for name in SAME if old.machine.get(name) != new.machine.get(name)]  # fmt: skip
    for name, results in (("old", old), ("new", new)):
        found += [f"the {name} run was noisy: {why}" for why in results.noise()["why"]]
        if results.interrupted:
            found.append(f"the {name} run was interrupted")
    for option in ("seconds", "settings"):
        if old.options.get(option) != new.options.get(option):
            found.append(f"{option} differs: {old.options.get(option)} and {new.options.get(option)}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare``."""
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--relative-to", metavar="SUBJECT", help="compare ratios to this one (plain, strongswan, ...), "
                        "which cancels what the machine did")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="also what stayed the same")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(function=main)


def main(args: argparse.Namespace) -> int:
    """Print the table. 1 if something got worse, 2 if a file is no result."""
    try:
        old, new = load(args.old), load(args.new)
    except ResultError as error:
        print(f"bench compare: {error}", file=sys.stderr)
        return 2
    known = {key[1] for key in old.series} & {key[1] for key in new.series}
    if args.relative_to and args.relative_to not in known:
        print(f"bench compare: --relative-to: {args.relative_to!r} is not in both; there are "
              f"{', '.join(sorted(known))}", file=sys.stderr)  # fmt: skip
        return 2
    rows = list(compare(old, new, args.relative_to))
    notes = warnings(old, new)
    if args.json:
        print(json.dumps({"warnings": notes, "rows": [_plain(row) for row in rows]}, indent=1))
    else:
        _print(rows, notes, len(old.series), len(new.series), args.all)
    return 1 if any(row.verdict == "worse" for row in rows) else 0


def _plain(row: Row) -> dict[str, Any]:
    noise = None if math.isinf(row.change.noise) else round(row.change.noise, 4)
    return {"metric": row.metric.name, "subject": row.subject, "params": row.params, "unit": row.metric.unit,
            "old": row.old, "new": row.new, "ratio": round(row.change.ratio, 4), "noise": noise,
            "verdict": row.verdict}  # fmt: skip


def _print(rows: list[Row], notes: list[str], old_count: int, new_count: int, everything: bool) -> None:
    for note in notes:
        print(f"careful: {note}")
    shown = [row for row in rows if everything or row.verdict in ("better", "worse")]
    if shown:
        print(f"{'metric':40}{'subject':22}{'old':>12}{'new':>12}{'change':>9}{'noise':>8}")
    for row in sorted(shown, key=lambda row: (row.verdict != "worse", row.verdict != "better")):
        name = " ".join([row.metric.name, *(f"{value}" for value in row.params.values())])
        noise = "?" if math.isinf(row.change.noise) else f"{row.change.noise:.0%}"
        print(f"{name:40}{row.subject:22}{row.old:>12.4g}{row.new:>12.4g}{row.change.ratio - 1:>+9.1%}{noise:>8}  "
              f"{row.verdict}")  # fmt: skip
    counts = {verdict: sum(row.verdict == verdict for row in rows)
              for verdict in ("better", "worse", "same", "too few rounds")}  # fmt: skip
    print(f"{len(rows)} series in both ({old_count} and {new_count}): "
          + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))  # fmt: skip
