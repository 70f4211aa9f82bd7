"""What runs on a node: a cell's process is out of reach of Slurm's warnings, and never outlives the job."""

import json
import os
import signal
import subprocess
import sys

import pytest
from commands import alive, wait_until

from kdbench_launchers.slurm import group as module
from kdbench_launchers.slurm.group import Cell, CellGroup, read_events

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Make a group of cells whose process is the given program instead of ``kdbench cell``."""
    before = signal.getsignal(signal.SIGTERM)
    real = subprocess.Popen

    def make(*cells, program="pass", delay_s=20):
        def start(command, **more):
            assert command[:4] == [sys.executable, "-m", "kdbench", "cell"]
            return real([sys.executable, "-S", "-c", program, command[4]], **more)

        monkeypatch.setattr(module.subprocess, "Popen", start)
        for cell in cells:
            cell.folder.mkdir(parents=True, exist_ok=True)
        return CellGroup(cells, tmp_path / "task-0.jsonl", delay_s)

    yield make
    signal.signal(signal.SIGTERM, before)


def cell(folder, name, **more):
    return Cell(name, folder / "cells" / name, **more)


def told(folder):
    return [(e["event"], e["cell_id"], e.get("code")) for e in read_events(folder / "task-0.jsonl")]


def test_a_cell_that_ends_badly_leaves_the_others_alone(group, tmp_path):
    program = (
        "import os, sys; print('last words', flush=True); os._exit(7 if sys.argv[1].endswith('1') else 0)"
    )
    group(cell(tmp_path, ONE), cell(tmp_path, TWO), program=program)()
    assert told(tmp_path) == [
        ("started", ONE, None),
        ("ended", ONE, 7),
        ("started", TWO, None),
        ("ended", TWO, 0),
    ]
    assert (tmp_path / "cells" / ONE / "log.txt").read_text() == "last words\n"


def test_what_ended_is_left_out_and_what_was_cut_runs_again(group, tmp_path):
    lines = [{"event": "ended", "cell_id": ONE, "code": 1}, {"event": "cut", "cell_id": TWO, "code": 130}]
    (tmp_path / "task-0.jsonl").write_text(
        "".join(json.dumps(e) + "\n" for e in lines) + '{"event": "ended", \n'
    )
    group(cell(tmp_path, ONE), cell(tmp_path, TWO))()
    assert told(tmp_path)[2:] == [("started", TWO, None), ("ended", TWO, 0)]


@pytest.mark.parametrize("status", [None, "failed", "done"])
def test_a_student_needs_its_teacher(group, tmp_path, status):
    teacher = tmp_path / "cells" / TWO
    if status:
        teacher.mkdir(parents=True)
        (teacher / "result.json").write_text(json.dumps({"status": status}))
    group(cell(tmp_path, ONE, teachers=(teacher,)))()
    assert told(tmp_path)[0] == (("started", ONE, None) if status == "done" else ("ended", ONE, None))
    assert read_events(tmp_path / "task-0.jsonl")[0].get("teacher") == (None if status == "done" else TWO)


def test_a_cell_that_hangs_is_killed_with_its_children(group, tmp_path):
    program = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    group(cell(tmp_path, ONE, timeout_s=2.0), program=program)()
    (_, ended) = read_events(tmp_path / "task-0.jsonl")
    assert (ended["late"], ended["code"]) == (True, -signal.SIGKILL)
    child = int((tmp_path / "cells" / ONE / "child").read_text())
    wait_until(lambda: not alive(child), "the child to die", limit_s=10)


def test_a_cell_leaves_no_children_to_the_next_one(group, tmp_path):
    program = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid))\n"
    )
    group(cell(tmp_path, ONE), program=program)()
    child = int((tmp_path / "cells" / ONE / "child").read_text())
    wait_until(lambda: not alive(child), "the child to die", limit_s=10)


def test_the_warning_is_not_for_the_cell(group, tmp_path):
    program = (
        "import os, signal\n"
        "for number in (signal.SIGUSR1, signal.SIGUSR2): os.kill(os.getpid(), number)\n"
        "os._exit(0 if os.getsid(0) == os.getpid() else 5)\n"
    )
    group(cell(tmp_path, ONE), program=program)()
    assert told(tmp_path)[-1] == ("ended", ONE, 0)


def test_no_cell_outlives_its_job():
    """Not even where Slurm tracks no processes: a killed parent takes the cell with it."""
    program = (
        "import os, subprocess, sys\n"
        "from kdbench_launchers.node import _prepare_child\n"
        "line = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
        "print(subprocess.Popen(line, preexec_fn=_prepare_child).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        wait_until(lambda: not alive(child), "the child to die", limit_s=10)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_checkpoint_waits_for_the_cell_as_long_as_slurm_does(group, tmp_path, obeys):
    handler = "lambda *_: sys.exit(130)" if obeys else "signal.SIG_IGN"
    program = (
        "import os, signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, {handler})\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    one = cell(tmp_path, ONE)
    # the alarm comes while the group waits for the cell, as Slurm's warning does
    watcher = (
        "import os, signal, sys, time\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "os.kill(int(sys.argv[2]), signal.SIGALRM)\n"
    )
    saved = []
    before = signal.signal(signal.SIGALRM, lambda *_: saved.append(made.checkpoint()))
    line = [sys.executable, "-S", "-c", watcher, str(one.folder / "ready"), str(os.getpid())]
    try:
        with subprocess.Popen(line):
            made = group(one, program=program, delay_s=20 if obeys else 6)
            made()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert saved[0].function is made
    assert told(tmp_path)[-1] == (("cut", ONE, 130) if obeys else ("ended", ONE, -signal.SIGKILL))


@pytest.mark.parametrize(("state", "goes_on"), [("RUNNING", True), ("COMPLETING", False), ("", False)])
def test_a_cancelled_job_ends_and_one_that_makes_room_goes_on(group, monkeypatch, state, goes_on):
    monkeypatch.setattr(module, "_state", lambda: state)
    sent = []
    monkeypatch.setattr(module.os, "kill", lambda pid, number: sent.append((pid, number)))
    made = group()
    if goes_on:
        made._warned(signal.SIGTERM, None)
    else:
        with pytest.raises(SystemExit):
            made._warned(signal.SIGTERM, None)
    assert sent == ([(os.getpid(), signal.SIGUSR2)] if goes_on else [])
