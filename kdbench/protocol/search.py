"""Where a hyper-parameter is searched, as its method declares it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where a search of hyper-parameters looks: between two bounds, or among choices.

    Attributes:
        low, high: bounds, both included; two integers search integers.
        log: whether the search is even in the logarithm, as for weights and rates.
        choices: the values, in place of bounds.
        source: where the bounds come from, e.g. an arXiv id.

    Raises ValueError for bounds or choices that are no space.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if problem := problem_of(self.low, self.high, self.log, self.choices):
            raise ValueError(problem)

    def plain(self) -> dict[str, Any]:
        """Return the space as JSON has it, without its source."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


def problem_of(low: float | None, high: float | None, log: bool, choices: tuple[Any, ...]) -> str | None:
    """Return why these are no space, or None."""
    if choices:
        if low is not None or high is not None or log:
            return "give either choices, or low and high"
        if len({repr(choice) for choice in choices}) < 2:
            return "expected at least two different choices"
        return None
    if low is None or high is None:
        return "expected low and high, or choices"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"expected finite bounds with low below high, not {low} and {high}"
    if log and low <= 0:
        return f"a search by logarithm starts above 0, not at {low}"
    return None
