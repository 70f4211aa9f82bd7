"""Which cells of a plan an invocation runs."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.launch.looking import look_at
from kdbench.launch.planned import Plan, PlannedCell
from kdbench.registry import Registry

#: Statuses that ``--rerun failed`` takes up again.
FAILED = frozenset({"failed", "oom", "timeout", "diverged", "crashed"})
#: Statuses of cells that are run without being asked for.
OPEN = frozenset({"to run", "interrupted"})


def open_cells(
    cells: Sequence[PlannedCell], rerun: str | None = None, *, only_teachers: bool = False
) -> list[PlannedCell]:
    """Return those of `cells` that are to run; `rerun` is None, ``failed``, ``changed`` or ``all``."""
    wanted = OPEN | FAILED if rerun == "failed" else OPEN
    chosen = [c for c in cells if c.status in wanted]
    if rerun == "all":
        chosen = [c for c in cells if c.status != "not_applicable"]
    if rerun == "changed":
        chosen = [c for c in cells if c.status in wanted or c.stale]
    if only_teachers:
        teachers = {teacher for cell in cells for teacher in cell.after}
        return [c for c in chosen if c.id in teachers]
    ids = {c.id for c in chosen}
    # a cell that failed for want of its teacher is open again once that teacher is
    for cell in cells:
        if cell.status in FAILED and cell.id not in ids and any(a in ids for a in cell.after):
            chosen.append(cell)
            ids.add(cell.id)
    return chosen


def still_open(plan: Plan, cells: Sequence[PlannedCell], registry: Registry) -> list[PlannedCell]:
    """Return `cells` without those that another run finished between the plan and the lease."""
    again = {c.id for c in cells if c.status not in OPEN}
    there = plan.run.cell_names()
    look_at([c for c in cells if c.status in OPEN and c.id in there], registry)
    return [c for c in cells if c.status in OPEN or c.id in again]
