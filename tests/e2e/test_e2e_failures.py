"""What goes wrong in one cell stays there, is told, and is mended by a rerun."""

import pytest
from commands import by_variant, done_files, records
from fake_distributions import Distributions, unique_module
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
        if act == "nan":
            return {"task": loss * float("nan")}
        if act == "memory":
            raise MemoryError("no room for 8 EiB")
        return {"task": loss}
"""
MENDED = METHOD.replace("act = self.hp.act if", "act = 'none' if")
STATUS = {"raise": "failed", "exit": "crashed", "nan": "diverged", "memory": "oom"}


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Distributions(tmp_path / "site")
    monkeypatch.syspath_prepend(made.path)
    made.code = made.path / f"{unique_module('saboteur_code')}.py"
    made.code.write_text(METHOD)
    made.add("sabotage", ENTRIES.format(target=made.code.stem))
    return made


def mend(site):
    site.code.write_text(MENDED)


def test_failures_stay_in_their_cells(kdbench, tiny_matrix, site):
    """One that hangs is in tests/faults/test_acts.py."""
    acts = [{"name": "saboteur", "params": {"act": act}} for act in STATUS]
    late = {"name": "saboteur", "params": {"act": "raise", "epoch": 1}, "label": "late"}
    matrix = tiny_matrix(
        "acts", methods=[*acts, late, "vanilla"], pairs=[{"teacher": None, "student": STUDENT}]
    )
    first = kdbench.run_here(matrix)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    run = kdbench.cwd / "runs" / "acts"
    found = by_variant(run)
    assert {v: r["status"] for v, r in found.items()} == {
        **{f"saboteur(act={act})": status for act, status in STATUS.items()},
        "late": "failed",
        "vanilla": "done",
    }
    errors = {act: found[f"saboteur(act={act})"]["error"] for act in STATUS}
    assert errors["raise"]["type"] == "ValueError"
    assert errors["raise"]["message"] == "ValueError: sabotage in the loss"
    assert site.code.name in errors["raise"]["traceback"]
    assert site.code.name in errors["memory"]["traceback"]
    assert "code 7" in errors["exit"]["message"]
    assert "last words" in errors["exit"]["message"]
    assert errors["nan"]["message"].startswith("diverged at step 1 (epoch 1 of phase 'main'): term ")
    told = [line for line in first.stdout.splitlines() if line.startswith(tuple(STATUS.values()))]
    assert len(told) == len(STATUS) + 1
    for act, status in STATUS.items():
        assert any(line.startswith(f"{status}: saboteur(act={act})") and "log.txt" in line for line in told)
    assert "1 crashed, 1 diverged, 1 done, 2 failed, 1 oom" in first.stdout
    board = (run / "board" / "README.md").read_text()
    assert "saboteur(act=raise)" in board
    assert "failed" in board

    assert len(list(run.glob("cells/*/checkpoint.safetensors"))) == 1  # of the one that had an epoch
    kept = done_files(run)
    again = kdbench.run_here(matrix)
    assert again.returncode == 1
    assert "nothing to do" in again.stdout
    mend(site)
    rerun = kdbench.run_here(matrix, "--rerun", "failed")
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert {r["status"] for r in records(run).values()} == {"done"}
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    # the failed results were put aside, not thrown away
    assert len(list(run.glob("cells/*/previous/result-1.json"))) == len(STATUS) + 1
    # the mended variants now train alike, each from nothing, whether it had an epoch or not
    mended = {v: r for v, r in by_variant(run).items() if v != "vanilla"}
    assert len({r["weights_sha256"] for r in mended.values()}) == 1
    for record in mended.values():
        assert (record["cost"]["attempts"], record["cost"]["epochs"]) == (1, 2)
        curves = run / "cells" / record["cell_id"] / "curves.jsonl"
        assert len(curves.read_text().splitlines()) == 2


def test_students_of_a_failed_teacher(kdbench, tiny_matrix, site):
    matrix = tiny_matrix("orphans", methods=["kd", "vanilla"], teacher_method="saboteur")
    site.code.write_text(METHOD.replace('Field("none")', 'Field("raise")'))
    first = kdbench.run_here(matrix)
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
    site.code.write_text(MENDED.replace('Field("none")', 'Field("raise")'))
    rerun = kdbench.run_here(matrix, "--rerun", "failed")
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert {r["status"] for r in records(run).values()} == {"done"}
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept


def test_changed_code_is_told_and_rerun_on_request(kdbench, tiny_matrix, site):
    matrix = tiny_matrix("stale", methods=["saboteur"], pairs=[{"teacher": None, "student": STUDENT}])
    env = {"PYTHONPATH": str(site.path)}  # in processes that have not imported the code yet
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
