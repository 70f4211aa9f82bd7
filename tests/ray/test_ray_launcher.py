"""What the launcher makes of how tasks end; Ray itself is in test_ray_cluster.py."""

import errno
import os
import signal
from contextlib import contextmanager

import pytest

from kdbench.api import Job, KdbenchError
from kdbench_launchers.ray import launcher as module
from kdbench_launchers.ray.cluster import Ended
from kdbench_launchers.ray.launcher import RayLauncher

TEACHER, STUDENT, OTHER = ("1" * 64, "2" * 64, "3" * 64)


class FakeCluster:
    """A cluster whose tasks end as a test says: by cell, what is to become of each try."""

    def __init__(self):
        self.local, self.plan, self.sent, self.cancelled = False, {}, [], []
        self.on_wait = lambda: None

    def submit(self, name, cell, events, cwd, resources):
        self.sent.append(cell.cell_id)
        return len(self.sent) - 1, cell, events

    def ended(self, tasks, timeout_s):
        self.on_wait()
        return [t for t in tasks if self.plan.get(t[1].cell_id)]

    def how(self, task):
        step = self.plan[task[1].cell_id].pop(0)
        return step(*task[1:]) if callable(step) else step

    def cancel(self, task, force):
        self.cancelled.append((task[1].cell_id, force))

    def nodes(self):
        return [{"CPU": 2.0}]


def started(events, cell):
    with events.open("a") as f:
        f.write(f'{{"event": "started", "cell_id": "{cell.cell_id}"}}\n')


def ends(code=0, status="done", late=False, kind="ended"):
    """Return how a task ends whose cell leaves a record of this status, or none."""

    def end(cell, events):
        started(events, cell)
        if status:
            (cell.folder / "result.json").write_text(f'{{"status": "{status}"}}')
        event = {"event": kind, "cell_id": cell.cell_id, "code": code, "late": late, "host": "there"}
        return Ended(event={**event, "recorded": bool(status)})

    return end


def lost(cell, events):
    started(events, cell)
    return Ended(lost="its node died")


@pytest.fixture
def ray(monkeypatch, tmp_path):
    class Ray(FakeCluster):
        def __init__(self):
            super().__init__()
            self.run, self.told, self.stops = tmp_path / "runs" / "m", [], 0
            self.jobs = [self.job(TEACHER), self.job(STUDENT, (TEACHER,)), self.job(OTHER, timeout_s=3.0)]
            self.plan = {cell: [ends()] for cell in (TEACHER, STUDENT, OTHER)}

        def job(self, cell, after=(), **more):
            folder = self.run / "cells" / cell
            folder.mkdir(parents=True, exist_ok=True)
            return Job(cell, folder, f"cell {cell[0]}", after, method="kd", **more)

        def start(self, jobs=None, workers=5, **settings):
            settings = {"poll_s": 0.001, **settings}
            options = {"settings": settings, "run": self.run, "workers": workers, "methods": {"kd"}}
            RayLauncher(options).run(
                self.jobs if jobs is None else jobs, self.told.append, lambda: self.stops
            )

        def events(self):
            return [(e["event"], e["cell_id"][:1], e.get("status")) for e in self.told if "cell_id" in e]

        def notes(self):
            return [e["message"] for e in self.told if e["event"] == "note"]

    made = Ray()

    @contextmanager
    def connected(options):
        yield made

    monkeypatch.setattr(module, "connected", connected)
    return made


def test_students_are_handed_out_when_their_teachers_are_done(ray):
    ray.start()
    assert ray.sent == [TEACHER, OTHER, STUDENT]
    assert ("started", "2", None) in ray.events()
    assert [e for e in ray.events() if e[0] == "finished"] == [("finished", c, None) for c in "132"]
    assert not (ray.run / "ray").exists()
    assert ray.notes() == ["Ray: 1 node(s) with 2 CPU(s) and 0 GPU(s)"]


def test_no_more_than_workers_at_a_time(ray):
    busy = []
    ray.on_wait = lambda: busy.append(len(ray.sent) - sum(e[0] == "finished" for e in ray.events()))
    ray.start(workers=1)
    assert max(busy) == 1


def test_only_what_the_cluster_lost_is_handed_out_again(ray):
    ray.plan[TEACHER] = [lost, lost, ends()]
    ray.plan[STUDENT] = [ends(7, None)]
    ray.plan[OTHER] = [ends(1, "failed")]
    (ray.run / "cells" / STUDENT / "log.txt").write_text("last words\n")
    ray.start(max_retries=2)
    assert sorted(ray.sent) == [TEACHER] * 3 + [STUDENT, OTHER]
    assert ray.notes()[1:] == [
        "cell 1: its node died; it goes on elsewhere (1 more time(s) if need be)",
        "cell 1: its node died; it goes on elsewhere (0 more time(s) if need be)",
    ]
    (died,) = (e for e in ray.told if e["event"] == "died")
    assert died["status"] == "crashed"
    assert "code 7" in died["message"]
    assert "last words" in died["message"]
    assert ray.events().count(("started", "1", None)) == 3


def test_a_cell_that_is_lost_too_often_is_left_to_the_next_run_with_its_students(ray):
    ray.plan[TEACHER] = [lost, lost]
    ray.start(max_retries=1)
    assert ray.sent.count(TEACHER) == 2
    told = {e["cell_id"]: e for e in ray.told if e["event"] == "died"}
    assert told[TEACHER]["message"] == "its node died, as in 1 tries before; the same command resumes it"
    assert {e["status"] for e in told.values()} == {"interrupted"}
    assert told[STUDENT]["message"] == f"its teacher cell {TEACHER[:12]} was interrupted"


def test_a_record_that_was_written_before_its_node_died_holds(ray):
    def records(cell, events):
        ends()(cell, events)
        return Ended(lost="its node died")

    ray.plan[TEACHER] = [records]
    ray.start()
    assert ray.sent.count(TEACHER) == 1
    assert ("finished", "2", None) in ray.events()


def test_a_record_from_before_says_nothing_of_a_cell_that_runs_again(ray):
    (ray.run / "cells" / TEACHER / "result.json").write_text('{"status": "done"}')
    ray.plan[TEACHER] = [lost, ends()]
    ray.start()
    assert ray.sent.count(TEACHER) == 2


@pytest.mark.parametrize(
    ("ending", "status", "student"),
    [
        (ends(-signal.SIGKILL, None, late=True), "timeout", "failed"),
        (ends(-signal.SIGKILL, None), "interrupted", "interrupted"),
        (ends(-signal.SIGSEGV, None), "crashed", "failed"),
        (ends(-signal.SIGSEGV, "done"), None, None),
    ],
)
def test_how_a_cell_died_and_what_becomes_of_its_student(ray, ending, status, student):
    ray.jobs[0] = ray.job(TEACHER, timeout_s=3.0)
    ray.plan[TEACHER] = [ending]
    ray.start(ray.jobs[:2])
    told = {e["cell_id"]: e["status"] for e in ray.told if e["event"] == "died"}
    assert told.get(TEACHER) == status
    assert told.get(STUDENT) == student


def test_a_record_may_be_seen_late(ray, monkeypatch):
    """A shared folder shows files late; nothing is told before, and other cells go on."""
    path = ray.run / "cells" / TEACHER / "result.json"

    def end(cell, events):
        ended = ends()(cell, events)
        path.rename(path.with_suffix(".hidden"))
        return ended

    waits = []

    def wait():
        waits.append(1)
        if ("finished", "3", None) in ray.events() and not path.exists():
            path.with_suffix(".hidden").rename(path)

    ray.plan[TEACHER], ray.plan[OTHER] = [end], []
    ray.on_wait = lambda: (wait(), ray.plan.update({OTHER: [ends()]}) if len(waits) == 5 else None)
    # the pause between two looks while nothing runs
    monkeypatch.setattr(module.time, "sleep", lambda s: wait())
    ray.start()
    assert [e for e in ray.events() if e[0] in ("finished", "died")] == [("finished", c, None) for c in "312"]


def test_leaving_asks_what_runs_to_save_and_begins_nothing(ray):
    ray.plan[TEACHER], ray.plan[OTHER] = [], []

    def leave():
        ray.stops = 1
        if ray.cancelled:
            ray.plan[TEACHER] = [ends(130, None, kind="cut")]
            ray.plan[OTHER] = [Ended(cancelled=True)]  # it had not begun

    ray.on_wait = leave
    ray.start()
    assert ray.cancelled == [(TEACHER, False), (OTHER, False)]
    assert ray.events() == [("started", "1", None), ("interrupted", "1", None)]


def test_leaving_twice_kills(ray):
    ray.plan[TEACHER], ray.plan[OTHER] = [], []

    def leave():
        ray.stops += 1
        if len(ray.cancelled) > 2:
            ray.plan[TEACHER] = [lost]
            ray.plan[OTHER] = [Ended(cancelled=True)]

    ray.on_wait = leave
    ray.start()
    assert ray.cancelled[2:] == [(TEACHER, True), (OTHER, True)]
    assert ray.events() == [("started", "1", None), ("interrupted", "1", None)]


def test_leaving_does_not_wait_for_nodes_that_do_not_answer(ray, monkeypatch):
    monkeypatch.setattr(module, "_DYING_S", 0.0)
    ray.plan = {}
    ray.on_wait = lambda: setattr(ray, "stops", ray.stops + 1)
    ray.start()
    assert ray.events() == []


def test_a_node_without_space_ends_the_run(ray):
    ray.plan[TEACHER] = [ends(3, None, kind="cut")]
    ray.plan[OTHER] = []

    def save():
        if ray.cancelled:
            ray.plan[OTHER] = [ends(130, None, kind="cut")]

    ray.on_wait = save
    with pytest.raises(KdbenchError, match="there finds no space left there; finished cells are safe"):
        ray.start()
    assert ray.cancelled == [(OTHER, False)]
    assert [e for e in ray.events() if e[0] != "started"] == [("interrupted", c, None) for c in "13"]


def test_a_node_that_cannot_run_cells_ends_the_run(ray):
    ray.plan[TEACHER] = [Ended(error="a node cannot run cells: No module named 'kdbench'")]
    ray.jobs.pop()
    with pytest.raises(KdbenchError, match="a node cannot run cells: No module named 'kdbench'"):
        ray.start()
    assert ray.events() == []


def test_what_no_node_has_is_told(ray):
    ray.start(num_cpus=3, num_gpus=0.5)
    assert ray.notes()[1] == (
        "warning: no node has {CPU: 3, GPU: 0.5}, as cells of kd ask: they wait for one"
    )
    ray.local = True
    with pytest.raises(
        KdbenchError, match=r"cells of kd ask for \{CPU: 3\}, which this machine does not have"
    ):
        ray.start(num_cpus=3)


def test_a_file_server_that_does_not_answer(ray, monkeypatch):
    def stall(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(module, "read_events", stall)
    ray.start([ray.jobs[2]])
    assert [e["event"] for e in ray.told if e["event"] != "note"] == ["finished"]
