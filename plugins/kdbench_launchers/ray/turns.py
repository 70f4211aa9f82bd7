"""Which cell is next: those whose teachers are done, what the longest chains wait for first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from graphlib import TopologicalSorter

from kdbench.api import Job


class Turns:
    """The cells that have not begun.

    A teacher that is neither done nor among the jobs failed in an earlier run.
    """

    def __init__(self, jobs: Sequence[Job], cost: Callable[[Job], float]) -> None:
        self._jobs = {job.cell_id: job for job in jobs}
        self._waits = {job.cell_id: {a for a in job.after if a in self._jobs} for job in jobs}
        self._learners: dict[str, list[str]] = {}
        for cell, teachers in self._waits.items():
            for teacher in teachers:
                self._learners.setdefault(teacher, []).append(cell)
        self._bad = {a for job in jobs for a in job.after} - set(self._jobs)
        self._cut: set[str] = set()
        chains = self._chains(cost)
        self._ranks = {cell: (-chains[cell], k) for k, cell in enumerate(self._jobs)}
        self._ready: list[tuple[tuple[float, int], str]] = []
        self._lost = [job.cell_id for job in jobs if self._bad.intersection(job.after)]
        for cell in self._waits:
            self._offer(cell)

    def next(self) -> Job | None:
        """Take the cell that is next, None where all others wait for one that runs."""
        return self._jobs.pop(heapq.heappop(self._ready)[1]) if self._ready else None

    def again(self, job: Job) -> None:
        """Put a cell back that was taken."""
        self._jobs[job.cell_id] = job
        heapq.heappush(self._ready, (self._ranks[job.cell_id], job.cell_id))

    def ended(self, cell: str, done: bool, cut: bool) -> None:
        """Take note of how a cell ended; `cut`: a later run goes on with it."""
        for learner in self._learners.get(cell, ()):
            self._waits[learner].discard(cell)
            if done:
                self._offer(learner)
            elif learner in self._jobs:
                self._lost.append(learner)
        if not done:
            self._bad.add(cell)
            self._cut |= {cell} if cut else set()

    def orphans(self) -> Iterator[tuple[Job, str, str]]:
        """Take out the cells whose teachers did not finish, with the status of each and the reason."""
        while self._lost:
            job = self._jobs.pop(self._lost.pop(0), None)
            if job is None:
                continue
            teacher = next(a for a in job.after if a in self._bad)
            cut = teacher in self._cut
            self.ended(job.cell_id, False, cut)
            told = f"its teacher cell {teacher[:12]} {'was interrupted' if cut else 'did not finish'}"
            yield job, "interrupted" if cut else "failed", told

    def clear(self) -> None:
        """Begin nothing more."""
        self._jobs.clear()
        self._ready.clear()
        self._lost.clear()

    def _offer(self, cell: str) -> None:
        job = self._jobs.get(cell)
        if job is not None and not self._waits[cell] and not self._bad.intersection(job.after):
            heapq.heappush(self._ready, (self._ranks[cell], cell))

    def _chains(self, cost: Callable[[Job], float]) -> dict[str, float]:
        chains: dict[str, float] = {}
        for cell in TopologicalSorter({c: self._learners.get(c, ()) for c in self._jobs}).static_order():
            longest = max((chains[c] for c in self._learners.get(cell, ())), default=0.0)
            chains[cell] = cost(self._jobs[cell]) + longest
        return chains
