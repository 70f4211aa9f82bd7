"""Differences of two sides with their intervals: over shared seeds, and of two series of timings."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdbench.stats.summary import summarise

#: Resamplings of a bootstrap interval.
RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """What B is against A: a difference in the values' unit, or a ratio B / A.

    Attributes:
        n: pairs, or of unpaired series the values of the shorter one.
        a, b: the mean of each side (of ratios the geometric mean, of timings the median).
        value: the difference or ratio.
        low, high: its 95 % interval; None where one pair is all there is.
        neutral: the value of no difference, 0 or 1.
    """

    n: int
    a: float
    b: float
    value: float
    low: float | None
    high: float | None
    neutral: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out "no difference"; never without an interval."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.neutral or self.high < self.neutral

    def widened(self, factor: float) -> Difference:
        """Return the same ratio with an interval that allows for `factor` (1 or more) to either side."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=self.low / factor, high=self.high * factor)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the mean of ``b - a`` over pairs with Student's t-interval.

    Raises ValueError where there is no pair, or not as many values on both sides.
    """
    _check(a, b)
    found = summarise([y - x for x, y in zip(a, b, strict=True)])
    assert found.mean is not None
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    return Difference(len(a), mean_a, mean_b, found.mean, found.ci95_low, found.ci95_high, 0.0)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the geometric mean of ``b / a`` over pairs, with Student's t-interval of its logarithm.

    Raises ValueError where there is no pair, not as many values on both sides, or one that is not positive.
    """
    _check(a, b)
    if min(*a, *b) <= 0:
        raise ValueError("a ratio needs positive values")
    logs = paired_difference([math.log(x) for x in a], [math.log(y) for y in b])
    low, high = (None if v is None else math.exp(v) for v in (logs.low, logs.high))
    return Difference(len(a), math.exp(logs.a), math.exp(logs.b), math.exp(logs.value), low, high, 1.0)


def ratio_of_medians(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Difference:
    """Return ``median(b) / median(a)`` of two series that are not paired, with a bootstrap interval.

    The interval is that of 2,000 resamplings of both series (percentiles 2.5 and 97.5); it says how steady each
    series was and nothing of what changed between them. None for series of fewer than three values. Equal input
    gives equal output. Raises ValueError for an empty series or a value that is not positive.
    """
    if not a or not b or min(*a, *b) <= 0:
        raise ValueError("a ratio of medians needs positive values on both sides")
    median_a, median_b = statistics.median(a), statistics.median(b)
    n = min(len(a), len(b))
    low = high = None
    if n >= 3:
        rng = random.Random(seed)
        ratios = sorted(
            statistics.median(rng.choices(b, k=len(b))) / statistics.median(rng.choices(a, k=len(a)))
            for _ in range(RESAMPLES)
        )
        low, high = ratios[round(0.025 * (RESAMPLES - 1))], ratios[round(0.975 * (RESAMPLES - 1))]
    return Difference(n, median_a, median_b, median_b / median_a, low, high, 1.0)


def _check(a: Sequence[float], b: Sequence[float]) -> None:
    if not a or len(a) != len(b):
        raise ValueError(f"expected pairs, got {len(a)} and {len(b)} values")
