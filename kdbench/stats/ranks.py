"""Ranks of several methods over several settings: Friedman's test and what follows it (Demšar, JMLR 7, 2006)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Values nearer than this, in points of accuracy, share their rank.
_DIGITS = 9


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all methods rank alike, in the form of Iman and Davenport (1980).

    Attributes:
        chi2: Friedman's statistic, corrected for ties.
        f: Iman and Davenport's statistic; infinite where every setting has one and the same order.
        p: probability of at least this `f` if all methods were alike.
    """

    chi2: float
    f: float
    p: float

    @property
    def rejects(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < 0.05


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, 1 for the highest; equal values share their average rank."""
    rounded = [round(v, _DIGITS) for v in values]
    return [1.0 + sum(o > v for o in rounded) + (rounded.count(v) - 1) / 2 for v in rounded]


def average_ranks(blocks: Sequence[Sequence[float]]) -> list[float]:
    """Return the average rank of each method; a block holds the values of all methods in one setting."""
    each = [ranks(block) for block in blocks]
    return [math.fsum(column) / len(each) for column in zip(*each, strict=True)]


def friedman(blocks: Sequence[Sequence[float]]) -> Friedman | None:
    """Test whether methods rank alike over the blocks; None where all are equal in every block.

    Raises ValueError for fewer than three methods.
    """
    from scipy.special import fdtrc
    from scipy.stats import friedmanchisquare

    n, k = len(blocks), len(blocks[0])
    if k < 3:
        raise ValueError(f"expected at least three methods, got {k}")
    each = [ranks(block) for block in blocks]
    if all(rank == row[0] for row in each for rank in row):
        return None
    chi2 = float(friedmanchisquare(*zip(*each, strict=True)).statistic)
    left = n * (k - 1) - chi2
    if left <= 1e-9 * n * k:
        return Friedman(chi2, math.inf, 0.0)
    f = (n - 1) * chi2 / left
    return Friedman(chi2, f, float(fdtrc(k - 1, (k - 1) * (n - 1), f)))


@functools.cache
def nemenyi_difference(k: int, n: int) -> float:
    """Return by how much two average ranks of `k` methods over `n` settings must differ, at 5 % for all pairs.

    q / sqrt(2) * sqrt(k (k + 1) / 6n) with q of the studentised range (Nemenyi 1963; Demšar 2006, section 3.2.2).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(0.95, k, math.inf)) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


def cliques(average: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """Return the largest groups of methods within `difference` of one another, as indices, the best first.

    Groups lie within no other; a method that is told apart from all others is in none.
    """
    order = sorted(range(len(average)), key=lambda i: (average[i], i))
    found: list[tuple[int, ...]] = []
    end = 0
    for start, i in enumerate(order):
        reach = sum(average[j] - average[i] <= difference + 1e-12 for j in order[start:]) + start
        if reach > end and reach - start > 1:
            found.append(tuple(order[start:reach]))
        end = max(end, reach)
    return found
