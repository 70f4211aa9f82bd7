"""Code that misbehaves ends its own cell, with a status that says so, and a rerun without it gives the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import by_variant, done_files
from fault_cases import EVERY, Case

pytestmark = pytest.mark.e2e

#: What the saboteur does, the status that it leaves, and a part of the message.
ENDS = {
    "raise": ("failed", "ValueError: sabotage in the loss"),
    "setup": ("failed", "RuntimeError: sabotage in setup"),
    "exit": ("crashed", "code 7"),
    "child": ("crashed", "code 9"),
    "tensors": ("oom", ""),
    "objects": ("oom", "MemoryError"),
    "hang": ("timeout", "limit of"),
}
if EVERY:
    ENDS["deaf"] = ("timeout", "limit of")
#: What it does and lives, by the name of the cell.
LIVES = dict(zip(ENDS, ["print", "shout", "random", "dtype", "threads", "folder"], strict=False))
#: Must let a healthy cell pass on a slow machine, and end those that hang.
LIMIT_S = 15


def saboteurs(acts: Any) -> list[Any]:
    return [{"name": "saboteur", "params": {"name": name}} for name in acts]


def variant(act: str) -> str:
    return f"saboteur(name={act})"


@pytest.fixture
def badge(tmp_path: Path) -> Any:
    """A word on the command line of every process that a saboteur starts; none may be left."""
    word = f"kdbench-fault-{tmp_path.name}-{id(tmp_path)}"

    def left() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or [])]

    yield word, left
    for pid in left():
        psutil.Process(pid).kill()


@pytest.fixture
def case(cases: Any) -> Any:
    methods = [*saboteurs(ENDS), "importer", "kd"]
    return cases.get("acts", methods=methods, timeout_s=LIMIT_S)


def test_an_end_of_one_cell_is_its_own(
    case: Any, check: Any, kdbench: Any, tmp_path: Path, badge: Any
) -> None:
    word, left = badge
    acts = {name: name for name in ENDS} | {"importer": "import"}
    env = {**case.env, "KDBENCH_TEST_ACTS": json.dumps(acts), "KDBENCH_TEST_BADGE": word}
    first = kdbench.run(case.matrix, "--gang", "off", env=env)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    run = tmp_path / "runs" / case.name
    found = by_variant(run)
    told = {act: (found[variant(act)]["status"], found[variant(act)]["error"]["message"]) for act in ENDS}
    assert {act: status for act, (status, _) in told.items()} == {act: s for act, (s, _) in ENDS.items()}
    for act, (_, text) in ENDS.items():
        assert text in told[act][1], told[act]
    assert found["importer"]["status"] == "failed"
    assert found["importer"]["error"]["message"].endswith("ImportError: sabotage at import")
    assert found["importer"]["error"]["traceback"]
    assert found[variant("objects")]["error"]["traceback"]
    assert found["kd"]["status"] == "done"
    assert not left()
    before = done_files(run)
    again = kdbench.run(case.matrix, "--gang", "off", "--rerun", "failed", env=case.env)
    assert again.returncode == 0, again.stdout + again.stderr
    check(
        case, run, before, [{"fault": f"a method: {act}", "moment": "loss or setup"} for act in acts.values()]
    )


def test_what_a_method_does_to_its_process_stays_there(
    case: Any, check: Any, kdbench: Any, tmp_path: Path
) -> None:
    """Alone and among others: its neighbours in a gang give what they give alone."""
    env = {**case.env, "KDBENCH_TEST_ACTS": json.dumps(LIVES)}
    done = kdbench.run(case.matrix, "--gang", "auto", env=env)
    run = tmp_path / "runs" / case.name
    status = {v: r["status"] for v, r in by_variant(run).items()}
    # who asks for other numbers cannot multiply them with those that it has
    odd_one = next(name for name, act in LIVES.items() if act == "dtype")
    assert status == {**dict.fromkeys(status, "done"), variant(odd_one): "failed"}, done.stderr
    logs = [p.stat().st_size for p in run.glob("cells/*/log.txt")]
    assert max(logs) < 10 << 20
    found = {v: r["cell_id"] for v, r in by_variant(run).items()}
    cell_of = {act: found[variant(name)] for name, act in LIVES.items()}
    text = (run / "cells" / cell_of["print"] / "log.txt").read_bytes()
    assert text.startswith(b"0 xxx")
    assert b"left out: the log grew too long" in text
    assert b"\n1023 x" in text
    # who changes its own arithmetic gets another result, and nobody else does
    odd = {cell_of["random"], cell_of["dtype"], cell_of["threads"]}
    others = {cell: value for cell, value in case.expected.items() if cell not in odd}
    faults = [{"fault": f"a method: {act}", "moment": "in a gang"} for act in LIVES.values()]
    check(Case(case.matrix, case.env, others), run, {}, faults, ignore=odd)


@pytest.mark.gpu
def test_memory_of_a_gpu_runs_out(case: Any, kdbench: Any, tmp_path: Path) -> None:
    """The cell is `oom`, in a gang and alone; the others are done."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    run = tmp_path / "runs" / case.name
    env = {**case.env, "KDBENCH_TEST_ACTS": json.dumps({"raise": "cuda"})}
    done = kdbench.run(case.matrix, "--device", "cuda", env=env)
    assert done.returncode == 1, done.stderr
    status = {v: r["status"] for v, r in by_variant(run).items()}
    assert status == {**dict.fromkeys(status, "done"), variant("raise"): "oom"}
