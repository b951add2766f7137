"""A result as tables on a terminal."""

from __future__ import annotations

from bench import machine
from bench.results import Params, Results
from bench.stats import figure, summarize

HIDDEN = "panel"


def show(results: Results) -> None:
    """Print what was measured, the targets, and how far to trust it."""
    options = results.options
    print(f"\n{machine.title(results.machine)}")
    print(f"{options['command']}: {options['rounds']} rounds of {options['seconds']:g} s, interleaved; "
          f"{results.took_s:.0f} s in all, load before {results.load_at_start:.2f}")  # fmt: skip
    for metric in results.metrics.values():
        tables: dict[tuple[tuple[str, str | int], ...], list[tuple[str, str]]] = {}
        for subject, params, samples in results.of(metric.name):
            found = summarize([sample.value for sample in samples])
            text = f"{found.median:12.{metric.digits}f}"
            if found.count > 1:
                text += f"  ({found.low:.{metric.digits}f}-{found.high:.{metric.digits}f})"
            tables.setdefault(tuple(params.items()), []).append((subject, text))
        print(f"\n{metric.title}, {metric.unit}")
        width = max(len(_words(dict(where))) for where in tables)
        for where, rows in tables.items():
            for subject, text in rows:
                print(f"  {_words(dict(where)):{width}}  {subject:22}{text}")
    if results.checks:
        print(f"\n{'target':60}{'value':>10}{'rounds':>20}{'':>10}")
    for row in results.checks:
        spread = f"{figure(row['low'])}-{figure(row['high'])}"
        sign = ">=" if row["at_least"] else "<="
        verdict = "met" if row["met"] else "MISSED"
        limit = sign + format(row["target"], "g")
        print(f"{row['what']:60}{figure(row['value']):>10}{spread:>20}{limit:>10}  {verdict}")
    for text in results.skipped:
        print(f"skipped: {text}")
    for text in results.failures:
        print(f"failed: {text}")
    noise = results.noise()
    for why in noise["why"]:
        print(f"TOO NOISY, do not trust these figures: {why}")
    if noise["few_rounds"]:
        print("few rounds: good for a look, not for publishing")


def _words(params: Params) -> str:
    panel = params.get(HIDDEN)
    rest = ", ".join(f"{name} {value}" for name, value in params.items() if name != HIDDEN)
    return f"{panel}: {rest}" if panel and rest else str(panel or rest)
