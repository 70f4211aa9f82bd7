"""The time left of a run, from its events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.hooks import Job
from kdbench.launch.forecast import Forecast, Size
from kdbench.launch.outlook import Outlook


def size(method: str, teachers: int = 1, macs: float = 1e6) -> Size:
    pair = "teacher->student" if teachers else "teacher"
    return Size(method, "{}", pair, "digits", "64", epochs=10, images=100, macs=macs, teachers=teachers)


SIZES = {
    "teacher": size("vanilla", 0, 2e6),
    "kd": size("kd"),
    "at": size("at"),
    "dkd": size("dkd"),
}
RECORD = {
    "status": "done",
    "cost": {"train_s": 20.0, "eval_s": 0.0, "setup_s": 0.0, "log_s": 0.0, "peak_memory_mb": 1.0},
}


class Run:
    def __init__(self, workers: int = 1) -> None:
        self.now = 0.0
        self.outlook = Outlook(Forecast(SIZES), clock=lambda: self.now)
        self.jobs = [self.job("teacher"), *(self.job(m, "teacher") for m in ("kd", "at", "dkd"))]
        self.outlook.plan(self.jobs, workers)

    def job(self, cell: str, *after: str, **more: Any) -> Job:
        cost = self.outlook.forecast.cost(cell)
        return Job(cell_id=cell, folder=Path(cell), label=cell, after=after, cost=cost, **more)

    def see(self, kind: str, cell: str, at: float, record: Any = None, **more: Any) -> float | None:
        self.now = at
        self.outlook.see({"event": kind, "cell_id": cell, **more}, record)
        return self.outlook.left()


def test_unknown_before_the_first_epoch() -> None:
    run = Run()
    assert run.outlook.left() is None
    assert run.see("started", "teacher", 1.0) is None
    # a teacher epoch of 2 s: its other nine, and by operations half as much for each student
    left = run.see("epoch", "teacher", 3.0, row={"train_s": 2.0, "step_ms": 1.0})
    assert left == pytest.approx(18.0 + 3 * 10.0)


def test_nothing_is_left_of_cells_that_train_nothing() -> None:
    run = Run()
    for cell in SIZES:
        assert run.outlook.left() is None
        left = run.see("finished", cell, 1.0, {"status": "done", "cost": None})
    assert left == 0.0


def test_the_time_left_shrinks_between_events_and_with_the_cells() -> None:
    run = Run(workers=2)
    run.see("started", "teacher", 0.0)
    left = run.see("finished", "teacher", 20.0, RECORD)
    assert left == pytest.approx(20.0)  # two students, then the third, 10 s each
    run.now = 24.0
    assert run.outlook.left() == pytest.approx(16.0)
    run.see("started", "kd", 24.0)
    run.see("started", "at", 24.0)
    run.see("interrupted", "kd", 25.0)
    run.see("finished", "at", 26.0, RECORD)
    assert run.see("died", "dkd", 27.0, {"status": "failed"}) == 0.0


def test_a_cell_that_ran_slower_than_forecast_never_makes_it_negative() -> None:
    run = Run()
    run.see("started", "teacher", 0.0)
    run.see("finished", "teacher", 20.0, RECORD)
    for cell in ("at", "dkd"):
        run.see("finished", cell, 20.0, {"status": "failed"})
    run.see("started", "kd", 20.0)
    run.now = 500.0
    assert run.outlook.left() == 0.0


def test_costs_of_jobs_follow_what_is_seen() -> None:
    run = Run()
    run.see("started", "kd", 0.0)
    before = run.outlook.cost(run.jobs[1])
    run.see("epoch", "kd", 3.0, row={"train_s": 7.0, "step_ms": 1.0})
    assert before == pytest.approx(1e9)  # operations, while no seconds are known
    assert run.outlook.cost(run.jobs[1]) == pytest.approx(70.0)


def test_a_gang_costs_its_cells_less_what_they_share() -> None:
    run = Run()
    members = tuple(run.job(m, "teacher") for m in ("kd", "at"))
    cost = 0.75 * sum(m.cost for m in members)
    gang = Job(
        cell_id="kd",
        folder=Path("kd"),
        label="gang",
        after=("teacher",),
        cost=cost,
        gang=members,
    )
    run.outlook.plan([run.jobs[0], gang], 1)
    run.see("started", "teacher", 0.0)
    assert run.see("finished", "teacher", 20.0, RECORD) == pytest.approx(0.75 * 20.0)
    run.see("started", "kd", 20.0)
    run.see("started", "at", 20.0)
    row = {"train_s": 1.0, "step_ms": 1.0}
    run.see("epoch", "kd", 22.0, row=row)
    left = run.see("epoch", "at", 22.0, row=row)
    assert left == pytest.approx(0.75 * 18.0)
    # one leaves it to go on alone: it starts again
    assert run.see("released", "at", 22.0) == pytest.approx(0.75 * 9.0)
