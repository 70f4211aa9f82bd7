"""Which cells of a run go into one process: those that read the same batches, and ask the same teacher."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel

from kdbench.engine.cellspec import CellFile
from kdbench.hooks import Job

#: Most cells of a gang: the teacher's share of each shrinks with their number, the memory grows with it.
MOST = 8

#: What making batches of a stream costs beside a student's step; those of a resident set cost nearly nothing.
STREAM = 0.5

Wish = Literal["auto", "off"] | int


def gang_of(jobs: Sequence[Job]) -> Job:
    """Return the job that stands for several; a single one stands for itself."""
    if len(jobs) == 1:
        return jobs[0]
    limits = [j.timeout_s for j in jobs]
    after = dict.fromkeys(cell for j in jobs for cell in j.after)
    return replace(
        jobs[0],
        label=f"{len(jobs)} cells with {jobs[0].label}",
        after=tuple(after),
        timeout_s=None if None in limits else sum(t for t in limits if t is not None),
        cost=sum(j.cost for j in jobs),
        gang=tuple(jobs),
    )


def arrange(jobs: Sequence[Job], cells: Mapping[str, CellFile], wish: Wish, workers: int) -> list[Job]:
    """Return the jobs of a run, with gangs in place of cells that can share.

    Cells that others wait for (teachers) stay alone, so that nobody waits for a whole gang.

    Args:
        cells: what the cells are, by cell id.
        wish: ``off``, the most cells of a gang, or ``auto``: the size, up to :data:`MOST`, with which `workers`
            are done first, by the cells' expected costs.
    """
    limit = MOST if wish == "auto" else 1 if wish == "off" else wish
    if limit < 2:
        return list(jobs)
    waited_for = {cell for j in jobs for cell in j.after}
    alone = waited_for | {j.cell_id for j in jobs if _alone(cells[j.cell_id])}
    free = [j for j in jobs if j.cell_id not in alone]
    groups = _groups(free, cells)
    sizes = range(1, limit + 1) if wish == "auto" else [limit]
    plans = ([_job(part, cells) for group in groups for part in _parts(group, n)] for n in sizes)
    best = min(plans, key=lambda plan: _end(plan, workers))
    return [*(j for j in jobs if j.cell_id in alone), *best]


def told(arranged: Sequence[Job], total: int) -> str | None:
    """Return a line on what of a run's `total` cells shares, or None where nothing does."""
    sizes = [len(j.gang) for j in arranged if j.gang]
    if not sizes:
        return None
    gangs = "1 gang" if len(sizes) == 1 else f"{len(sizes)} gangs"
    return f"{sum(sizes)} of {total} cells share batches and teacher, in {gangs}"


def compiled(cells: Iterable[CellFile]) -> str | None:
    """Return a line on the cells that run alone because they compile, or None where none does."""
    count = sum(not cell.only_speed and cell.recipe.compile != "none" for cell in cells)
    if not count:
        return None
    return f"{count} cell(s) compile, so each runs in a process of its own"


def _alone(cell: CellFile) -> bool:
    """Return whether a cell has nothing to share, or would not be what it is alone."""
    # a compiler makes other code, with other last bits, of a teacher that is read at more places
    return cell.only_speed or cell.recipe.compile != "none"


def _groups(jobs: Sequence[Job], cells: Mapping[str, CellFile]) -> list[list[Job]]:
    """Return the jobs by what they share: data, recipe and seed, and the first teacher.

    Cells without a teacher share no more than batches. They join a group with the same data where batches are
    costly to make, as those of a stream are; elsewhere they had better not wait for the group's teacher.
    """
    by_data: dict[str, dict[str, list[Job]]] = {}
    text = _Texts()
    for job in jobs:
        cell = cells[job.cell_id]
        # who reads its teacher from a table asks it rarely or never
        asks = cell.teachers and cell.teacher_cache is None
        teacher = text.of(cell.teachers[0]) if asks else ""
        by_data.setdefault(_data(cell, text), {}).setdefault(teacher, []).append(job)
    out: list[list[Job]] = []
    for teachers in by_data.values():
        without = teachers.pop("", [])
        if not without or cells[without[0].cell_id].dataset.storage != "stream":
            out += [[job] for job in without]
        elif teachers:
            smallest = min(teachers.values(), key=len)
            smallest += without
        else:
            out.append(without)
        out += teachers.values()
    return out


class _Texts:
    """Texts of models; cells have them in common, so each is written once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseModel, str]] = {}

    def of(self, model: BaseModel, leave: str = "") -> str:
        if id(model) not in self._known:
            self._known[id(model)] = model, _text(model.model_dump(mode="json", exclude={leave}))
        return self._known[id(model)][1]


def _data(cell: CellFile, text: _Texts) -> str:
    data, recipe = text.of(cell.dataset, "label"), text.of(cell.recipe)
    return _text([cell.task, data, recipe, cell.seed, cell.trial, cell.device, cell.threads])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _parts(group: Sequence[Job], most: int) -> list[list[Job]]:
    """Cut a group into as few parts as can be, of nearly equal sizes."""
    count = -(-len(group) // most)
    ordered = sorted(group, key=lambda j: -j.cost)
    return [ordered[k::count] for k in range(count)]


def _job(part: Sequence[Job], cells: Mapping[str, CellFile]) -> Job:
    """Return the job of a part: it costs what its students do, and teachers and batches of one of them."""
    job = gang_of(part)
    if not job.gang:
        return job
    common = [j.cost * _common(cells[j.cell_id]) for j in part]
    return replace(job, cost=sum(j.cost for j in part) - sum(common) + max(common))


def _common(cell: CellFile) -> float:
    """Return the share of a cell's cost that one can bear for several, with a student's part as the unit."""
    units = len(cell.teachers) + (STREAM if cell.dataset.storage == "stream" else 0.0)
    return units / (1.0 + units)


def _end(jobs: Sequence[Job], workers: int) -> float:
    """Return when `workers` are done with the jobs, the longest first."""
    ends = [0.0] * max(1, workers)
    for job in sorted(jobs, key=lambda j: -j.cost):
        heapq.heappush(ends, heapq.heappop(ends) + job.cost)
    return max(ends)
