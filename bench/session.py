"""What the parts of a run share: where results go, how deep to measure, and telling a person how far it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from bench.results import Metric, Results, Sample


@dataclass(frozen=True)
class Options:
    """The command line of a run, worked out."""

    quick: bool = False
    only: frozenset[str] = frozenset()
    "names of measurements; empty: all that belong to the plan"
    peers: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    "for every ipsecd"
    rounds: int = 5
    seconds: float = 2.0
    "traffic of one measurement"
    suites: tuple[str, ...] = ()
    "in memory; empty: those of the plan"
    sizes: tuple[int, ...] = ()
    "octets of packets in memory; empty: those of the plan"
    provider: str = "auto"
    "of the cipher in memory"
    left_out: tuple[tuple[str, str], ...] = ()
    "panels and measurements for which there is no time"

    def wants(self, name: str) -> bool:
        """Whether this measurement is to be made."""
        return not self.only or name in self.only


class Session:
    """One run. A context manager: the progress bar is there inside."""

    def __init__(self, results: Results, options: Options, expected_s: float) -> None:
        self.results = results
        self.options = options
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), _TimeLeft(), console=self.console, transient=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("starting", total=max(expected_s, 1.0))
        self._shown = ""

    def __enter__(self) -> Session:
        self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def step(self, what: str, expected_s: float) -> Iterator[None]:
        """Something that takes about this long is going on."""
        self._progress.update(self._task, description=escape(what[:44]))
        try:
            yield
        finally:
            self._progress.advance(self._task, expected_s)

    def skip_ahead(self, expected_s: float) -> None:
        """What was expected to take this long will not be done."""
        self._progress.advance(self._task, expected_s)

    def add(self, metric: Metric, subject: str, sample: Sample, **params: Any) -> None:
        """Keep a sample and show it."""
        self.results.add(metric, subject, sample, **params)
        number = len(self.results.samples(metric.name, subject, **params))
        where = " ".join(f"{value}" for name, value in params.items() if name != "panel")
        self.say(f"  {number:2}  {metric.name + ' ' + where:34} {subject:20} "
                 f"{sample.value:12.{metric.digits}f} {metric.unit}")  # fmt: skip

    def heading(self, text: str) -> None:
        """A new part of the run."""
        if text != self._shown:
            self._shown = text
            self.console.print(f"[bold]{escape(text)}[/bold]")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(escape(text), soft_wrap=True)

    def skip(self, text: str) -> None:
        """Something is not there, and how to get it."""
        if text not in self.results.skipped:
            self.results.skipped.append(text)
            self.console.print(f"  [yellow]skipped[/yellow] {escape(text)}", soft_wrap=True)

    def fail(self, text: str) -> None:
        """A measurement came to nothing; the run goes on and its exit status is 1."""
        self.results.failures.append(text)
        self.console.print(f"  [red]failed[/red]  {escape(text)}", soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """What is left by the plan, at the pace so far."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    def render(self, task: Task) -> Text:
        elapsed = time.monotonic() - self._began
        pace = elapsed / task.completed if task.completed > 10 else 1.0
        left = max((task.total or 0) - task.completed, 0) * min(max(pace, 0.5), 4.0)
        return Text(f"{left / 60:.0f}:{left % 60:02.0f} left" if left >= 60 else f"{left:.0f} s left")
