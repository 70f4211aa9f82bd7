"""In which order cells start, and when the last of them will be done. Pure functions of costs; no torch."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter

from kdbench.hooks import Job

#: Gives the expected seconds (or relative costs) of a job.
Cost = Callable[[Job], float]


def ordered(jobs: Sequence[Job], cost: Cost = lambda job: job.cost) -> list[Job]:
    """Return the jobs as they should start: what the longest chains wait for first, then the longest.

    Equal ones stay in their order. A job that waits for another comes after it, if costs are not negative.
    """
    chains = chain_costs(jobs, cost)
    return sorted(jobs, key=lambda job: -chains[job.cell_id])


class Order:
    """Keeps jobs in the order of :func:`ordered` while their costs become known better.

    With many jobs it sorts seldom: at most a fiftieth of the time goes into it.
    """

    def __init__(self, cost: Cost, clock: Callable[[], float] = time.monotonic) -> None:
        self._cost, self._clock, self._again_at = cost, clock, 0.0

    def renew(self, jobs: list[Job]) -> None:
        """Sort `jobs` in place, if it is time to."""
        began = self._clock()
        if began >= self._again_at:
            jobs[:] = ordered(jobs, self._cost)
            ended = self._clock()
            self._again_at = ended + 50 * (ended - began)


def chain_costs(jobs: Sequence[Job], cost: Cost = lambda job: job.cost) -> dict[str, float]:
    """Return for each job (by its cell id) its cost with that of the longest chain of jobs that wait for it."""
    by_id = {job.cell_id: job for job in jobs}
    followers = _followers(jobs)
    chains: dict[str, float] = {}
    # followers come before what they wait for
    for cell in TopologicalSorter(followers).static_order():
        longest = max((chains[f] for f in followers.get(cell, ())), default=0.0)
        chains[cell] = cost(by_id[cell]) + longest
    return chains


def finish(
    jobs: Sequence[Job],
    running: Mapping[str, float],
    workers: int,
    cost: Cost = lambda job: job.cost,
) -> float:
    """Return in how many seconds the last job ends, if they start as the local launcher starts them.

    Args:
        jobs: all that are not done, those that run included. What a job waits for and is not here is done.
        running: seconds that are left of the jobs that run, by cell id.
        workers: jobs at a time.
    """
    followers = _followers(jobs)
    blockers = dict.fromkeys((job.cell_id for job in jobs), 0)
    for waiting in followers.values():
        for cell in waiting:
            blockers[cell] += 1
    order = {job.cell_id: k for k, job in enumerate(ordered(jobs, cost))}
    by_id = {job.cell_id: job for job in jobs}
    ready = [(order[c], c) for c, n in blockers.items() if not n and c not in running]
    heapq.heapify(ready)
    ends = [(left, cell) for cell, left in running.items() if cell in by_id]
    heapq.heapify(ends)
    now = 0.0
    while ready or ends:
        while ready and len(ends) < max(1, workers):
            _, cell = heapq.heappop(ready)
            heapq.heappush(ends, (now + cost(by_id[cell]), cell))
        now, cell = heapq.heappop(ends)
        for follower in followers.get(cell, ()):
            blockers[follower] -= 1
            if not blockers[follower] and follower not in running:
                heapq.heappush(ready, (order[follower], follower))
    return now


def _followers(jobs: Sequence[Job]) -> dict[str, set[str]]:
    """Return the jobs that wait for each job, by cell id; a gang stands under that of its first cell."""
    owner = {member.cell_id: job.cell_id for job in jobs for member in members(job)}
    out: dict[str, set[str]] = {job.cell_id: set() for job in jobs}
    for job in jobs:
        for cell in job.after:
            if cell in owner and owner[cell] != job.cell_id:
                out[owner[cell]].add(job.cell_id)
    return out


def members(job: Job) -> Sequence[Job]:
    """Return the cells of a job: those of its gang, or itself."""
    gang: Sequence[Job] = getattr(job, "gang", ())
    return gang or (job,)
