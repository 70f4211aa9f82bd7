"""What goes wrong in one cell stays there, is told, and is mended by a rerun."""

import pytest
from commands import by_variant, done_files, records
from fake_distributions import Distributions
from matrices import STUDENT

pytestmark = pytest.mark.e2e

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    alone = Needs(teachers=0)
    return [MethodEntry(name="saboteur", target="{target}:Saboteur", version="1", needs=alone)]
"""
METHOD = """
import os
import time

from pydantic import Field

from kdbench.api import Method, MethodParams, Needs


class Saboteur(Method):
    class Params(MethodParams):
        act: str = Field("none")
        epoch: int = Field(0)

    needs = Needs(teachers=0)

    def loss(self, S, T, batch, run):
        loss = run.task.loss(S, batch)
        act = self.hp.act if run.epoch >= self.hp.epoch else "none"
        if act == "raise":
            raise ValueError("sabotage in the loss")
        if act == "exit":
            print("last words", flush=True)
            os._exit(7)
        if act == "hang":
            time.sleep(600)
        if act == "nan":
            return {"task": loss * float("nan")}
        if act == "memory":
            raise MemoryError("no room for 8 EiB")
        return {"task": loss}
"""
MENDED = METHOD.replace("act = self.hp.act if", "act = 'none' if")
STATUS = {"raise": "failed", "exit": "crashed", "hang": "timeout", "nan": "diverged", "memory": "oom"}


@pytest.fixture
def site(tmp_path):
    made = Distributions(tmp_path / "site")
    target = "saboteur_code"
    (made.path / f"{target}.py").write_text(METHOD)
    made.add("sabotage", ENTRIES.format(target=target))
    return made


def mend(site):
    (site.path / "saboteur_code.py").write_text(MENDED)


def test_failures_stay_in_their_cells(kdbench, tiny_matrix, site):
    acts = [{"name": "saboteur", "params": {"act": act}} for act in STATUS]
    matrix = tiny_matrix("acts", methods=[*acts, "vanilla"], pairs=[{"teacher": None, "student": STUDENT}])
    # the limit must let a healthy cell pass on a slow machine and end the one that hangs
    command = ("--set", "timeout_s=25")
    env = {"PYTHONPATH": str(site.path)}
    first = kdbench.run(matrix, *command, env=env)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    run = kdbench.cwd / "runs" / "acts"
    found = by_variant(run)
    assert {v: r["status"] for v, r in found.items()} == {
        **{f"saboteur(act={act})": status for act, status in STATUS.items()},
        "vanilla": "done",
    }
    errors = {act: found[f"saboteur(act={act})"]["error"] for act in STATUS}
    assert errors["raise"]["type"] == "ValueError"
    assert errors["raise"]["message"] == "ValueError: sabotage in the loss"
    assert "saboteur_code.py" in errors["raise"]["traceback"]
    assert "saboteur_code.py" in errors["memory"]["traceback"]
    assert "code 7" in errors["exit"]["message"]
    assert "last words" in errors["exit"]["message"]
    assert errors["hang"]["message"] == "stopped after the limit of 25 s"
    assert errors["nan"]["message"].startswith("diverged at step 1 (epoch 1 of phase 'main'): term ")
    told = [line for line in first.stdout.splitlines() if line.startswith(tuple(STATUS.values()))]
    assert len(told) == len(STATUS)
    for act, status in STATUS.items():
        assert any(line.startswith(f"{status}: saboteur(act={act})") and "log.txt" in line for line in told)
    assert "1 crashed, 1 diverged, 1 done, 1 failed, 1 oom, 1 timeout" in first.stdout
    board = (run / "board" / "README.md").read_text()
    assert "saboteur(act=raise)" in board
    assert "failed" in board

    kept = done_files(run)
    again = kdbench.run(matrix, *command, env=env)
    assert again.returncode == 1
    assert "nothing to do" in again.stdout
    mend(site)
    rerun = kdbench.run(matrix, *command, "--rerun", "failed", env=env)
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert {r["status"] for r in records(run).values()} == {"done"}
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    # the failed results were put aside, not thrown away
    assert len(list(run.glob("cells/*/previous/result-1.json"))) == len(STATUS)
    # the five mended variants now train alike
    assert len({r["weights_sha256"] for v, r in by_variant(run).items() if v != "vanilla"}) == 1


def test_students_of_a_failed_teacher(kdbench, tiny_matrix, site):
    matrix = tiny_matrix("orphans", methods=["kd", "vanilla"], teacher_method="saboteur")
    (site.path / "saboteur_code.py").write_text(METHOD.replace('Field("none")', 'Field("raise")'))
    env = {"PYTHONPATH": str(site.path)}
    first = kdbench.run(matrix, env=env)
    assert first.returncode == 1
    run = kdbench.cwd / "runs" / "orphans"
    found = {(r["labels"]["role"], r["labels"]["method"]): r for r in records(run).values()}
    teacher = found["teacher", "saboteur"]
    assert teacher["status"] == "failed"
    orphan = found["student", "kd"]
    assert orphan["status"] == "failed"
    assert orphan["error"]["message"] == f"its teacher cell {teacher['cell_id'][:12]} did not finish"
    assert found["student", "vanilla"]["status"] == "done"
    kept = done_files(run)
    (site.path / "saboteur_code.py").write_text(MENDED.replace('Field("none")', 'Field("raise")'))
    rerun = kdbench.run(matrix, "--rerun", "failed", env=env)
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert {r["status"] for r in records(run).values()} == {"done"}
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept


def test_failure_after_some_epochs_is_redone_from_the_start(kdbench, tiny_matrix, site):
    """A cell that failed by its own code starts from nothing; its mended run is that of any other run."""
    act = {"name": "saboteur", "params": {"act": "raise", "epoch": 1}}
    matrix = tiny_matrix("late", methods=[act], pairs=[{"teacher": None, "student": STUDENT}])
    env = {"PYTHONPATH": str(site.path)}
    assert kdbench.run(matrix, env=env).returncode == 1
    run = kdbench.cwd / "runs" / "late"
    assert len(list(run.glob("cells/*/checkpoint.safetensors"))) == 1
    mend(site)
    assert kdbench.run(matrix, "--rerun", "failed", env=env).returncode == 0
    (record,) = records(run).values()
    assert record["cost"]["attempts"] == 1
    assert record["cost"]["epochs"] == 2
    (curves,) = run.glob("cells/*/curves.jsonl")
    assert len(curves.read_text().splitlines()) == 2


def test_changed_code_is_told_and_rerun_on_request(kdbench, tiny_matrix, site):
    matrix = tiny_matrix("stale", methods=["saboteur"], pairs=[{"teacher": None, "student": STUDENT}])
    env = {"PYTHONPATH": str(site.path)}
    assert kdbench.run(matrix, env=env).returncode == 0
    run = kdbench.cwd / "runs" / "stale"
    kept = done_files(run)
    mend(site)
    noted = kdbench.run(matrix, env=env)
    assert noted.returncode == 0
    assert "1 finished cell(s) were made by other code" in noted.stderr
    assert done_files(run) == kept
    changed = kdbench.run(matrix, "--rerun", "changed", env=env)
    assert changed.returncode == 0, changed.stderr
    (name,) = kept
    (new,) = done_files(run).values()
    assert new != kept[name]
    (old,) = run.glob("cells/*/previous/result-1.json")
    assert old.read_bytes() == kept[name]
    assert "other code" not in kdbench.run(matrix, env=env).stderr
