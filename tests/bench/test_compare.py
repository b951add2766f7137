"""``bench compare``: what it calls a change, and what it warns of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.compare import compare, warnings
from bench.results import Metric, Results, Sample

MORE = Metric("tcp1", "e2e", "one TCP stream", "Gbit/s", True)
LESS = Metric("rtt", "e2e", "round trip", "us", False)


def run(**series: Sequence[float]) -> Results:
    """A result with one series for each subject, of both metrics."""
    results = Results(options={"rounds": 5, "seconds": 1, "settings": {}})
    for subject, values in series.items():
        for value in values:
            results.add(MORE, subject, Sample(value), panel="peers")
            results.add(LESS, subject, Sample(value), panel="peers")
    return results


def verdicts(old: Results, new: Results, relative_to: str | None = None) -> dict[tuple[str, str], str]:
    return {(row.metric.name, row.subject): row.verdict for row in compare(old, new, relative_to)}


def test_more_is_better_or_worse_as_the_metric_says() -> None:
    found = verdicts(run(ipsec=[10, 10, 10]), run(ipsec=[20, 20, 20]))
    assert found == {("tcp1", "ipsec"): "better", ("rtt", "ipsec"): "worse"}


def test_the_same_is_the_same() -> None:
    assert set(verdicts(run(ipsec=[10, 11, 9]), run(ipsec=[11, 10, 9])).values()) == {"same"}


def test_a_slower_machine_cancels_out_relative_to_another_subject() -> None:
    old = run(ipsec=[10, 10, 10], plain=[30, 30, 30])
    new = run(ipsec=[5, 5, 5], plain=[15, 15, 15])
    assert verdicts(old, new)["tcp1", "ipsec"] == "worse"
    assert verdicts(old, new, "plain") == {("tcp1", "ipsec"): "same", ("rtt", "ipsec"): "same"}


def test_only_what_both_have() -> None:
    assert verdicts(run(ipsec=[1, 1, 1], old=[1]), run(ipsec=[1, 1, 1], new=[1])) == {
        ("tcp1", "ipsec"): "same", ("rtt", "ipsec"): "same",
    }  # fmt: skip


def test_another_machine_is_said() -> None:
    old, new = run(ipsec=[1]), run(ipsec=[1])
    assert not warnings(old, new)
    new.machine = {**new.machine, "kernel": "other"}
    assert "kernel differs" in warnings(old, new)[0]


def write(path: Path, results: Results) -> str:
    results.write(path)
    return str(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.json", run(ipsec=[10, 10, 10]))
    new = write(tmp_path / "new.json", run(ipsec=[20, 20, 20]))
    assert main(["compare", old, new]) == 1
    shown = capsys.readouterr().out
    assert "+100.0%" in shown
    assert shown.index("worse") < shown.index("better")
    assert main(["compare", old, old]) == 0
    assert main(["compare", old, new, "--json"]) == 1
    capsys.readouterr()
    main(["compare", old, new, "--json"])
    assert {row["verdict"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"better", "worse"}


def test_wrong_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.json", run(ipsec=[10, 10, 10]))
    assert main(["compare", old, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main(["compare", old, old, "--relative-to", "nobody"]) == 2
    assert "there are ipsec" in capsys.readouterr().err
