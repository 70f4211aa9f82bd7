"""kill -9 before each operation on files: whatever half of a thing is on disk, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import done_files
from fault_cases import EVERY, METHODS

pytestmark = pytest.mark.e2e

FAULT = "SIGKILL of a worker before a file operation"
PARENT = "SIGKILL of the parent before a file operation"


def kills(plan: Path) -> list[dict[str, Any]]:
    log = Path(f"{plan}.log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def rounds(
    cases: Any, check: Any, kdbench: Any, tmp_path: Path, first: int, step: int, *arguments: str
) -> None:
    """In each round every open cell dies before one operation of its life, in the next before a later one."""
    case = cases.get("methods", methods=METHODS) if EVERY else cases.get("few", methods=["crd", "ab"])
    plan = tmp_path / "plan.json"
    run = tmp_path / "runs" / case.name
    at = dict.fromkeys(case.expected, first)
    before: dict[str, bytes] = {}
    while True:
        plan.write_text(json.dumps({"role": "worker", "fault": FAULT, "at": at}))
        count = len(kills(plan))
        done = kdbench.run(case.matrix, *arguments, env={**case.env, "KDBENCH_TEST_MOMENTS": str(plan)})
        for cell in {kill["cell"] for kill in kills(plan)[count:]}:
            at[cell] += step
        after = done_files(run)
        assert {name: after[name] for name in before} == before
        before = after
        # the cells of a gang that died go on alone
        if len(kills(plan)) == count:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    check(case, run, before, kills(plan))


@pytest.mark.faults
def test_file_operations(cases: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """Before the second checkpoint's rename, and before that of the record."""
    rounds(cases, check, kdbench, tmp_path, 5, 1, "--gang", "off")


@pytest.mark.faults
@pytest.mark.parametrize("gang", ["off", "auto"])
def test_every_file_operation(cases: Any, check: Any, kdbench: Any, tmp_path: Path, gang: str) -> None:
    """From the first operation of a cell to the last."""
    rounds(cases, check, kdbench, tmp_path, 1, 1, "--gang", gang)


@pytest.mark.faults
def test_every_file_operation_of_the_parent(cases: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """It writes what a cell is to do before it starts, and nothing of a cell that ends well."""
    case = cases.get("few", methods=["crd", "ab"])
    plan = tmp_path / "plan.json"
    run = tmp_path / "runs" / case.name
    for number in range(1, 100):
        plan.write_text(json.dumps({"role": "parent", "fault": PARENT, "at": {"parent": number}}))
        env = {**case.env, "KDBENCH_TEST_MOMENTS": str(plan)}
        done = kdbench.run(case.matrix, env=env)
        if done.returncode != -9:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    check(case, run, {}, kills(plan))
