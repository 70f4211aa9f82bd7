"""The launcher on a real Ray of several nodes: what dies there costs nothing that was finished."""

import signal

import pytest
from commands import Command, alive, by_variant, done_files, records, wait_until
from held_cells import COMMAND, Held, held_cluster
from held_methods import results

pytestmark = pytest.mark.e2e


@pytest.fixture
def cluster(tmp_path):
    """Ray with a head and no other node."""
    with held_cluster(tmp_path) as ray:
        yield ray


def test_whatever_dies_each_cell_has_one_record_as_in_an_undisturbed_run(cluster, kdbench, tmp_path):
    """More deaths are in tests/faults/test_ray_deaths.py."""
    held = Held(tmp_path, "master", "pupil")
    matrix, run = held.matrix("crasher", "pupil", max_retries=1), held.run
    nodes = [cluster.add()]

    # the teacher's node dies, without a word: the cell ends with it, and goes on where there is another
    first = kdbench.start(matrix, *COMMAND, env=cluster.environment)
    cell = held.wait("master", first)
    assert cell in nodes[0].processes()
    nodes.append(cluster.add())
    nodes[0].kill()
    wait_until(lambda: not alive(cell), "the end of the cell", limit_s=20)
    held.let_go("master")

    # the user leaves while the student trains; it saves its state
    cell = held.wait("pupil", first)
    assert cell in nodes[1].processes()
    wait_until(lambda: by_variant(run), "the student that crashes")
    kept = done_files(run)
    first.process.send_signal(signal.SIGTERM)
    wait_until((tmp_path / "asked-pupil").exists, "the wish to reach the cell")
    assert "stopping: running cells save their state" in first.stderr
    held.let_go("pupil")
    assert first.wait() == 130, first.stderr
    assert "goes on elsewhere (0 more time(s)" in first.stderr
    assert not alive(cell)
    assert len(list(run.glob("cells/*/checkpoint.safetensors"))) == 1

    last = kdbench.run(matrix, *COMMAND, env=cluster.environment)
    assert last.returncode == 1, last.stdout + last.stderr
    assert "1 crashed, 2 done" in last.stdout
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    assert not (run / "ray").exists()
    assert {r["cost"]["attempts"] for r in records(run).values() if r["status"] == "done"} == {2}

    # a cell's own failure was tried once by each command that had it to run
    crashed = by_variant(run)["crasher"]
    assert "code 7" in crashed["error"]["message"]
    assert (run / "cells" / crashed["cell_id"] / "log.txt").read_text().count("last words") == 1

    there = tmp_path / "there"
    there.mkdir()
    done = Command(there).run(held.matrix("pupil"), env=cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(run) == results(there / "runs" / "held")


def test_without_a_cluster_at_the_address_there_is_one_line(kdbench, tiny_matrix, tmp_path):
    matrix = tiny_matrix(launcher_options={"ray": {"address": "127.0.0.1:9"}})
    done = kdbench.run(matrix, "--launcher", "ray")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("kdbench: error: no Ray cluster at 127.0.0.1:9: ")
    assert list((tmp_path / "runs").glob("*/cells/*/result.json")) == []
    assert "Traceback" not in done.stderr
