"""The launcher on a real Ray of several nodes: what dies there costs nothing that was finished."""

import os
import signal

import pytest
from commands import Command, alive, by_variant, done_files, records, wait_until
from fake_distributions import Distributions
from matrices import STUDENT, TEACHER, write_matrix
from ray_cluster import RayCluster

pytestmark = pytest.mark.e2e

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    alone = Needs(teachers=0)
    return [
        MethodEntry(name="master", target="held_in_ray:Master", version="1", needs=alone),
        MethodEntry(name="pupil", target="held_in_ray:Pupil", version="1"),
        MethodEntry(name="crasher", target="held_in_ray:Crasher", version="1"),
    ]
"""
#: In the second epoch a cell waits while there is a file `hold-NAME`, and says so with `held-NAME-PROCESS`.
METHODS = """
import os
import time
from pathlib import Path

from kdbench.api import Method, MethodParams, Needs

gate = Path(os.environ["GATE"])


class Master(Method):
    needs = Needs(teachers=0)
    name = "master"

    def loss(self, S, T, batch, run):
        while run.epoch and (gate / f"hold-{self.name}").exists():
            (gate / f"held-{self.name}-{os.getpid()}").touch()
            time.sleep(0.02)
        return {"task": run.task.loss(S, batch)}


class Pupil(Master):
    needs = Needs()
    name = "pupil"


class Crasher(Master):
    needs = Needs()
    name = "crasher"

    def loss(self, S, T, batch, run):
        print("last words", flush=True)
        os._exit(7)
"""
COMMAND = ("--launcher", "ray", "--workers", 2)


def results(run):
    """Return what must not depend on what went wrong."""
    done = {cell: r for cell, r in records(run).items() if r["status"] == "done"}
    return {c: (r["weights_sha256"], r["deployables"], r["cost"]["steps"]) for c, r in done.items()}


@pytest.fixture
def cluster(tmp_path):
    """Ray with a head and no other node; its cells know the methods of this file."""
    site = Distributions(tmp_path / "packages")
    (site.path / "held_in_ray.py").write_text(METHODS)
    site.add("held", ENTRIES)
    # in front of the packages that the tests themselves run with
    paths = [str(site.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray = RayCluster(PYTHONPATH=os.pathsep.join(paths), GATE=str(tmp_path))
    try:
        ray.start()
        yield ray
    finally:
        ray.close()


def test_whatever_dies_each_cell_has_one_record_as_in_an_undisturbed_run(cluster, kdbench, tmp_path):
    facts = {"pairs": [{"teacher": TEACHER, "student": STUDENT}], "teacher_method": "master"}
    options = {"ray": {"poll_s": 0.1, "max_retries": 1}}
    methods = ["crasher", "pupil"]
    matrix = write_matrix(
        tmp_path / "held.yaml", name="held", methods=methods, launcher_options=options, **facts
    )
    run = tmp_path / "runs" / "held"
    holds = {name: tmp_path / f"hold-{name}" for name in ("master", "pupil")}
    seen = []
    for path in holds.values():
        path.touch()
    nodes = [cluster.add()]

    def held(name, command):
        """Wait for a cell to be held; return its process."""

        def new():
            return [path for path in tmp_path.glob(f"held-{name}-*") if path not in seen]

        wait_until(lambda: new() or not alive(command.pid), name)
        assert alive(command.pid), command.stderr
        seen.extend(new())
        return int(seen[-1].name.rpartition("-")[2])

    # the parent dies while the teacher trains: Ray ends its tasks, and they their cells
    first = kdbench.start(matrix, *COMMAND, env=cluster.environment)
    cell = held("master", first)
    first.process.kill()
    first.wait()
    wait_until(lambda: not alive(cell), "the end of the cell", limit_s=20)

    # the teacher's node dies, without a word: the cell ends with it, and goes on where there is another
    second = kdbench.start(matrix, *COMMAND, env=cluster.environment)
    cell = held("master", second)
    assert cell in nodes[0].processes()
    nodes.append(cluster.add())
    nodes[0].kill()
    wait_until(lambda: not alive(cell), "the end of the cell", limit_s=20)
    holds["master"].unlink()

    # the user leaves while the student trains; it saves its state
    cell = held("pupil", second)
    assert cell in nodes[1].processes()
    wait_until(lambda: by_variant(run), "the student that crashes")
    kept = done_files(run)
    second.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in second.stderr, "the second parent to take notice")
    holds["pupil"].unlink()
    assert second.wait() == 130, second.stderr
    assert "goes on elsewhere (0 more time(s)" in second.stderr
    assert not alive(cell)
    assert len(list(run.glob("cells/*/checkpoint.safetensors"))) == 1

    last = kdbench.run(matrix, *COMMAND, env=cluster.environment)
    assert last.returncode == 1, last.stdout + last.stderr
    assert "1 crashed, 2 done" in last.stdout
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    assert not (run / "ray").exists()

    # a cell's own failure was not tried again, by none of three commands
    crashed = by_variant(run)["crasher"]
    assert "code 7" in crashed["error"]["message"]
    assert (run / "cells" / crashed["cell_id"] / "log.txt").read_text().count("last words") == 1
    found = {r["labels"]["variant"]: r for r in records(run).values() if r["status"] == "done"}
    assert sorted(r["cost"]["attempts"] for r in found.values()) == [2, 2]

    there = tmp_path / "there"
    there.mkdir()
    local = Command(there)
    done = local.run(matrix, env=cluster.environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert results(run) == results(there / "runs" / "held")
    assert records(run).keys() == records(there / "runs" / "held").keys()


def test_without_a_cluster_at_the_address_there_is_one_line(kdbench, tiny_matrix, tmp_path):
    matrix = tiny_matrix(launcher_options={"ray": {"address": "127.0.0.1:9"}})
    done = kdbench.run(matrix, "--launcher", "ray")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("kdbench: error: no Ray cluster at 127.0.0.1:9: ")
    assert list((tmp_path / "runs").glob("*/cells/*/result.json")) == []
    assert "Traceback" not in done.stderr
