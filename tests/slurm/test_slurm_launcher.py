"""What the launcher makes of the files and the queue that it finds; Slurm itself is in test_slurm_cluster.py."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from kdbench.api import Job, KdbenchError
from kdbench_launchers.slurm import launcher as module
from kdbench_launchers.slurm.group import Cell, CellGroup, read_events
from kdbench_launchers.slurm.launcher import SlurmLauncher
from kdbench_launchers.slurm.submissions import Submission, fresh, open_submissions, unreported

TEACHER, STUDENT, OTHER = ("1" * 64, "2" * 64, "3" * 64)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A run folder of three cells, and a queue that a test fills in."""

    class Slurm:
        def __init__(self):
            self.run, self.sent, self.queue, self.told = tmp_path / "runs" / "m", [], {}, []
            self.stops = self.looks = 0
            self.on_look = lambda: None
            self.jobs = [self.job(TEACHER), self.job(STUDENT, (TEACHER,)), self.job(OTHER, timeout_s=3.0)]

        def job(self, cell, after=(), **more):
            folder = self.run / "cells" / cell
            folder.mkdir(parents=True, exist_ok=True)
            return Job(cell, folder, f"cell {cell[0]}", after, **more)

        def record(self, cell):
            (self.run / "cells" / cell / "result.json").write_text('{"status": "done"}')

        def note(self, submission, task, *events):
            with submission.events_path(task).open("a") as f:
                f.writelines(json.dumps(e) + "\n" for e in events)

        def look(self, names):
            self.looks += 1
            assert self.looks < 200, "nothing ends this"
            self.on_look()
            return None if self.queue is None else {n: self.queue[n] for n in names if n in self.queue}

        def sbatch(self, submission, work, parameters, timeouts):
            job_id = str(100 + len(self.sent))
            self.sent.append((submission, parameters))
            self.queue[submission.name] = (job_id, frozenset(range(len(work))))
            return job_id

        def start(self, jobs=None, **settings):
            options = {"settings": {"poll_s": 0.001, **settings}, "run": self.run, "workers": 5}
            jobs = self.jobs if jobs is None else jobs
            SlurmLauncher(options).run(jobs, self.told.append, lambda: self.stops)

        def events(self):
            return [(e["event"], e.get("cell_id", "")[:1], e.get("status")) for e in self.told]

    made = Slurm()
    monkeypatch.setattr(module, "look", made.look)
    monkeypatch.setattr(module, "_sbatch", made.sbatch)
    return made


def leave(slurm):
    """Submit everything, and leave before anything happens."""
    looks = iter(range(9))

    def stop():
        if next(looks) == 1:
            slurm.stops = 1

    slurm.on_look = stop
    slurm.start()
    slurm.on_look, slurm.stops = (lambda: None), 0
    slurm.told.clear()
    first, second = (submission for submission, _ in slurm.sent)
    return first, second


def test_students_wait_for_the_jobs_of_their_teachers(slurm):
    leave(slurm)
    (first, plain), (second, waits) = slurm.sent
    assert "dependency" not in plain
    assert first.groups == [[TEACHER], [OTHER]]
    assert second.groups == [[STUDENT]]
    assert waits["dependency"] == "afterany:100_0"
    assert (plain["array_parallelism"], waits["array_parallelism"]) == (2, 1)
    assert [p["job_name"] for _, p in slurm.sent] == [first.name, second.name]


def test_a_second_start_submits_nothing_and_tells_what_ended(slurm):
    first, second = leave(slurm)
    slurm.record(TEACHER)
    slurm.note(
        first, 0, {"event": "started", "cell_id": TEACHER}, {"event": "ended", "cell_id": TEACHER, "code": 0}
    )
    slurm.note(first, 1, {"event": "ended", "cell_id": OTHER, "code": 7, "late": False})
    slurm.queue[first.name] = ("100", frozenset())

    def end():
        if not read_events(second.events_path(0)) and len(slurm.told) > 2:
            slurm.record(STUDENT)
            slurm.note(second, 0, {"event": "ended", "cell_id": STUDENT, "code": 0})

    slurm.on_look = end
    assert unreported(slurm.run)
    slurm.start(slurm.jobs[1:])  # the teacher's record says that it is done
    assert len(slurm.sent) == 2
    assert slurm.events() == [
        ("found", "1", None),
        ("note", "", None),
        ("died", "3", "crashed"),
        ("finished", "2", None),
    ]
    assert open_submissions(slurm.run) == []
    assert not unreported(slurm.run)
    slurm.told.clear()
    slurm.start([slurm.jobs[2]] if slurm.queue.clear() else [])
    assert slurm.told == []


def test_a_cell_that_runs_again_is_submitted_again(slurm):
    """A record put aside for ``--rerun failed`` leaves an ending that no longer holds."""
    first, _ = leave(slurm)
    slurm.note(first, 1, {"event": "ended", "cell_id": OTHER, "code": 1, "late": False})
    slurm.stops = 1
    slurm.start([slurm.jobs[2]])
    assert len(slurm.sent) == 2
    slurm.stops = 0
    slurm.queue[first.name] = ("100", frozenset({0}))
    slurm.on_look = lambda: setattr(slurm, "stops", len(slurm.sent) - 2)
    slurm.start([slurm.jobs[2]])
    assert slurm.sent[2][0].groups == [[OTHER]]


def test_jobs_that_end_without_a_word(slurm):
    first, second = leave(slurm)
    slurm.note(
        first, 0, {"event": "started", "cell_id": TEACHER}, {"event": "cut", "cell_id": TEACHER, "code": 130}
    )
    slurm.record(OTHER)
    looks = []

    def vanish():
        looks.append(1)
        if len(looks) > 1:
            slurm.queue.clear()

    slurm.on_look = vanish
    slurm.start()
    assert slurm.events() == [
        ("note", "", None),
        ("started", "1", None),
        ("interrupted", "1", None),
        ("finished", "3", None),
        ("note", "", None),
    ]
    assert second.task_id(0) in slurm.told[-1]["message"]


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        ({"code": None, "teacher": TEACHER}, "failed", f"its teacher cell {TEACHER[:12]} did not finish"),
        ({"code": -9, "late": True}, "timeout", "stopped after the limit of 3 s"),
        ({"code": -9, "late": False}, "interrupted", "the worker was killed by SIGKILL"),
        ({"code": -11, "late": False}, "crashed", "the worker was killed by SIGSEGV"),
        ({"code": 7, "late": False}, "crashed", "and left no record; its log ends:\nlast words"),
    ],
)
def test_how_a_cell_died(slurm, ending, status, message):
    (slurm.run / "cells" / OTHER / "log.txt").write_text("last words\n")

    def die():
        if slurm.sent:
            slurm.note(slurm.sent[0][0], 0, {"event": "ended", "cell_id": OTHER, **ending})

    slurm.on_look = die
    slurm.start([slurm.jobs[2]])
    assert slurm.told[-1]["status"] == status
    assert message in slurm.told[-1]["message"]


def test_epochs_are_told_once(slurm):
    curves = slurm.run / "cells" / OTHER / "curves.jsonl"
    curves.write_text('{"epoch": 1}\n')  # of an earlier attempt
    steps = iter(['{"epoch": 2}\n{"epo', 'ch": 3}\n', None])

    def go():
        if not slurm.sent:
            return
        submission = slurm.sent[0][0]
        if not read_events(submission.events_path(0)):
            slurm.note(submission, 0, {"event": "started", "cell_id": OTHER})
        if (step := next(steps)) is None:
            slurm.record(OTHER)
            slurm.note(submission, 0, {"event": "ended", "cell_id": OTHER, "code": 0})
            return
        with curves.open("a") as f:
            f.write(step)

    slurm.on_look = go
    slurm.start([slurm.jobs[2]])
    assert [e["row"]["epoch"] for e in slurm.told if e["event"] == "epoch"] == [2, 3]
    assert slurm.events()[-1] == ("finished", "3", None)


def test_slurm_that_does_not_answer(slurm):
    """In mid-run it is waited for; at the start nobody could tell what is submitted already."""

    def out():
        if 2 <= slurm.looks < 6:
            slurm.queue = None
        elif slurm.looks >= 6:
            assert slurm.told == []
            slurm.record(OTHER)
            slurm.queue = {}

    slurm.on_look = out
    slurm.start([slurm.jobs[2]])
    assert slurm.looks == 7
    assert slurm.events() == [("finished", "3", None)]
    slurm.on_look, slurm.queue = (lambda: None), None
    fresh(slurm.run, [[OTHER]])
    with pytest.raises(KdbenchError, match="squeue does not answer"):
        slurm.start([slurm.jobs[2]])


def test_a_file_server_that_does_not_answer(slurm, monkeypatch):
    """Events that cannot be read in mid-run are read later."""
    real = Submission.events

    def events(self, task):
        if slurm.looks < 4:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        slurm.record(OTHER)
        slurm.note(self, task, {"event": "ended", "cell_id": OTHER, "code": 0})
        return real(self, task)

    monkeypatch.setattr(Submission, "events", events)
    slurm.start([slurm.jobs[2]])
    assert slurm.events() == [("finished", "3", None)]


def test_a_submission_that_the_file_system_does_not_give_is_not_made_twice(slurm, monkeypatch):
    leave(slurm)
    real = Path.read_text

    def stall(path, *more, **how):
        if path.name == "submission.json":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *more, **how)

    monkeypatch.setattr(Path, "read_text", stall)
    slurm.stops = 0
    slurm.on_look = lambda: setattr(slurm, "stops", 1)
    with pytest.raises(KdbenchError, match="Stale file handle, so nobody knows which jobs run"):
        slurm.start()
    assert len(slurm.sent) == 2


def test_submission_that_slurm_refuses(tmp_path, monkeypatch, capsys):
    """The one line is the last of Slurm's, and the next start is not misled."""
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        lines = ["sbatch: error: trying", "sbatch: error: invalid partition specified: gqu"]
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines) + "exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(module, "look", lambda names: {})
    run = tmp_path / "runs" / "m"
    folder = run / "cells" / OTHER
    folder.mkdir(parents=True)
    launcher = SlurmLauncher({"run": run, "settings": {"partition": "gqu"}})
    with pytest.raises(KdbenchError, match=r"^Slurm took no job: .*invalid partition specified: gqu$"):
        launcher.run([Job(OTHER, folder, "cell")], lambda event: None, lambda: 0)
    assert capsys.readouterr().err == ""
    assert open_submissions(run) == []


def test_group_leaves_out_what_ended_and_what_has_no_teacher(tmp_path):
    events = tmp_path / "task-0.jsonl"
    events.write_text(json.dumps({"event": "ended", "cell_id": OTHER, "code": 0}) + '\n{"event": "sta')
    events.write_text(events.read_text() + "\n")
    missing = tmp_path / "cells" / TEACHER
    cells = [Cell(OTHER, tmp_path / OTHER), Cell(STUDENT, tmp_path / STUDENT, (missing,))]
    before = signal.getsignal(signal.SIGTERM)
    try:
        CellGroup(cells, events, 90)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [(e["event"], e["cell_id"], e.get("teacher")) for e in read_events(events)] == [
        ("ended", OTHER, None),
        ("ended", STUDENT, TEACHER),
    ]
