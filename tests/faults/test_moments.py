"""kill -9 before each operation on files: whatever half of a thing is on disk, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import done_files
from conftest import EVERY, METHODS

pytestmark = pytest.mark.e2e

FAULT = "kill -9 of a worker before a file operation"


def kills(plan: Path) -> list[dict[str, Any]]:
    log = Path(f"{plan}.log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("gang", ["off", "auto"])
def test_every_file_operation(cases: Any, check: Any, kdbench: Any, tmp_path: Path, gang: str) -> None:
    """In each round every open cell dies before the next operation of its life, until it is done."""
    case = cases.get("methods", methods=METHODS)
    plan = tmp_path / "plan.json"
    run = tmp_path / "runs" / case.name
    at = dict.fromkeys(case.expected, 1)
    before: dict[str, bytes] = {}
    step = 1 if EVERY else 5
    while True:
        plan.write_text(json.dumps({"role": "worker", "fault": FAULT, "at": at}))
        count = len(kills(plan))
        env = {**case.env, "KDBENCH_TEST_MOMENTS": str(plan)}
        done = kdbench.run(case.matrix, "--gang", gang, env=env)
        for cell in {kill["cell"] for kill in kills(plan)[count:]}:
            at[cell] += step
        after = done_files(run)
        assert {name: after[name] for name in before} == before
        before = after
        if done.returncode == 0:
            break
        assert len(kills(plan)) > count, done.stdout + done.stderr
    check(case, run, before, kills(plan))
