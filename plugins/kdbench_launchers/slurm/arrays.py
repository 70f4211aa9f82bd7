"""Which jobs share an array, and which cells share a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kdbench.api import Job
from kdbench_launchers.slurm.options import Options, Resources

#: Most tasks of one array; Slurm's own default is 1001.
MOST_TASKS = 1000


@dataclass(frozen=True)
class Array:
    """Jobs that ask for the same and that nothing in the array waits for; one group is one task."""

    resources: Resources
    groups: tuple[tuple[Job, ...], ...]


def arrays(jobs: Sequence[Job], options: Options, cost: Callable[[Job], float]) -> Iterator[Array]:
    """Yield the arrays that run these jobs, teachers before those who learn from them."""
    classes: dict[tuple[int, str], tuple[Resources, list[Job]]] = {}
    levels = _levels(jobs)
    asked: dict[str, Resources] = {}
    for job in jobs:
        resources = asked.setdefault(job.method, options.of(job.method))
        key = (levels[job.cell_id], resources.model_dump_json())
        classes.setdefault(key, (resources, []))[1].append(job)
    for key in sorted(classes, key=lambda k: k[0]):
        resources, members = classes[key]
        groups = grouped(members, resources.cells_per_job, cost)
        for start in range(0, len(groups), MOST_TASKS):
            yield Array(resources, tuple(groups[start : start + MOST_TASKS]))


def grouped(jobs: Sequence[Job], size: int, cost: Callable[[Job], float]) -> list[tuple[Job, ...]]:
    """Deal the jobs out to as few groups of at most `size` as there can be, of about equal cost."""
    dearest = sorted(jobs, key=cost, reverse=True)
    count = math.ceil(len(dearest) / size)
    return [tuple(dearest[i::count]) for i in range(count)]


def _levels(jobs: Sequence[Job]) -> dict[str, int]:
    by_id, levels = {job.cell_id: job for job in jobs}, dict[str, int]()

    def level(cell: str) -> int:
        if cell not in levels:
            before = [a for a in by_id[cell].after if a in by_id]
            levels[cell] = 1 + max(map(level, before), default=-1)
        return levels[cell]

    for job in jobs:
        level(job.cell_id)
    return levels
