"""One format for all that is measured: samples by metric, subject and parameters. ``schema.json`` describes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from bench import machine
from bench.stats import Summary, summarize

SCHEMA_VERSION = 2
SCHEMA = Path(__file__).with_name("schema.json")
DIRECTORY = Path(__file__).with_name("results")
#: other programs that take more than this share of the machine make the figures worthless
FOREIGN_LIMIT = 0.05
#: half of the series may scatter by no more than this share of their medians
SPREAD_LIMIT = 0.25
#: fewer samples than this, and nobody knows how far they scatter
ENOUGH_ROUNDS = 5

Params = dict[str, str | int]
Key = tuple[str, str, tuple[tuple[str, str | int], ...]]


class ResultError(Exception):
    """A file is not a result; ``str()`` says why."""


@dataclass(frozen=True)
class Metric:
    """What is measured, in which unit."""

    name: str
    part: str
    title: str
    unit: str
    more_is_better: bool
    digits: int = 2


@dataclass
class Sample:
    """One measured value."""

    value: float
    seconds: float = 0.0
    "how long it took"
    cpu_user_s: float = 0.0
    "CPU seconds of both gateways meanwhile"
    cpu_system_s: float = 0.0
    busy: float = 0.0
    "share of all CPUs that was not idle, 0..1"
    foreign: float | None = None
    "the same just after it, when nothing of ours had work to do"
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of both gateways, user and system."""
        return self.cpu_user_s + self.cpu_system_s


def key_of(metric: str, subject: str, params: Params) -> Key:
    """What two runs have in common."""
    return metric, subject, tuple(sorted(params.items()))


@dataclass
class Results:
    """A run: what was measured on what, and everything that somebody needs in order to believe it."""

    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    series: dict[Key, list[Sample]] = field(default_factory=dict)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine.describe)
    load_at_start: float = field(default_factory=lambda: os.getloadavg()[0])
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    took_s: float = 0.0
    interrupted: bool = False
    checks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, metric: Metric, subject: str, sample: Sample, **params: str | int) -> None:
        """Keep one sample."""
        self.metrics[metric.name] = metric
        self.series.setdefault(key_of(metric.name, subject, params), []).append(sample)

    def samples(self, metric: str, subject: str, **params: str | int) -> list[Sample]:
        """In the order of the rounds; none if it was not measured."""
        return self.series.get(key_of(metric, subject, params), [])

    def values(self, metric: str, subject: str, **params: str | int) -> list[float]:
        """Their values."""
        return [sample.value for sample in self.samples(metric, subject, **params)]

    def summary(self, metric: str, subject: str, **params: str | int) -> Summary | None:
        """None if it was not measured."""
        values = self.values(metric, subject, **params)
        return summarize(values) if values else None

    def of(self, metric: str) -> Iterator[tuple[str, Params, list[Sample]]]:
        """Every subject and its parameters for which there is this metric."""
        for (name, subject, params), samples in self.series.items():
            if name == metric:
                yield subject, dict(params), samples

    def noise(self) -> dict[str, Any]:
        """How far to trust it: what others took of the machine, how far rounds scatter, and words for both."""
        shares = [s.foreign for samples in self.series.values() for s in samples if s.foreign is not None]
        rounds = [summarize([s.value for s in samples]) for samples in self.series.values() if len(samples) > 1]
        foreign = summarize(shares).median if shares else 0.0
        spread = summarize([one.spread for one in rounds]).median if rounds else 0.0
        why = []
        if foreign > FOREIGN_LIMIT:
            why.append(f"other programs kept {foreign:.0%} of the CPUs busy (limit {FOREIGN_LIMIT:.0%})")
        if spread > SPREAD_LIMIT:
            why.append(f"half of the series scatter by more than {spread:.0%} of their medians "
                       f"(limit {SPREAD_LIMIT:.0%})")  # fmt: skip
        few = self.options.get("rounds", ENOUGH_ROUNDS) < ENOUGH_ROUNDS
        return {"foreign_cpu": round(foreign, 3), "median_spread": round(spread, 3), "noisy": bool(why),
                "few_rounds": few, "why": why}  # fmt: skip

    def document(self) -> dict[str, Any]:
        """What is written to the file."""
        return {
            "schema": SCHEMA_VERSION,
            "when": self.when,
            "took_s": round(self.took_s, 1),
            "interrupted": self.interrupted,
            "options": self.options,
            "machine": self.machine,
            "load_at_start": round(self.load_at_start, 2),
            "noise": self.noise(),
            "subjects": self.subjects,
            "metrics": {m.name: {"part": m.part, "title": m.title, "unit": m.unit, "more_is_better": m.more_is_better,
                                 "digits": m.digits} for m in self.metrics.values()},
            "series": [{"metric": metric, "subject": subject, "params": dict(params),
                        "samples": [_plain(sample) for sample in samples]}
                       for (metric, subject, params), samples in self.series.items()],
            "checks": self.checks,
            "skipped": self.skipped,
            "failures": self.failures,
        }

    def write(self, path: Path) -> None:
        """The JSON file, whole or not at all; its directory is made if need be."""
        document = self.document()
        validate(document, "this run")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        part.replace(path)


def load(path: Path) -> Results:
    """Read a file back. ResultError if it is none."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultError(f"{path}: not JSON: {error}") from None
    version = document.get("schema") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultError(f"{path}: a result of format {version}, this program reads format {SCHEMA_VERSION}")
    validate(document, str(path))
    results = Results(machine=document["machine"], load_at_start=document["load_at_start"], when=document["when"])
    for name in ("options", "subjects", "skipped", "failures", "took_s", "interrupted", "checks"):
        setattr(results, name, document[name])
    results.metrics = {name: Metric(name, **fields) for name, fields in document["metrics"].items()}
    for row in document["series"]:
        key = key_of(row["metric"], row["subject"], row["params"])
        results.series[key] = [Sample(**sample) for sample in row["samples"]]
    return results


def latest() -> Path:
    """The newest file in ``bench/results``. ResultError if there is none."""
    found = sorted(DIRECTORY.glob("bench-*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ResultError(f"{DIRECTORY}: no result yet; python -m bench makes one")
    return found[-1]


def validate(document: Any, name: str) -> None:
    """ResultError that names the place where ``document`` is not what ``schema.json`` says."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    error = next(iter(sorted(validator.iter_errors(document), key=lambda found: list(found.absolute_path))), None)
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise ResultError(f"{name}: {place}: {error.message[:300]}")


def _plain(sample: Sample) -> dict[str, Any]:
    # most fields of most samples say nothing
    fields = {name: value for name, value in vars(sample).items() if value not in (0, None, {}) or name == "value"}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
