"""Cut runs end like undisturbed ones: same weights, same metrics, and nothing finished is touched."""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest
from commands import Command, alive, done_files, outcome, records, rows, wait_until
from matrices import RECIPE, write_matrix

pytestmark = pytest.mark.e2e

METHODS = ["vanilla", "ab"]
CELLS = 1 + len(METHODS) * 2
EPOCHS = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run: (matrix file, run folder)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    matrix = write_matrix(
        folder / "cut.yaml", name="cut", methods=METHODS, seeds=2, recipe={**RECIPE, "epochs": EPOCHS}
    )
    command = Command(folder)
    first = command.run(matrix)
    assert first.returncode == 0, first.stderr
    return matrix, folder / "runs" / "cut"


@pytest.fixture
def cut(undisturbed, kdbench, tmp_path):
    """Start the matrix and return (the running command, its run folder) once `epochs` epochs are on disk."""

    def start(epochs):
        run = tmp_path / "runs" / "cut"
        started = kdbench.start(undisturbed[0])
        wait_until(lambda: rows(run) >= epochs or started.process.poll() is not None, f"{epochs} epochs")
        assert started.process.poll() is None, started.stderr
        return started, run

    return start


def check_completed(done, run, undisturbed, kept):
    """The run is that of the undisturbed one, and what was finished before is as it was."""
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(run, undisturbed, kept)


def check_same(run, undisturbed, kept):
    assert outcome(run) == outcome(undisturbed[1])
    after = done_files(run)
    assert len(after) == CELLS
    assert {name: after[name] for name in kept} == kept


def test_finished_matrix(undisturbed, kdbench):
    _, run = undisturbed
    found = records(run)
    assert [r["status"] for r in found.values()] == ["done"] * CELLS
    assert sorted(r["labels"]["method"] for r in found.values() if r["labels"]["role"] == "student") == [
        *["ab"] * 2,
        *["vanilla"] * 2,
    ]
    teacher = next(r for r in found.values() if r["labels"]["role"] == "teacher")
    for record in found.values():
        assert record["cost"]["epochs"] == EPOCHS
        assert record["cost"]["attempts"] == 1
        if record["labels"]["method"] == "ab":
            assert record["teachers"][0]["ref"] == teacher["cell_id"]
            assert record["teachers"][0]["sha256"] == teacher["weights_sha256"]
    assert (run / "board" / "index.html").exists()
    # other seeds and other methods give other networks
    assert len({r["weights_sha256"] for r in found.values()}) == CELLS


def test_second_run_does_nothing(undisturbed, kdbench):
    matrix, run = undisturbed
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}
    began = time.monotonic()
    again = kdbench.run(matrix, cwd=matrix.parent)
    seconds = time.monotonic() - began
    assert again.returncode == 0, again.stderr
    assert f"cut: nothing to do, {CELLS} done" in again.stdout
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()} == before
    # no process with torch was started: that alone takes longer on two cores under load
    assert seconds < 10


def kill_in_mid_cell(started, run):
    """Kill workers until one was in the middle of its cell; one with its record on disk was on its way out."""

    def cut_cells():
        return [r for r in records(run).values() if r["status"] == "interrupted"]

    while not cut_cells():
        worker = wait_until(started.workers, "a worker")[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda worker=worker: not alive(worker), "the worker to leave")
        until = time.monotonic() + 3
        while not cut_cells() and time.monotonic() < until:
            time.sleep(0.05)


@pytest.mark.parametrize("number", range(2))
def test_kill_of_a_worker(cut, undisturbed, kdbench, number):
    dice = random.Random(f"worker {number}")
    # in the teacher, then in the middle of the run
    started, run = cut(1 + number * CELLS * EPOCHS // 2)
    time.sleep(dice.uniform(0, 0.2))
    kill_in_mid_cell(started, run)
    assert started.wait() == 1, started.stderr
    statuses = [r["status"] for r in records(run).values()]
    # students of a teacher that was cut are cut with it, and go on with it
    cut_ones = [r["error"]["message"] for r in records(run).values() if r["status"] == "interrupted"]
    assert sum("SIGKILL" in message for message in cut_ones) == 1
    if number:
        assert len(cut_ones) == 1
        assert statuses.count("done") == CELLS - 1  # one cell's end never stops the others
    kept = done_files(run)
    check_completed(kdbench.run(undisturbed[0]), run, undisturbed, kept)


def finished_since(run, kept):
    """Return the finished records, of which those that were there before are as they were."""
    now = done_files(run)
    assert kept.items() <= now.items()
    return now


def test_kills_until_the_end(cut, undisturbed, kdbench):
    """Of the parent, of both, of the parent again; then a checkpoint is damaged, which costs epochs only."""
    dice, kept = random.Random("parent"), {}
    for epochs, both in ((2, False), (5, True), (8, False)):
        started, run = cut(epochs)
        if epochs < 8:  # the last one has to leave a checkpoint
            time.sleep(dice.uniform(0, 0.3))
        workers = started.workers()
        for pid in [*(workers if both else ()), started.pid]:
            os.kill(pid, signal.SIGKILL)
        started.process.wait()
        wait_until(
            lambda pids=workers: not any(map(alive, pids)),
            "the workers of a killed parent to leave",
            limit_s=20,
        )
        kept = finished_since(run, kept)
    for path in run.glob("cells/*/checkpoint.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    check_completed(kdbench.run(undisturbed[0]), run, undisturbed, kept)


def test_stop_and_go(cut, undisturbed, kdbench, tmp_path):
    """By Ctrl-C and by the warning of a cluster; then it goes on in another folder."""
    kept = {}
    for number, epochs in ((signal.SIGINT, 4), (signal.SIGTERM, 8)):
        started, run = cut(epochs)
        wait_until(started.workers, "a worker")
        os.kill(started.pid, number)
        assert started.wait() == 130, started.stderr
        assert not started.workers()
        assert "stopping: running cells save their state" in started.stderr
        last = started.lines[-1]
        assert last.startswith("interrupted; `kdbench run-matrix ")
        assert last.endswith("goes on from here")
        # what a stopped cell had done is not done again
        checkpoints = run.glob("cells/*/checkpoint.safetensors")
        saved = [p for p in checkpoints if not (p.parent / "result.json").exists()]
        assert len(saved) <= 1
        plan = kdbench.run_here(undisturbed[0], "--dry-run")
        assert plan.returncode == 0
        assert ("1 interrupted" in plan.stdout) == bool(saved)
        kept = finished_since(run, kept)
        assert len(kept) < CELLS
    assert kept
    elsewhere = tmp_path / "other disk" / "results"
    elsewhere.mkdir(parents=True)
    shutil.move(run, elsewhere / "cut")
    done = kdbench.run(undisturbed[0], "--runs", elsewhere)
    check_completed(done, elsewhere / "cut", undisturbed, kept)
    assert not run.exists()


def test_two_parents_at_once(cut, undisturbed, kdbench):
    started, run = cut(2)
    # held, so that it is still there however long the second one takes to start
    started.process.send_signal(signal.SIGSTOP)
    try:
        second = kdbench.run(undisturbed[0])
    finally:
        started.process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    told = f"kdbench: error: {run.relative_to(kdbench.cwd)}: another kdbench is running this matrix (process "
    assert line.startswith(told)
    assert started.wait() == 0, started.stderr
    check_same(run, undisturbed, {})
