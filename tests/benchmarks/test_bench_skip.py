"""The whole command on a matrix of 1,000 finished cells: planning and skipping. Goal: 2 s."""

import json
import os
import subprocess
import sys

import pytest
from factories import make_record
from matrices import write_matrix

from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, write_record

SEEDS, VARIANTS = 50, 20
CELLS = SEEDS * VARIANTS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a matrix file and a run in which every cell is done."""
    folder = tmp_path_factory.mktemp("skip")
    variants = [{"name": "dkd", "params": {"beta": 1.0 + k}} for k in range(VARIANTS)]
    matrix = write_matrix(folder / "skip.yaml", name="skip", methods=variants, seeds=SEEDS)
    run = RunFolder(folder / "runs" / "skip")
    plan = Planner(Registry.load(), load_matrix(str(matrix)), run, ()).plan()
    assert len(plan.cells) == CELLS + 1
    for cell in plan.cells:
        record = make_record(
            cell_id=cell.id,
            identity=cell.file.identity,
            labels=cell.file.labels.model_dump(),
            plugins={"method": {"code": None}},
        )
        write_record(cell.folder, Record.model_validate(record))
        (cell.folder / "model.safetensors").write_bytes(b"")
    return folder


def test_skip_1000_finished_cells(benchmark, finished):
    command = [sys.executable, "-m", "kdbench", "run-matrix", "skip.yaml", "--sink", "none"]

    def skip():
        return subprocess.run(
            command, cwd=finished, env=os.environ, capture_output=True, text=True, check=False
        )

    done = benchmark.pedantic(skip, rounds=5, warmup_rounds=1)
    assert done.returncode == 0, done.stderr
    assert f"nothing to do, {CELLS + 1} done" in done.stdout
    assert done.stderr == ""
    assert len(list((finished / "runs" / "skip" / "cells").iterdir())) == CELLS + 1
    assert json.loads(next(finished.glob("runs/skip/cells/*/result.json")).read_text())["status"] == "done"
    if benchmark.enabled:
        assert benchmark.stats.stats.median < 2.0
