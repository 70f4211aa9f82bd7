"""The launcher on a real Slurm of one node: what goes wrong there costs nothing that was finished."""

import json
import os

import pytest
from commands import Command, alive, by_variant, done_files, records, wait_until
from fake_distributions import Distributions
from matrices import STUDENT, TEACHER, write_matrix
from slurm_cluster import Slurm

pytestmark = pytest.mark.e2e

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    alone = Needs(teachers=0)
    return [
        MethodEntry(name="master", target="held_code:Master", version="1", needs=alone),
        MethodEntry(name="pupil", target="held_code:Pupil", version="1"),
        MethodEntry(name="crasher", target="held_code:Crasher", version="1"),
    ]
"""
#: In the second epoch a cell waits for as long as there is a file `hold-NAME`, and says so with `held-NAME`.
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
            (gate / f"held-{self.name}").touch()
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
OPTIONS = {"slurm": {"poll_s": 0.2, "cells_per_job": 2, "time": 30}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm whose jobs know the methods of this file; what its clients need is in ``environment``."""
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    site = Distributions(tmp_path_factory.mktemp("site") / "packages")
    (site.path / "held_code.py").write_text(METHODS)
    site.add("held", ENTRIES)
    # in front of the packages that the tests themselves run with
    paths = [str(site.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    slurm.environment["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()


def matrix_in(folder, methods):
    pairs = [{"teacher": TEACHER, "student": STUDENT}]
    facts = {"methods": methods, "pairs": pairs, "teacher_method": "master", "launcher_options": OPTIONS}
    return write_matrix(folder / "held.yaml", name="held", **facts)


def submissions(run):
    found = [json.loads(p.read_text()) for p in run.glob("slurm/*/submission.json")]
    return sorted(found, key=lambda s: int(s["job_id"]))


def results(run):
    """Return what must not depend on what went wrong."""
    done = {cell: r for cell, r in records(run).items() if r["status"] == "done"}
    return {c: (r["weights_sha256"], r["deployables"], r["cost"]["steps"]) for c, r in done.items()}


def logs(run):
    return "".join(p.read_text() for p in run.glob("slurm/*/*_log.*"))


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """A run in which one cell crashes, and nothing else happens: (finished command, run folder)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    matrix = matrix_in(folder, ["crasher", "pupil"])
    env = {**cluster.environment, "GATE": str(folder)}
    return Command(folder).run(matrix, "--launcher", "slurm", env=env), folder / "runs" / "held"


def test_crash_costs_one_cell(undisturbed):
    done, run = undisturbed
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 crashed, 2 done" in done.stdout
    crashed = by_variant(run)["crasher"]
    assert "code 7" in crashed["error"]["message"]
    assert "last words" in crashed["error"]["message"]
    # one array for the teacher, one job for both students, in which the crash came first
    teachers, students = submissions(run)
    found = records(run)
    assert [found[cell]["labels"]["role"] for cell in teachers["groups"][0]] == ["teacher"]
    assert [found[cell]["status"] for cell in students["groups"][0]] == ["crashed", "done"]
    assert {r["environment"]["device"] for r in found.values() if r["status"] == "done"} == {"cpu"}


def test_nothing_is_lost_or_submitted_twice(cluster, undisturbed, kdbench, tmp_path):
    matrix = matrix_in(tmp_path, ["pupil"])
    run = tmp_path / "runs" / "held"
    command = ("--launcher", "slurm")
    env = {**cluster.environment, "GATE": str(tmp_path)}
    holds = {name: tmp_path / f"hold-{name}" for name in ("master", "pupil")}
    for path in holds.values():
        path.touch()

    # the parent is killed while the teacher trains, perhaps before it noted the id of a job
    first = kdbench.start(matrix, *command, env=env)
    wait_until(lambda: (tmp_path / "held-master").exists() or not alive(first.pid), "the teacher")
    first.process.kill()
    first.wait()
    made = submissions(run)
    assert len(made) == 2
    (path,) = (p for p in run.glob("slurm/*/submission.json") if json.loads(p.read_text()) == made[0])
    path.write_text(json.dumps({**made[0], "job_id": None}))
    second = kdbench.start(matrix, *command, env=env)
    wait_until(lambda: "2 cell(s) are in Slurm jobs already" in second.stderr, "the second parent")
    assert submissions(run) == made

    # Slurm wants the teacher's node: the job saves its state and goes on later
    cluster.ask("scancel", "--signal=TERM", made[0]["job_id"])
    wait_until(lambda: "Calling checkpoint method" in logs(run), "the job to take notice")
    holds["master"].unlink()

    # somebody cancels the student in mid-flight
    wait_until(lambda: (tmp_path / "held-pupil").exists() or not alive(second.pid), "the student")
    cluster.ask("scancel", made[1]["job_id"])
    holds["pupil"].unlink()
    assert second.wait() == 1, second.stderr
    assert submissions(run) == made
    kept = done_files(run)
    (teacher,) = records(run).values()
    assert teacher["cost"]["attempts"] == 2
    assert len(list(run.glob("cells/*/checkpoint.safetensors"))) == 1

    last = kdbench.run(matrix, *command, env=env)
    assert last.returncode == 0, last.stdout + last.stderr
    assert len(submissions(run)) == 3
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    assert {r["cost"]["attempts"] for r in records(run).values()} == {2}
    assert results(run) == results(undisturbed[1])
    assert not cluster.ask("squeue", "--noheader").strip()
