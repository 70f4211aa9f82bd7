"""What the harness costs beside training and evaluation, on the quickstart as a user runs it. Goal: 8 %.

The command runs in a process of its own with its defaults, MLflow on a new store included; planning is from
nothing, too. The share is 1 - (training + evaluation) / (workers x wall). Parts, in seconds of one worker:

- ``before``: until the first cell starts: Python, planning, the fork server, MLflow;
- ``setup``: of cells, until their first step; ``checkpoints``: with curves;
- ``measuring``: what the matrix asks for beside training: inference speed, the teacher's share, agreement, with
  the waiting for turns; and what starting and ending processes takes;
- ``idle``: workers that have nothing left to start while others train; with gangs it is in ``measuring``;
- ``after``: from the last cell's end: MLflow, the board, the table.

``KDBENCH_BENCH_EPOCHS=2`` shortens it; the shares are then those of a shorter training.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from kdbench.measure.cores import cores


@pytest.mark.timeout(1800)
def test_share_of_the_harness(benchmark, tmp_path):
    epochs = os.environ.get("KDBENCH_BENCH_EPOCHS")
    line = [sys.executable, "-m", "kdbench", "run-matrix", "quickstart"]
    line += ["--set", f"recipe.epochs={epochs}"] if epochs else []
    seen = []

    def go():
        environment = {**os.environ, "KDBENCH_CACHE": str(tmp_path / "cache")}
        environment.pop("MLFLOW_TRACKING_URI", None)
        began = time.monotonic()
        with subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as p:
            for text in p.stderr:
                seen.append((time.monotonic() - began, text))
        assert p.returncode == 0, "".join(text for _, text in seen)
        return time.monotonic() - began

    wall = benchmark.pedantic(go, rounds=1)
    paths = sorted((tmp_path / "runs" / "quickstart" / "cells").glob("*/result.json"))
    costs = [json.loads(path.read_text())["cost"] for path in paths]
    assert len(costs) == 16
    workers = min(cores(), len(costs))
    # what a gang does once for all is on every clock; it was done once
    trained = sum(c["train_s"] + c["eval_s"] - (c.get("shared_s") or 0.0) for c in costs)
    starts = [at for at, text in seen if text.startswith("start ")]
    ends = [at for at, text in seen if text.startswith("done ")]
    parts = {
        "before": workers * starts[0],
        "setup": sum(c["setup_s"] for c in costs),
        "checkpoints": sum(c["log_s"] for c in costs),
        # the others have been idle since their own last cells ended; cells of a gang end together
        "idle": 0.0 if _gangs(seen) else sum(ends[-1] - at for at in sorted(ends)[-workers:]),
        "after": workers * (wall - ends[-1]),
    }
    parts["measuring"] = workers * wall - trained - sum(parts.values())
    share = 1 - trained / (workers * wall)
    shares = {name: seconds / (workers * wall) for name, seconds in parts.items()}
    without = share - shares["measuring"] - shares["idle"]
    benchmark.extra_info |= {"share": share, "share_of_harness": without, "wall_s": wall, "parts": shares}
    print(f"\nbeside training and evaluation: {share:.1%} of {wall:.1f} s x {workers} workers")
    print(f"start-up, planning, set-up, checkpoints, records, MLflow: {without:.1%}")
    print(", ".join(f"{name} {value:.1%}" for name, value in shares.items()))
    # the goal is 8 %; the bound leaves room for a machine that is busy
    assert without < 0.2


def _gangs(seen):
    return any(" share batches and teacher" in text for _, text in seen)
