"""Bootstrap intervals that are the same on every machine and for every order of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Resamplings of an interval.
RESAMPLES = 2000
#: Values nearer than this, in points of accuracy, are equal.
_NO_SPREAD = 1e-9


def studentised_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the studentised bootstrap (bootstrap-t).

    Each of 2,000 resamples gives t* = (mean* - mean) / error*; the interval is mean - t*(0.975) error to
    mean - t*(0.025) error (Efron and Tibshirani 1993, chapter 12.5). None where more than one resample in a
    hundred has no error, because most values are equal. Raises ValueError below five values.
    """
    import numpy as np

    low, high = studentised_intervals(np.sort(np.asarray(values, dtype=np.float64))[None, :], seed=seed)
    return None if np.isnan(low[0]) else (float(low[0]), float(high[0]))


def studentised_intervals(samples: Any, *, seed: int = 0) -> tuple[Any, Any]:
    """Return the bounds of :func:`studentised_interval` of each row of an array, NaN for none."""
    import numpy as np

    x = np.asarray(samples, dtype=np.float64)
    n = x.shape[1]
    if n < 5:
        raise ValueError(f"expected at least five values, got {n}")
    mean, error = x.mean(axis=1), x.std(axis=1, ddof=1) / n**0.5
    drawn = x[:, draws(n, RESAMPLES, seed)]
    spread = drawn.std(axis=2, ddof=1) / n**0.5
    there = spread > _NO_SPREAD
    t = np.where(there, (drawn.mean(axis=2) - mean[:, None]) / np.where(there, spread, 1.0), np.nan)
    enough = there.mean(axis=1) >= 0.99
    t[~enough] = 0.0
    bounds = np.where(enough, np.nanquantile(t, (0.025, 0.975), axis=1), np.nan)
    return mean - bounds[1] * error, mean - bounds[0] * error


def iqm(values: Any) -> Any:
    """Return the mean along the last axis without its lowest and its highest quarter: the interquartile mean.

    Quarters are rounded down (Agarwal et al. 2021, arXiv 2108.13264).
    """
    import numpy as np

    x = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = x.shape[-1]
    cut = n // 4
    return x[..., cut : n - cut].mean(axis=-1)


def iqm_interval(strata: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the interquartile mean of all values by a stratified bootstrap.

    Every stratum (a setting) gives of its n values (seeds) n - 1 with replacement: n of n, as for large n,
    would make the interval too narrow by sqrt((n - 1) / n), a fifth at three seeds (Rao and Wu, JASA 83, 1988).
    Raises ValueError for a stratum of fewer than two values.
    """
    import numpy as np

    if min(map(len, strata)) < 2:
        raise ValueError("expected at least two values in each stratum")
    drawn = []
    for number, values in enumerate(strata):
        n = len(values)
        x = np.asarray(values, dtype=np.float64)
        drawn.append(x[draws(n, RESAMPLES, seed + number, n - 1)])
    low, high = np.quantile(iqm(np.concatenate(drawn, axis=1)), (0.025, 0.975))
    return float(low), float(high)


def draws(n: int, resamples: int, seed: int, size: int | None = None) -> Any:
    """Return indices below `n`, an array [resamples, size or n]."""
    import numpy as np

    # numpy promises this stream for all versions (NEP 19), unlike that of its newer generators
    return np.random.RandomState(seed).randint(0, n, (resamples, n if size is None else size))
