"""Interval of a ratio of two means that were measured on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdbench.stats.summary import t975


def fieller(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of mean(top) / mean(bottom) over pairs, by Fieller's method.

    It holds every ratio r for which the mean of ``top - r * bottom`` is within its own t-interval of 0 (Fieller,
    J. R. Stat. Soc. B 16, 1954): exact for normal values at any number of pairs, and not symmetric. None where
    `bottom` is itself not told apart from 0, since the interval then has no ends; below three pairs; and where
    neither side varies. Raises ValueError for sides of different length.
    """
    n = len(top)
    if n != len(bottom):
        raise ValueError(f"expected pairs, got {n} and {len(bottom)} values")
    if n < 3:
        return None
    x, y = math.fsum(top) / n, math.fsum(bottom) / n
    # t² times the variances and covariance of the two means
    scale = t975(n - 1) ** 2 / (n - 1) / n
    xx = scale * math.fsum((a - x) ** 2 for a in top)
    yy = scale * math.fsum((b - y) ** 2 for b in bottom)
    xy = scale * math.fsum((a - x) * (b - y) for a, b in zip(top, bottom, strict=True))
    if max(xx, yy) < _NONE or y * y <= yy:
        return None
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    half = math.sqrt(max(0.0, b * b - a * c))
    return (b - half) / a, (b + half) / a


#: Squared points of accuracy below which values do not vary.
_NONE = 1e-18
