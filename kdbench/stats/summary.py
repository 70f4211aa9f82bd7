"""Mean, standard deviation and confidence interval of a few seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Values nearer than this are one value: percents are sums of hundredths.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """What is said about the values of one row.

    Attributes:
        n: values that are there.
        mean: arithmetic mean; None where a value is missing or there is none.
        sd: sample standard deviation (n - 1); None where the mean is None or n is 1.
        ci95_low, ci95_high: two-sided 95 % interval of the mean by Student's t; None where sd is, and where all
            values are equal: that says how coarse they are, not that they have no noise.
        why: why there is a mean and no interval; else empty.
    """

    n: int
    mean: float | None
    sd: float | None
    ci95_low: float | None
    ci95_high: float | None
    why: str = ""


def summarise(values: Sequence[float | None]) -> Summary:
    """Summarise the values of the planned cells of a row, in the values' unit.

    A missing or failed cell is None and makes the mean None: an average over the seeds that happened to
    finish would flatter a method that diverges. The result does not depend on the order of the values.
    Raises ValueError for NaN and infinite values.
    """
    found = [float(v) for v in values if v is not None]
    if not all(map(math.isfinite, found)):
        raise ValueError("values must be finite")
    n = len(found)
    if n == 0 or n < len(values):
        return Summary(n, None, None, None, None)
    mean = math.fsum(found) / n
    if n == 1:
        return Summary(n, mean, None, None, None, "one value")
    if max(found) - min(found) <= ROUNDING:
        return Summary(n, mean, 0.0, None, None, "all values are equal")
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (n - 1))
    half = t975(n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


@functools.cache
def t975(df: int) -> float:
    """Quantile 0.975 of Student's t with `df` degrees of freedom."""
    # scipy.special alone loads in a tenth of the time of scipy.stats and has the same quantile.
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975))
