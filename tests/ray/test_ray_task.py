"""What runs on a node: the process of one cell, which is asked to save and never outlives its starter."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from commands import alive, wait_until

from kdbench_launchers import node
from kdbench_launchers.node import Cell, read_events
from kdbench_launchers.ray import task as module
from kdbench_launchers.ray.task import run_cell

ID = "1" * 64
#: Tells that it runs, and waits to be asked.
WAITS = """
import pathlib, signal, sys, time
def save(*_):
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "runs").touch()
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a cell whose process is the given program instead of ``kdbench cell``."""
    real, folder = subprocess.Popen, tmp_path / "cells" / ID
    folder.mkdir(parents=True)
    (folder / "cell.json").touch()

    def go(program="pass", timeout_s=None, cwd=tmp_path):
        def start(command, **more):
            assert command[:4] == [sys.executable, "-m", "kdbench", "cell"]
            return real([sys.executable, "-S", "-c", program, command[4]], **more)

        monkeypatch.setattr(node.subprocess, "Popen", start)
        return run_cell(Cell(ID, folder, timeout_s=timeout_s), tmp_path / "events.jsonl", cwd)

    go.folder, go.events = folder, tmp_path / "events.jsonl"
    return go


def soon(folder, act):
    """Call `act` once the cell's process waits."""

    def wait():
        wait_until((folder / "runs").exists, "the cell", limit_s=20)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_how_a_cell_ended_comes_back(run):
    program = "import os; print('last words', flush=True); os._exit(7)"
    ended = run(program)
    assert {k: v for k, v in ended.items() if k != "host"} == {
        "event": "ended",
        "cell_id": ID,
        "code": 7,
        "late": False,
        "recorded": False,
    }
    (started,) = read_events(run.events)
    assert (started["event"], started["cell_id"], started["host"]) == ("started", ID, ended["host"])
    assert (run.folder / "log.txt").read_text() == "last words\n"
    assert run("import sys, pathlib; pathlib.Path(sys.argv[1], 'result.json').touch()")["recorded"]


def test_a_cell_runs_where_the_command_was_given(run, tmp_path):
    assert run("import os; os._exit(os.path.exists('cells'))")["code"] == 1
    assert run(cwd=tmp_path / "not-here")["code"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_asked_to_leave_has_its_cell_save(run, number):
    """Ray cancels a task as SIGINT does, and ends a worker by SIGTERM, which has its way afterwards."""
    came = []
    before = {n: signal.signal(n, lambda n, _: came.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread = soon(run.folder, lambda: os.kill(os.getpid(), number))
        ended = run(WAITS)
        thread.join()
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert (ended["event"], ended["code"]) == ("cut", 130)
    assert came == ([signal.SIGTERM] if number == signal.SIGTERM else [])


def test_a_cell_that_takes_too_long_is_killed_with_what_it_started(run):
    program = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1], "child").write_text(str(child.pid))
time.sleep(60)
"""
    ended = run(program, timeout_s=1.0)
    assert (ended["event"], ended["code"], ended["late"]) == ("ended", -signal.SIGKILL, True)
    child = int((run.folder / "child").read_text())
    wait_until(lambda: not alive(child), "the child's end", limit_s=10)


def test_a_cell_does_not_outlive_rays_worker(run, tmp_path):
    code = f"""
import json, pathlib, signal, sys
from kdbench_launchers import node
from kdbench_launchers.ray.task import run_cell
real = node.subprocess.Popen
node.subprocess.Popen = lambda command, **more: real([sys.executable, "-S", "-c", {WAITS!r}, command[4]], **more)
folder = pathlib.Path({str(run.folder)!r})
run_cell(node.Cell("1" * 64, folder), folder / "events.jsonl", folder)
"""
    worker = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until((run.folder / "runs").exists, "the cell", limit_s=30)
        (pid,) = map(int, worker_children(worker.pid))
        assert os.getsid(pid) == pid
    finally:
        worker.kill()
        worker.wait()
    wait_until(lambda: not alive(pid), "the cell's end", limit_s=10)


def worker_children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return f.read().split()


def test_a_node_that_does_not_see_the_run_folder_says_so(run, monkeypatch):
    monkeypatch.setattr(module, "_SHOWN_S", 0.0)
    (run.folder / "cell.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"does not see .*cell\.json: the run folder has to be where"):
        run()
    assert json.dumps(read_events(run.events)) == "[]"
