"""Differences of two sides with their intervals: over shared seeds, and of two series of timings."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdbench.stats.summary import ROUNDING, summarise

#: Resamplings of a bootstrap interval.
RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """What B is against A: a difference in the values' unit, or a ratio B / A.

    Attributes:
        n: pairs, or of unpaired series the values of the shorter one.
        a, b: the mean of each side (of ratios the geometric mean, of timings the median).
        value: the difference or ratio.
        low, high: its 95 % interval; None where there are too few values for one.
        neutral: the value of no difference, 0 or 1.
        of: what was paired or compared: ``seeds`` or ``rounds``.
        allowed: factor by which the interval of a ratio was widened to either side.
    """

    n: int
    a: float
    b: float
    value: float
    low: float | None
    high: float | None
    neutral: float
    of: str = "seeds"
    allowed: float = 1.0

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
        low, high = self.low / factor, self.high * factor
        return replace(self, low=low, high=high, allowed=self.allowed * factor)

    def without_interval(self) -> Difference:
        """Return the same where an interval would say more than so few values can."""
        return replace(self, low=None, high=None)

    @property
    def p(self) -> float | None:
        """The two-sided probability of a difference this large where there is none, None without an interval.

        It goes with the interval: below 0.05 where that leaves out "no difference". By Student's t over seeds;
        over rounds by the normal distribution that has the interval's end.
        """
        if self.low is None or self.high is None:
            return None
        scale = math.log if self.neutral == 1.0 else float
        allowed = math.log(self.allowed)
        gap = abs(scale(self.value) - scale(self.neutral)) - allowed
        end = self.high if self.value < self.neutral else self.low
        half = abs(scale(self.value) - scale(end)) - allowed
        if gap <= 0:
            return 1.0
        if half <= 1e-12:
            return 0.0
        # scipy.special alone loads in a tenth of the time of scipy.stats
        from scipy.special import ndtr, ndtri, stdtr, stdtrit

        if self.of == "seeds":
            return 2 * float(stdtr(self.n - 1, -gap / half * stdtrit(self.n - 1, 0.975)))
        return 2 * float(ndtr(-gap / half * ndtri(0.975)))


def holm(found: Sequence[Difference], level: float = 0.05) -> list[Difference]:
    """Return those that are significant together: the chance that any of them is by chance is at most `level`.

    The step-down procedure of Holm (Scandinavian Journal of Statistics 6, 1979).
    """
    ordered = sorted(((p, i) for i, one in enumerate(found) if (p := one.p) is not None))
    kept = []
    for k, (p, i) in enumerate(ordered):
        if p > level / (len(ordered) - k):
            break
        kept.append(i)
    return [found[i] for i in sorted(kept)]


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the mean of ``b - a`` over pairs with Student's t-interval.

    Raises ValueError where there is no pair, or not as many values on both sides.
    """
    _check(a, b)
    found = summarise([y - x for x, y in zip(a, b, strict=True)])
    assert found.mean is not None
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    low, high = found.ci95_low, found.ci95_high
    if found.n > 1 and found.sd == 0.0 and abs(found.mean) <= ROUNDING:
        low = high = 0.0
    return Difference(len(a), mean_a, mean_b, found.mean, low, high, 0.0)


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
    return Difference(n, median_a, median_b, median_b / median_a, low, high, 1.0, of="rounds")


def _check(a: Sequence[float], b: Sequence[float]) -> None:
    if not a or len(a) != len(b):
        raise ValueError(f"expected pairs, got {len(a)} and {len(b)} values")
