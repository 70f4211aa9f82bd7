"""Published accuracies beside measured ones, from the project's data file ``data/published_results.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.leaderboard.rows import Row


@dataclass(frozen=True)
class Published:
    """One published value of a row's method on the row's pair.

    Attributes:
        method: how the source calls it.
        value: top-1, percent; sd: its standard deviation over runs, where the source tells one.
        source: where the value was read.
        selection: which epoch it is of, in words.
        teacher_top1: top-1 of the source's teacher, percent, where it is told.
        difference: ours - theirs, points of top-1 after the last epoch; None without a mean of ours.
        protocol_equal: None where the source leaves open what it did.
        differences: what differs between their protocol and ours, one text each.
        verified: whether the value was read in the source; others are nobody's claim and are not shown.
    """

    method: str
    value: float
    sd: float | None
    source: str
    selection: str
    teacher_top1: float | None
    difference: float | None
    protocol_equal: bool | None
    differences: tuple[str, ...]
    verified: bool


def published_for(row: Row) -> list[Published]:
    """Return the verified published values of a row's method on its pair and data set, by source."""
    return []
