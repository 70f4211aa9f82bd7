"""What the rows of one table are against one another: references, the best row and who is tied with it.

Pairs are seeds: for one seed all methods start from the same student and see the same images in the same order.
No reference is known by name here; names are data, in ``board.yaml`` or in ``data/references.yaml``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdbench.errors import KdbenchError, did_you_mean
from kdbench.leaderboard.rows import Row
from kdbench.stats import Paired, paired

#: Fewer finished seeds than this get no rank.
MIN_SEEDS_FOR_RANK = 3
#: Means nearer than this, in points, are equal.
_EQUAL = 1e-9


@functools.cache
def default_references() -> tuple[str, ...]:
    """Return the references of boards that name none."""
    import yaml

    path = Path(__file__).parent / "data" / "references.yaml"
    return tuple(yaml.safe_load(path.read_text(encoding="utf-8")))


def check_references(names: Iterable[str], rows: Sequence[Row]) -> None:
    """Raise KdbenchError for a name that no row has as its variant or method."""
    known = {name for r in rows for name in (r.labels.variant, r.labels.method)}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, sorted(known))
            raise KdbenchError(f"board.yaml: references: the records have no method {name!r:.60}{hint}")


def ranked(row: Row) -> bool:
    """Whether a row has a rank: a mean over at least three seeds."""
    return row.last.mean is not None and row.last.n >= MIN_SEEDS_FOR_RANK


def compare_rows(rows: Sequence[Row], references: Sequence[str]) -> list[str]:
    """Set `against`, `to_best` and `tied` of the rows of one table; return the references found, by variant.

    A reference is for rows with its student. A name that several rows of a student answer to is none.
    """
    found: dict[str, None] = {}
    for student in sorted({r.student_key for r in rows}):
        members = [r for r in rows if r.student_key == student]
        for reference in _references(members, references):
            variant = reference.labels.variant
            for row in members:
                if row.row is not reference.row:
                    row.against[variant] = paired(row.by_seed, reference.by_seed)
                    found[variant] = None
    _tie(rows)
    return list(found)


def _references(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    baselines = list({id(b): b for r in rows if (b := r.baseline) is not None}.values())
    # two configurations under one name could not be told apart in a table's heading
    found = {b.labels.variant: b for b in baselines} if len(baselines) == 1 else {}
    for name in names:
        named = [r for r in rows if r.labels.variant == name] or [r for r in rows if r.labels.method == name]
        if len(named) == 1:
            found.setdefault(named[0].labels.variant, named[0])
    return list(found.values())


def _tie(rows: Sequence[Row]) -> None:
    eligible = [r for r in rows if ranked(r)]
    if not eligible:
        return
    top = max(r.last.mean or 0.0 for r in eligible)
    best = [r for r in eligible if top - (r.last.mean or 0.0) <= _EQUAL]
    for row in eligible:
        if row in best:
            row.tied = True
            continue
        row.to_best = min((paired(row.by_seed, b.by_seed) for b in best), key=_strictness)
        row.tied = row.to_best.covers_zero


def _strictness(found: Paired) -> tuple[int, float, float]:
    """Of several best rows the one that says least counts, whatever the rows are called."""
    covers = found.covers_zero
    return (0 if covers else 1 if covers is None else 2), found.low or 0.0, found.high or 0.0
