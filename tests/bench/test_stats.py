"""What counts as a change, on samples whose answer one can see."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from bench.stats import change, figure, paired_ratios, quantile, relative_error, summarize


def test_summary() -> None:
    found = summarize([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.count) == (2.0, 1.0, 3.0, 3)
    assert found.spread == 1.0


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.25, 1.75)])
def test_quantile(share: float, expected: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == expected


def test_quantile_agrees_with_the_library() -> None:
    values = sorted(random.Random(1).random() for _ in range(101))
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert [quantile(values, n / 100) for n in range(1, 100)] == pytest.approx(cuts)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0525, "0.0525"), (21.13, "21.1"), (750.0, "750"), (1033.4, "1,033"), (0.0, "0"), (-2.5, "-2.50")],
)
def test_three_figures(value: float, expected: str) -> None:
    assert figure(value) == expected


def test_ratios_go_round_by_round() -> None:
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert paired_ratios([2.0, 9.0, 4.0], [1.0, 3.0]) == [2.0, 3.0]
    assert paired_ratios([6.0], [1.0, 3.0]) == [6.0, 2.0]
    assert paired_ratios([6.0, 8.0], [2.0]) == [3.0, 4.0]
    assert paired_ratios([], [2.0]) == []
    assert paired_ratios([1.0], [0.0]) == []


def test_an_outlier_does_not_make_the_rest_uncertain() -> None:
    assert relative_error([10.0, 10.1, 9.9, 10.0, 1.0]) < 0.01


def test_steady_samples_show_a_small_change() -> None:
    found = change([100, 101, 99, 100, 100], [106, 107, 105, 106, 106])
    assert found.significant
    assert found.ratio == pytest.approx(1.06)


def test_noisy_samples_hide_the_same_change() -> None:
    assert not change([100, 140, 60, 120, 80], [106, 146, 66, 126, 86]).significant


def test_what_is_too_small_is_never_a_change() -> None:
    assert not change([100.0] * 9, [101.0] * 9).significant


def test_halving_is_as_far_as_doubling() -> None:
    assert change([10.0] * 5, [5.0] * 5).significant
    assert change([5.0] * 5, [10.0] * 5).significant


def test_two_samples_say_nothing() -> None:
    found = change([1.0, 1.0], [2.0, 2.0, 2.0])
    assert math.isinf(found.noise)
    assert not found.significant


def test_no_ratio_to_nothing() -> None:
    with pytest.raises(ValueError, match="0"):
        change([0.0] * 5, [1.0] * 5)


def test_a_run_compared_with_its_twin_stays_the_same_mostly() -> None:
    """Rounds that scatter by a tenth, 200 times: false alarms stay rare."""
    rng = random.Random(7)
    alarms = sum(
        change([rng.gauss(100, 10) for _ in range(7)], [rng.gauss(100, 10) for _ in range(7)]).significant
        for _ in range(200)
    )
    assert alarms < 30
