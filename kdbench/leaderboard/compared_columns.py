"""Columns of what rows are against one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdbench.leaderboard.columns import Column
from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.text import NULL, number
from kdbench.stats import Paired


def compared_columns(rows: Sequence[Row], references: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns for a table's rows, none where no two rows have three seeds to compare."""
    if not references and not any(r.to_best is not None for r in rows):
        return ()
    found = [_BEST] if any(r.tied is not None for r in rows) else []
    for name in references:
        found += [_difference(name), _better(name)]
    if any(r.gap_interval is not None for r in rows):
        found.append(_GAP)
    return (*found, _FLATTERY)


def signed(value: float | None, digits: int = 2) -> str:
    """Return a difference with its sign, ``0.00`` without one."""
    text = number(value, digits)
    return f"+{text}" if value is not None and float(text) > 0 else text


def _standing(row: Row) -> str:
    if row.tied is None:
        return NULL
    if row.to_best is None:
        return "best"
    return "not told apart" if row.tied else "below"


def _with_interval(found: Paired | None) -> str:
    if found is None or found.mean is None:
        return NULL
    if found.low is None or found.high is None:
        return f"{signed(found.mean)} (no interval)"
    return f"{signed(found.mean)} ({signed(found.low)} to {signed(found.high)})"


def _difference(name: str) -> Column:
    def value(row: Row) -> float | None:
        found = row.against.get(name)
        return None if found is None else found.mean

    return Column(
        f"Minus {name}, points",
        f"Mean difference of top-1 to {name} over shared seeds, with its 95 % interval",
        "compared",
        lambda row: _with_interval(row.against.get(name)),
        value,
    )


def _better(name: str) -> Column:
    def value(row: Row) -> float | None:
        found = row.against.get(name)
        return None if found is None else found.better

    def text(row: Row) -> str:
        found = row.against.get(name)
        if found is None or found.better is None:
            return NULL
        wins = found.better * found.n
        return f"{number(wins, 0 if wins == int(wins) else 1)}/{found.n}"

    return Column(
        f"Above {name}",
        f"Shared seeds with a higher top-1 than {name}'s, equal ones half",
        "compared",
        text,
        value,
    )


def _gap(row: Row) -> str:
    if row.gap_interval is None:
        return NULL
    low, high = (number(100 * v, 1) for v in row.gap_interval)
    return f"{low} to {high} %"


_lowest: Callable[[Row], float | None] = lambda row: row.gap_interval[0] if row.gap_interval else None  # noqa: E731

_BEST = Column(
    "To the best",
    "Whether the 95 % interval of the difference to the row with the highest mean, over shared seeds, covers 0",
    "compared",
    _standing,
)
_GAP = Column(
    "Gap closed, 95 %",
    "Interval of the gap closed over seeds, by Fieller's method",
    "compared",
    _gap,
    _lowest,
)
_FLATTERY = Column(
    "Oracle − last, points",
    "By how much top-1 at the best epoch on test exceeds top-1 after the last: what the oracle flatters",
    "compared",
    lambda row: signed(row.differences.oracle.mean),
    lambda row: row.differences.oracle.mean,
)
