"""The launcher on a real Slurm of one node: what goes wrong there costs nothing that was finished."""

import json

import pytest
from commands import Command, alive, by_variant, done_files, records, wait_until
from held_methods import install, results
from matrices import STUDENT, TEACHER, write_matrix
from slurm_cluster import Slurm

pytestmark = pytest.mark.e2e

OPTIONS = {"slurm": {"poll_s": 0.2, "cells_per_job": 2, "time": 30}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm whose jobs know the methods that wait; what its clients need is in ``environment``."""
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    slurm.environment |= install(tmp_path_factory.mktemp("site") / "packages")
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
    wait_until(lambda: any(tmp_path.glob("held-master-*")) or not alive(first.pid), "the teacher")
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
    wait_until(lambda: any(tmp_path.glob("held-pupil-*")) or not alive(second.pid), "the student")
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
