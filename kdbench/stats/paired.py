"""One side against another over the seeds that both were planned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdbench.stats.bootstrap import studentised_interval
from kdbench.stats.summary import ROUNDING, summarise

#: Fewer shared seeds than this give no interval, and nothing is claimed.
MIN_SEEDS = 3
#: From this many shared seeds on the interval is a studentised bootstrap, below it is Student's t.
BOOTSTRAP_SEEDS = 10


@dataclass(frozen=True)
class Paired:
    """Mine minus theirs, over shared seeds, in the values' unit.

    Attributes:
        n: seeds that both sides were planned with.
        mean: mean difference; None where a shared cell failed or there is no shared seed.
        low, high: its 95 % interval; None where the mean is, below three seeds, and where all differences are
            equal but not 0: that says how coarse the values are, not that they have no noise.
        interval: ``"t"``, ``"bootstrap-t"``, or empty where there is none.
        better: share of the seeds with mine above theirs, equal ones counted half: the probability of
            improvement (Agarwal et al. 2021, arXiv 2108.13264) over pairs; None where the mean is.
        why: why mean or interval are None; else empty.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    better: float | None = None
    why: str = ""

    @property
    def covers_zero(self) -> bool | None:
        """Whether the interval covers 0.

        None where nothing can be said. Without an interval for equal differences it is True: not told apart.
        """
        if self.mean is None or self.n < MIN_SEEDS:
            return None
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def paired(mine: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Paired:
    """Compare two sides given as seed -> value, None for a cell that failed.

    Values that both sides hold by plan count, and a failed one among them makes the mean None: the seeds that
    happened to finish on both sides are no fair sample. Below ten seeds the interval is Student's t, which
    assumes differences that are about normal; from ten on it is a studentised bootstrap (Efron 1979; Hall
    1988), which does not. Raises ValueError for values that are not finite.
    """
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return Paired(0, why="no shared seed")
    differences = [
        None if (a := mine[seed]) is None or (b := theirs[seed]) is None else a - b for seed in shared
    ]
    found = summarise(differences)
    if found.mean is None:
        lost = [str(seed) for seed, d in zip(shared, differences, strict=True) if d is None]
        return Paired(len(shared), why=f"seed {', '.join(lost)} is not done on both sides")
    values = sorted(d for d in differences if d is not None)
    better = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in values) / len(values)
    if found.n < MIN_SEEDS:
        return Paired(found.n, found.mean, better=better, why=f"fewer than {MIN_SEEDS} shared seeds")
    if values[-1] - values[0] <= ROUNDING:
        if abs(found.mean) > ROUNDING:
            return Paired(found.n, found.mean, better=better, why="all differences are equal")
        return Paired(found.n, found.mean, found.mean, found.mean, "t", better)
    drawn = studentised_interval(values) if found.n >= BOOTSTRAP_SEEDS else None
    if drawn is None:
        return Paired(found.n, found.mean, found.ci95_low, found.ci95_high, "t", better)
    return Paired(found.n, found.mean, *drawn, "bootstrap-t", better)
