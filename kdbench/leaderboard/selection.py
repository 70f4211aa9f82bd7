"""How much top-1 depends on which epoch is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.stats import Summary, summarise

if TYPE_CHECKING:
    from kdbench.results.schema import Deployable


@dataclass(frozen=True)
class Selection:
    """How the choice of the epoch moves top-1, in points: seed by seed, then summarised.

    Attributes:
        val: ``best_val`` minus ``last``.
        oracle: ``best_test`` minus ``last``: by how much an oracle flatters.
        oracle_over_val: ``best_test`` minus ``best_val``.
    """

    val: Summary
    oracle: Summary
    oracle_over_val: Summary


def selection(nets: Sequence[Deployable | None]) -> Selection:
    """Compare the choices on the networks of a row's seeds, None for a cell that is not done."""
    last = [n.last.get("top1") if n else None for n in nets]
    val = [n.best_val.top1 if n and n.best_val else None for n in nets]
    test = [n.best_test.top1 if n and n.best_test else None for n in nets]
    return Selection(_minus(val, last), _minus(test, last), _minus(test, val))


def _minus(a: Sequence[float | None], b: Sequence[float | None]) -> Summary:
    return summarise([None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)])
