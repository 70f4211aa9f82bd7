"""The forecast of a run under way: which job next, and how long until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdbench.hooks import Job
from kdbench.launch.forecast import Forecast
from kdbench.launch.schedule import finish, members

#: The time left is worked out again after this many times of what that took.
_PAUSE = 50


class Outlook:
    """Follows the events of a run. Times are of `clock`, in seconds."""

    def __init__(self, forecast: Forecast, clock: Callable[[], float] = time.monotonic) -> None:
        self.forecast, self._workers, self._clock = forecast, 1, clock
        self._jobs: dict[str, Job] = {}
        self._began: dict[str, float] = {}
        self._open: set[str] = set()
        self._latest: float | None = None
        self._stale, self._again_at, self._at = True, 0.0, 0.0

    def plan(self, jobs: Sequence[Job], workers: int) -> None:
        """Take in the jobs of the run, all of them, and how many run at a time."""
        self._jobs = {job.cell_id: job for job in jobs}
        self._open = {cell.cell_id for job in jobs for cell in members(job)}
        self._workers = workers
        self._stale = True

    def see(self, event: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        """Take in an event of the launcher, with the cell's record where it left one."""
        cell, kind = event["cell_id"], event["event"]
        self._stale = True
        if kind == "started":
            self._began[cell] = self._clock()
            self.forecast.lost(cell)
        elif kind == "epoch":
            self.forecast.epoch(cell, event["row"])
        elif kind == "released":
            self._began.pop(cell, None)
            self.forecast.lost(cell)
        elif kind in ("finished", "died", "interrupted"):
            began = self._began.pop(cell, None)
            self.forecast.ended(cell, record or {}, None if began is None else self._clock() - began)
            self._open.discard(cell)

    def cost(self, job: Job) -> float:
        """Return the expected seconds of a job, or while they are unknown a number that grows with them.

        A gang costs its cells, less the share that it saved of their costs when it was put together.
        """
        return _saved(job) * sum(self.forecast.cost(cell.cell_id) for cell in members(job))

    def left(self) -> float | None:
        """Return the seconds until all jobs are done; None while nothing is known of any cell."""
        now = self._clock()
        if self._jobs and not self._open:
            return 0.0
        if not self.forecast.knows:
            return None
        if self._latest is None or (self._stale and now >= self._again_at):
            self._latest, self._at = self._work_out(now), now
            took = self._clock() - now
            self._stale, self._again_at = False, now + _PAUSE * took
        return max(0.0, self._latest - (now - self._at))

    def _work_out(self, now: float) -> float:
        jobs = [job for job in self._jobs.values() if any(c.cell_id in self._open for c in members(job))]
        running: dict[str, float] = {}
        for job in jobs:
            on = [c.cell_id for c in members(job) if c.cell_id in self._began]
            if on:
                lefts = [self.forecast.left(c, now - self._began[c]) for c in on]
                running[job.cell_id] = _saved(job) * sum(left for left in lefts if left is not None)
        return finish(jobs, running, self._workers, self.cost)


def _saved(job: Job) -> float:
    """Return the cost of a job as a share of its cells' costs one after another."""
    apart = sum(cell.cost for cell in members(job))
    return job.cost / apart if len(members(job)) > 1 and apart else 1.0
