"""Where one more value of the same kind is to be expected."""

from __future__ import annotations

import math
from collections.abc import Sequence


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the two-sided 95 % interval for one further draw, in the values' unit; None for fewer than 2.

    ``mean ± t(0.975, n - 1) · sd · sqrt(1 + 1/n)``, Student's t for normal draws: wider than the interval of the
    mean, which says nothing about a single run. Raises ValueError for NaN and infinite values.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError("values must be finite")
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit

    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * sd * math.sqrt(1 + 1 / n)
    return mean - half, mean + half
