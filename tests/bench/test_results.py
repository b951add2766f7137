"""The file of a run: written whole, read back equal, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.results import Metric, ResultError, Results, Sample, load, validate

METRIC = Metric("tcp1", "e2e", "one TCP stream", "Gbit/s", True)


def made(foreign: float = 0.0, scatter: float = 0.0, rounds: int = 5) -> Results:
    results = Results(options={"rounds": rounds})
    for number in range(rounds):
        results.add(METRIC, "ipsec", Sample(10 + scatter * number, foreign=foreign), panel="peers")
    return results


def test_what_is_written_is_what_is_read(tmp_path: Path, recorded: Path) -> None:
    first = load(recorded)
    first.write(tmp_path / "again.json")
    second = load(tmp_path / "again.json")
    assert second.series == first.series
    assert second.document() == first.document()


def test_samples_are_found_by_metric_subject_and_parameters() -> None:
    results = made()
    assert results.values("tcp1", "ipsec", panel="peers") == [10.0] * 5
    assert results.values("tcp1", "ipsec") == []
    assert results.summary("tcp1", "strongswan", panel="peers") is None


def test_a_quiet_run_is_trusted() -> None:
    noise = made(foreign=0.01).noise()
    assert not noise["noisy"]
    assert not noise["few_rounds"]
    assert noise["why"] == []


def test_a_noisy_run_says_so() -> None:
    assert "other programs" in made(foreign=0.5).noise()["why"][0]
    assert "scatter" in made(scatter=2.0).noise()["why"][0]
    assert made(rounds=2).noise()["few_rounds"]


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda d: d.pop("machine"), "machine"),
        (lambda d: d["series"][0]["samples"][0].pop("value"), "series/0/samples/0"),
        (lambda d: d["series"][0].update(samples=[]), "series/0/samples"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["metrics"][d["series"][0]["metric"]].update(part="other"), "part"),
    ],
)
def test_the_schema_names_the_place(document: dict[str, Any], spoil: Any, place: str) -> None:
    validate(document, "x")
    spoil(document)
    with pytest.raises(ResultError, match=place):
        validate(document, "x")


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "not JSON"), ("[]", "format None"), ('{"schema": 1}', "format 1"), ('{"schema": 2}', "required")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ResultError, match=why):
        load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        load(tmp_path / "none.json")


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    results = made()
    results.options["bad"] = object()
    with pytest.raises(TypeError):
        results.write(tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    json.dumps(made().document())
