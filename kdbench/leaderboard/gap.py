"""The baseline of a row, and what is told relative to it.

Gap closed = (student - baseline) / (teacher - baseline), with top-1 after the last epoch as the mean over the
row's seeds. The baseline is the same student in the same setting trained alone. No method is known by name:
the baseline is recognised by having no teacher and no extra parameters; among several such rows it is the one
whose method also trained a teacher that the board's records refer to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.leaderboard.rows import Row, make_rows, part, top1, uses_teacher
from kdbench.results.schema import Record
from kdbench.stats import Summary, summarise
from kdbench.stats.ratio import fieller


def relate(rows: Sequence[Row]) -> None:
    """Set baseline, gap closed and relative step time of every student row."""
    alone = _methods_of_teachers(rows)
    candidates: dict[Any, list[Row]] = {}
    for row in rows:
        if _trained_alone(row):
            candidates.setdefault((row.setting, row.student_key), []).append(row)
    for key, found in candidates.items():
        candidates[key] = _choose(found, alone)
    for row in rows:
        if row.labels.role == "student":
            chosen = candidates.get((row.setting, row.student_key))
            row.baseline = chosen[0] if chosen else None
            row.gap_closed = gap_closed(row)
            row.gap_interval = gap_interval(row)
            row.relative_step = _relative_step(row)


def gap_closed(row: Row) -> float | None:
    """Return the share of the gap that the row's method closes.

    None when a cell of the row is not done, when the baseline lacks one of the row's seeds, or when the
    teacher does not beat the baseline by more than its standard deviation over seeds (0 for one seed): a gap
    within the noise has no share that means anything.
    """
    alone, teacher = _alone(row), row.teacher_top1
    if (
        alone is None
        or alone.mean is None
        or teacher is None
        or row.last.mean is None
        or nothing_to_close(row)
    ):
        return None
    return (row.last.mean - alone.mean) / (teacher - alone.mean)


def nothing_to_close(row: Row) -> bool:
    """Whether the teacher is known not to beat the row's baseline by more than its spread over seeds."""
    alone, teacher = _alone(row), row.teacher_top1
    if alone is None or alone.mean is None or teacher is None:
        return False
    return teacher - alone.mean <= (alone.sd or 0.0)


def _alone(row: Row) -> Summary | None:
    """Return the baseline over the row's seeds; None for a row without one, and for the baseline itself."""
    if row.baseline is None or row.baseline is row:
        return None
    by_seed = row.baseline.by_seed
    return summarise([by_seed.get(r.labels.seed) for r in row.records])


def gap_interval(row: Row) -> tuple[float, float] | None:
    """Return the 95 % interval of the gap closed over the row's seeds, by Fieller's method.

    Seeds vary, and with them the baseline; the teachers are those that were used, so it tells nothing of others.
    None where there is no gap closed, below three seeds, and where the gap between baseline and teacher is not
    told apart from none: a share of it could then be anything.
    """
    base = row.baseline
    if row.gap_closed is None or base is None:
        return None
    mine, alone, teachers = row.by_seed, base.by_seed, row.teacher_by_seed
    closed, gaps = [], []
    for seed, value in mine.items():
        theirs, teacher = alone.get(seed), teachers.get(seed)
        if value is None or theirs is None or teacher is None:
            return None
        closed.append(value - theirs)
        gaps.append(teacher - theirs)
    return fieller(closed, gaps)


def cell_gaps(records: Iterable[Record]) -> dict[str, float]:
    """Return the gap that each finished student cell closes, by cell id, against the baseline of its own seed.

    Cells whose row has no gap closed (see :func:`gap_closed`), or whose seed's baseline does not fall short of
    the teacher, are left out.
    """
    rows = make_rows(records)
    relate(rows)
    gaps: dict[str, float] = {}
    for row in rows:
        if row.gap_closed is None or row.baseline is None or row.teacher_top1 is None:
            continue
        by_seed = {r.labels.seed: top1(r) for r in row.baseline.records}
        for record in row.records:
            alone, mine = by_seed.get(record.labels.seed), top1(record)
            if alone is not None and mine is not None and row.teacher_top1 > alone:
                gaps[record.cell_id] = (mine - alone) / (row.teacher_top1 - alone)
    return gaps


def _methods_of_teachers(rows: Sequence[Row]) -> set[str]:
    used = {t.ref for row in rows for r in row.records for t in r.teachers if t.source == "cell"}
    for row in rows:
        teachers = row.records[0].identity.get("teachers")
        for teacher in teachers if isinstance(teachers, list) else ():
            if isinstance(teacher, dict) and isinstance(teacher.get("cell"), str):
                used.add(teacher["cell"])
    return {
        row.labels.method
        for row in rows
        if row.labels.role == "teacher" or any(r.cell_id in used for r in row.records)
    }


def _trained_alone(row: Row) -> bool:
    if row.labels.role != "student" or any(map(uses_teacher, row.records)):
        return False
    # A method that needs a teacher and has none leaves only records that say so.
    return not row.extra_params and any(r.status != "not_applicable" for r in row.records)


def _choose(found: list[Row], alone: set[str]) -> list[Row]:
    """Return the baseline as a list of one, or nothing where it is not clear which row is the baseline."""
    named = [r for r in found if r.labels.method in alone]
    if named:
        found = named
    else:
        found = [r for r in found if r.done] or found
        fewest = min(_n_params(r) for r in found)
        found = [r for r in found if _n_params(r) == fewest]
    if len({r.labels.method for r in found}) > 1:
        return []
    return sorted(found, key=lambda r: (-len(r.done), _n_params(r), r.labels.variant, r.config))[:1]


def _n_params(row: Row) -> int:
    params = part(row.records[0], "method").get("params")
    return len(params) if isinstance(params, dict) else 0


def _relative_step(row: Row) -> float | None:
    base = row.baseline
    if base is None:
        return None
    comparable = row.hardware == base.hardware and len(row.hardware) == 1 and row.precision == base.precision
    ours, theirs = row.cost("step_ms"), base.cost("step_ms")
    return ours / theirs if comparable and ours is not None and theirs else None
