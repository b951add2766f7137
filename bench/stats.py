"""Medians, spreads, and what counts as a change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: a change below this share is never called one, however steady the samples: code alignment alone moves that much
LEAST_CHANGE = 0.03
#: with fewer samples nobody knows how much they scatter
FEWEST_SAMPLES = 3
#: how many standard errors apart two medians have to be
SIGMAS = 3.0
#: normal distributions: standard deviation over median absolute deviation, standard error of median over that of mean
MAD_TO_SIGMA = 1.4826
MEDIAN_TO_MEAN = 1.2533


@dataclass(frozen=True)
class Summary:
    """Median with its range."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """The range as a share of the median."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0


def summarize(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    return Summary(statistics.median(values), min(values), max(values), len(values))


def figure(value: float) -> str:
    """For people: three figures say all that there is to say."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 4)}f}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` (0..1) of the ordered values do not exceed; between two values it is interpolated."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def paired_ratios(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    """The ratio in each round. What was taken once is compared with every round of the other."""
    rounds = max(len(tops), len(bottoms)) if tops and bottoms else 0
    if 1 not in (len(tops), len(bottoms)):
        rounds = min(len(tops), len(bottoms))
    pairs = ((tops[i % len(tops)], bottoms[i % len(bottoms)]) for i in range(rounds))
    return [top / bottom for top, bottom in pairs if bottom]


def relative_error(values: Sequence[float]) -> float:
    """Standard error of the median as a share of it, from the median absolute deviation, which outliers do not move."""
    middle = statistics.median(values)
    if not middle:
        return math.inf
    deviation = statistics.median(abs(value - middle) for value in values) * MAD_TO_SIGMA
    return MEDIAN_TO_MEAN * deviation / math.sqrt(len(values)) / abs(middle)


@dataclass(frozen=True)
class Change:
    """From old samples to new ones."""

    ratio: float
    "new median over old"
    noise: float
    "what the ratio would have to differ from 1 by; infinite with too few samples"

    @property
    def significant(self) -> bool:
        """Whether it is beyond the noise."""
        return abs(math.log(self.ratio)) > math.log1p(self.noise) if self.ratio > 0 else self.noise < math.inf


def change(old: Sequence[float], new: Sequence[float]) -> Change:
    """Compare two sets of samples of one thing. ValueError if a median is 0: there is no ratio then."""
    before, after = statistics.median(old), statistics.median(new)
    if not before:
        raise ValueError("the old median is 0")
    if min(len(old), len(new)) < FEWEST_SAMPLES:
        return Change(after / before, math.inf)
    error = math.hypot(relative_error(old), relative_error(new))
    return Change(after / before, max(LEAST_CHANGE, SIGMAS * error))
