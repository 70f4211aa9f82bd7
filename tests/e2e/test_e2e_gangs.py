"""Gangs through the command: what they give is what lone cells give, whatever happens to the process."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from commands import Command, alive, by_variant, done_files, outcome, records, rows, wait_until
from matrices import DIGITS, RECIPE, write_matrix

pytestmark = pytest.mark.e2e

NET = {"name": "tiny-net", "args": {"width": 8}}
METHODS = ["vanilla", "kd", "fitnet", "crd"]
EPOCHS = 16


def write(folder, name, methods):
    return write_matrix(
        folder / f"{name}.yaml",
        name=name,
        datasets=[DIGITS],
        pairs=[{"teacher": NET, "student": "tiny-net"}],
        methods=methods,
        recipe={**RECIPE, "epochs": EPOCHS},
        throughput={"batch_sizes": [1], "rounds": 3},
    )


@pytest.fixture(scope="module")
def site(gang_plugin):
    """The environment of processes that have the plug-in."""
    return {"PYTHONPATH": os.pathsep.join([str(gang_plugin), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def lone(tmp_path_factory, gang_plugin):
    """A run without gangs: (matrix file, run folder)."""
    folder = tmp_path_factory.mktemp("lone")
    matrix = write(folder, "g", METHODS)
    done = Command(folder).run_here(matrix, "--gang", "off")
    assert done.returncode == 0, done.stderr
    assert "share" not in done.stderr
    return matrix, folder / "runs" / "g"


def check(done, run, lone):
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(run) == outcome(lone[1])


def test_a_gang_gives_what_lone_cells_give(lone, kdbench, site, tmp_path):
    line = "3 of 5 cells share batches and teacher, in 1 gang"
    planned = kdbench.run_here(lone[0], "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert line in planned.stdout.splitlines()
    assert not (tmp_path / "runs").exists()
    done = kdbench.run(lone[0], env=site)
    check(done, tmp_path / "runs" / "g", lone)
    assert line in done.stderr.splitlines()
    found = by_variant(tmp_path / "runs" / "g")
    assert [found[m]["cost"]["shared_s"] is not None for m in METHODS].count(True) >= 2
    assert found["vanilla"]["cost"]["shared_s"] is None
    assert {m: r["cost"]["peak_memory_mb"] is None for m, r in found.items()} == {
        m: m != "vanilla" for m in METHODS
    }
    assert all(r["throughput"]["student"]["1"]["images_per_s"] > 0 for r in found.values())


@pytest.fixture
def cut(lone, kdbench, site, tmp_path):
    """Start the matrix; return (the running command, its run folder) once the gang is under way."""

    def start(epochs=6):
        run = tmp_path / "runs" / "g"
        started = kdbench.start(lone[0], env=site)
        # teacher and vanilla go before or aside; then all of the gang have some epochs
        wait_until(lambda: rows(run) >= 2 * EPOCHS + epochs or started.process.poll() is not None, "the gang")
        assert started.process.poll() is None, started.stderr
        return started, run

    return start


def test_kill_of_a_gangs_worker(cut, lone):
    """Nobody has to run the command again: the cells go on alone, from their checkpoints."""
    started, run = cut()
    for worker in started.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda worker=worker: not alive(worker), "the worker to leave")
    assert started.wait() == 0, started.stderr
    assert "the worker of its gang ended (SIGKILL); it goes on alone" in started.stderr
    assert outcome(run) == outcome(lone[1])
    assert max(r["cost"]["attempts"] for r in records(run).values()) == 2


def test_stop_of_a_gang_then_kill_of_its_parent(cut, lone, kdbench, site):
    started, run = cut(6)
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 130, started.stderr
    assert started.stderr.count("saved; the same command resumes it") >= 2
    started, run = cut(15)
    workers = started.workers()
    started.process.kill()
    started.process.wait()
    wait_until(lambda: not any(map(alive, workers)), "the workers of a killed parent to leave", limit_s=20)
    assert len(done_files(run)) < len(METHODS) + 1
    check(kdbench.run(lone[0], env=site), run, lone)


def test_one_that_ends_the_process_costs_the_others_nothing_but_the_gang(lone, kdbench, tmp_path):
    bad = [{"name": "odd", "params": {"act": act, "at": 5}, "label": act} for act in ("exit", "raise", "nan")]
    matrix = write(tmp_path, "bad", ["kd", *bad, "fitnet"])
    done = kdbench.run_here(matrix)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = by_variant(tmp_path / "runs" / "bad")
    assert {v: r["status"] for v, r in found.items()} == {
        "kd": "done",
        "fitnet": "done",
        "exit": "crashed",
        "raise": "failed",
        "nan": "diverged",
    }
    assert "code 7" in found["exit"]["error"]["message"]
    alone = by_variant(lone[1])
    for name in ("kd", "fitnet"):
        assert found[name]["weights_sha256"] == alone[name]["weights_sha256"]
        assert found[name]["deployables"] == alone[name]["deployables"]


@pytest.mark.parametrize("value", ["1", "both", "of", "65"])
def test_a_bad_size_is_told_in_one_line(kdbench, value):
    done = kdbench.here("run-matrix", "quickstart", "--gang", value)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"kdbench: error: --gang {value}: expected auto, off or a number of cells from 2 to 64"
    )
    assert len(done.stderr.splitlines()) == 1
