"""The local launcher with worker processes that do as they are told instead of training."""

import faulthandler
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError
from kdbench.hooks import Job
from kdbench.launch import local
from kdbench.launch.local import LocalLauncher
from kdbench.launch.peers import PROCESSES
from kdbench.launch.worker import WorkerHooks


def act(folder, connection, environment, life=None):
    """Stand in for `kdbench.launch.worker.child`: do what the folder's ``act`` file says."""
    os.setsid()
    faulthandler.disable()  # the segfault is meant
    with open(f"{folder}/act") as f:
        word = f.read()
    cell = os.path.basename(folder)
    connection.send({"event": "started", "cell_id": cell, "environment": dict(environment)})
    with open(f"{folder}/began", "w") as f:
        f.write(repr(time.monotonic()))
    if word == "done":
        connection.send({"event": "epoch", "cell_id": cell, "row": {"epoch": 1}})
    if word == "fail":
        with open(f"{folder}/result.json", "w") as f:
            json.dump({"status": "failed"}, f)
        os._exit(1)
    if word == "exit":
        with open(f"{folder}/log.txt", "w") as f:
            f.write("last words\n")
        os._exit(9)
    if word in ("killed", "segfault"):
        os.kill(os.getpid(), signal.SIGKILL if word == "killed" else signal.SIGSEGV)
    if word == "hang":
        time.sleep(60)
    if word == "polite":
        assert connection.recv() == "stop"
        os._exit(130)
    if word == "full":
        connection.send({"event": "no_space", "cell_id": cell, "message": "x: No space left on device"})
        os._exit(3)
    if word in ("oom", "epochs"):
        again = os.path.exists(f"{folder}/previous")
        gpu = {"memory_mb": 100.0, "free_mb": 9000.0, "busy": None}
        row = {"epoch": 1, "train_s": 0.1, "images_per_s": 10.0, "step_ms": 1.0, "steps": 1}
        beside = os.path.dirname(folder)
        while not again:
            connection.send({"event": "epoch", "cell_id": cell, "row": row, "gpu": gpu})
            time.sleep(0.02)
            # until another cell has come beside it, and had time to see this one
            others = [c for c in os.listdir(beside) if c != cell and os.path.exists(f"{beside}/{c}/began")]
            if word == "epochs" and any(os.path.exists(f"{beside}/{c}/previous") for c in others):
                time.sleep(0.5)
                break
            if word == "oom" and others:
                with open(f"{folder}/result.json", "w") as f:
                    json.dump({"schema_version": 1, "cell_id": "0" * 64, "status": "oom"}, f)
                os._exit(1)
    if word == "slow":
        time.sleep(0.5)
    if word in ("trains", "measures"):
        turns = WorkerHooks(Path(folder), "cpu", cell, connection.send, threading.Event())
        if word == "trains":
            turns.gate()
            open(f"{folder}/training", "w").close()
            time.sleep(60)
        while not list(Path(folder).parent.glob("*/training")):
            time.sleep(0.01)
        with turns.alone():
            pass
    if word != "leave":
        open(f"{folder}/result.json", "w").close()
    os._exit(0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run jobs given as {cell: (act, Job arguments)} and return the events."""
    monkeypatch.setattr(local, "context", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "child", act)

    def go(cells, *, workers=1, gpus=0, stop=lambda: 0, **options):
        jobs = []
        for cell, (word, more) in cells.items():
            folder = tmp_path / cell
            folder.mkdir()
            (folder / "act").write_text(word)
            jobs.append(Job(cell_id=cell, folder=folder, label=cell, **more))
        events = go.events = []
        LocalLauncher({"workers": workers, "gpus": gpus, **options}).run(
            jobs, lambda e: events.append(dict(e)), stop
        )
        return events

    return go


def ends(events):
    return {
        e["cell_id"]: e.get("status", e["event"]) for e in events if e["event"] not in ("started", "epoch")
    }


def test_events_of_a_good_cell(run):
    events = run({"a": ("done", {})})
    assert [e["event"] for e in events] == ["started", "epoch", "finished"]
    assert {e["cell_id"] for e in events} == {"a"}


@pytest.mark.parametrize(
    ("word", "event", "status", "message"),
    [
        ("fail", "finished", None, None),
        ("exit", "died", "crashed", "code 9 and left no record; its log ends:\nlast words"),
        ("leave", "died", "crashed", "code 0 and left no record"),
        ("segfault", "died", "crashed", "SIGSEGV"),
        ("killed", "died", "interrupted", "SIGKILL"),
    ],
)
def test_how_a_worker_ends(run, word, event, status, message):
    last = run({"a": (word, {})})[-1]
    assert last["event"] == event
    assert last.get("status") == status
    assert message is None or message in last["message"]


def test_one_end_never_stops_the_others(run):
    words = ["exit", "done", "killed", "done", "fail", "segfault", "done"]
    events = run({f"c{i}": (word, {}) for i, word in enumerate(words)}, workers=2)
    assert sorted(ends(events).items()) == [
        ("c0", "crashed"),
        ("c1", "finished"),
        ("c2", "interrupted"),
        ("c3", "finished"),
        ("c4", "finished"),
        ("c5", "crashed"),
        ("c6", "finished"),
    ]


def test_timeout_kills_the_hanging_one_only(run):
    began = time.monotonic()
    events = run({"a": ("hang", {"timeout_s": 0.5}), "b": ("done", {"timeout_s": 30.0})}, workers=2)
    assert time.monotonic() - began < 20
    assert ends(events) == {"a": "timeout", "b": "finished"}
    died = next(e for e in events if e["event"] == "died")
    assert died["message"] == "stopped after the limit of 0.5 s"


def test_waiting_for_one_that_hangs_is_not_hanging(run):
    """Who wants to measure waits until all others pause, which the one that hangs never does."""
    limit = {"timeout_s": 0.5}
    events = run({"a": ("trains", limit), "b": ("measures", limit)}, workers=2)
    assert ends(events) == {"a": "timeout", "b": "finished"}


def test_students_wait_for_their_teacher(run, tmp_path):
    run({"student": ("done", {"after": ("teacher",), "cost": 9.0}), "teacher": ("slow", {})}, workers=2)
    began = {c: float((tmp_path / c / "began").read_text()) for c in ("student", "teacher")}
    assert began["student"] - began["teacher"] >= 0.5


def test_students_of_a_dead_teacher_never_start(run, tmp_path):
    cells = {
        "teacher": ("exit", {}),
        "student": ("done", {"after": ("teacher",)}),
        "grandchild": ("done", {"after": ("student",)}),
        "other": ("done", {}),
    }
    events = run(cells)
    assert ends(events) == {
        "teacher": "crashed",
        "student": "failed",
        "grandchild": "failed",
        "other": "finished",
    }
    assert not (tmp_path / "student" / "began").exists()
    told = next(e for e in events if e["cell_id"] == "student")
    assert told["message"] == "its teacher cell teacher did not finish"


def test_students_of_a_teacher_that_was_cut_are_cut(run):
    """Whatever the next run gets done before it is cut itself, the one after takes them up, unasked."""
    cells = {
        "teacher": ("killed", {}),
        "student": ("done", {"after": ("teacher",)}),
        "grandchild": ("done", {"after": ("student",)}),
    }
    events = run(cells)
    assert ends(events) == dict.fromkeys(cells, "interrupted")
    assert events[-1]["message"] == "its teacher cell student was interrupted"


def test_longest_first(run, tmp_path):
    run(
        {"short": ("done", {"cost": 1.0}), "long": ("done", {"cost": 5.0}), "middle": ("done", {"cost": 2.0})}
    )
    order = sorted(("short", "long", "middle"), key=lambda c: float((tmp_path / c / "began").read_text()))
    assert order == ["long", "middle", "short"]


def test_stop_asks_workers_and_starts_no_more(run, tmp_path):
    asked = []

    def stop():
        asked.append((tmp_path / "a" / "began").exists())
        return int(asked[-1])

    events = run({"a": ("polite", {"cost": 2.0}), "b": ("done", {})}, stop=stop)
    assert ends(events) == {"a": "interrupted"}
    assert not (tmp_path / "b" / "began").exists()


def test_second_stop_kills(run, tmp_path):
    def stop():
        return 2 if (tmp_path / "a" / "began").exists() else 0

    began = time.monotonic()
    assert ends(run({"a": ("hang", {})}, stop=stop)) == {"a": "interrupted"}
    assert time.monotonic() - began < 20


def test_full_disk_ends_the_run(run):
    with pytest.raises(KdbenchError, match=r"x: No space left on device; finished cells are safe"):
        run({"a": ("full", {"cost": 2.0}), "b": ("done", {})})
    told = [e["message"] for e in run.events if e["event"] == "interrupted" and e["cell_id"] == "a"]
    assert told == ["its state could not be saved"]


def test_slots_go_round_the_gpus(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    events = run({f"c{i}": ("slow", {}) for i in range(4)}, workers=4, gpus=2)
    seen = sorted(e["environment"]["CUDA_VISIBLE_DEVICES"] for e in events if e["event"] == "started")
    assert seen == ["4", "4", "7", "7"]


def test_processes_of_a_cell_get_neighbouring_gpus(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,8,9")
    events = run({f"c{i}": ("slow", {}) for i in range(2)}, workers=2, gpus=4, processes=2)
    seen = [e["environment"] for e in events if e["event"] == "started"]
    assert sorted(e["CUDA_VISIBLE_DEVICES"] for e in seen) == ["4,7", "8,9"]
    assert {e[PROCESSES] for e in seen} == {"2"}


def test_one_gpu_is_left_as_it_is(run):
    events = run({"a": ("done", {})}, gpus=1)
    assert events[0]["environment"] == {}


def test_costs_that_become_known_change_the_order(run, tmp_path):
    known = {"first": 9.0, "second": 1.0, "third": 2.0}

    def cost(job):
        if (tmp_path / "first" / "began").exists():
            known["second"] = 5.0
        return known[job.cell_id]

    cells = {name: ("done", {}) for name in known}
    run(cells, cost=cost)
    order = sorted(known, key=lambda c: float((tmp_path / c / "began").read_text()))
    assert order == ["first", "second", "third"]


def test_auto_starts_a_second_cell_beside_one_that_leaves_room(run, tmp_path):
    """One cell at first; when its epochs have shown what it takes, another; it starves and runs again alone."""
    cells = {"a": ("epochs", {"cost": 2.0}), "b": ("oom", {"cost": 1.0})}
    events = run(cells, workers=4, gpus=1, slots_per_gpu="auto")
    told = [(e["event"], e["cell_id"]) for e in events if e["event"] != "epoch"]
    assert told[0] == ("started", "a")
    assert told[1] == ("started", "b")
    assert told[2] == ("released", "b")
    assert sorted(told[3:]) == [("finished", "a"), ("finished", "b"), ("started", "b")]
    assert told.index(("finished", "a")) < len(told) - 1 - told[::-1].index(("started", "b"))
    assert (tmp_path / "b" / "previous" / "result-1.json").exists()
    message = next(e["message"] for e in events if e["event"] == "released")
    assert message == "out of memory beside another cell on its GPU; it goes on with fewer beside it"


def test_a_bound_on_the_workers_holds_for_auto(run, tmp_path):
    cells = {"a": ("slow", {}), "b": ("slow", {})}
    run(cells, workers=1, gpus=1, slots_per_gpu="auto")
    began = sorted(float((tmp_path / c / "began").read_text()) for c in cells)
    assert began[1] - began[0] >= 0.5
