"""A tracking server that is down costs nothing, and `kdbench sync` makes up for it."""

import json
import socket
from collections import Counter

import pytest
from commands import done_files, records
from stores import contents

pytestmark = pytest.mark.e2e


@pytest.fixture
def closed_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_tracking_down_then_sync(kdbench, tiny_matrix, closed_port):
    matrix = tiny_matrix("tracked")
    uri = f"http://127.0.0.1:{closed_port}"
    down = kdbench.run_here(matrix, "--tracking-uri", uri)
    assert down.returncode == 0, down.stderr
    warnings = [line for line in down.stderr.splitlines() if line.startswith("warning: sink 'mlflow'")]
    assert len(warnings) == 1
    assert "`kdbench sync runs/tracked` repairs it" in warnings[0]
    run = kdbench.cwd / "runs" / "tracked"
    kept = done_files(run)
    assert len(kept) == 2

    store = f"sqlite:///{kdbench.cwd / 'store.db'}"
    sync = kdbench.here("sync", "tracked", "--tracking-uri", store)
    assert sync.returncode == 0, sync.stderr
    assert "2 written, 0 unchanged, 0 failed" in sync.stdout
    again = kdbench.here("sync", "tracked", "--tracking-uri", store)
    assert "0 written, 2 unchanged, 0 failed" in again.stdout
    assert done_files(run) == kept

    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("kdbench/tracked")
    runs = client.search_runs([experiment.experiment_id])
    by_cell = {r.data.tags["kdbench.cell_id"]: r for r in runs if "kdbench.cell_id" in r.data.tags}
    assert set(by_cell) == set(records(run))
    for cell, found in by_cell.items():
        curves = (run / "cells" / cell / "curves.jsonl").read_text().splitlines()
        losses = [json.loads(line)["train"]["loss"] for line in curves]
        history = client.get_metric_history(found.info.run_id, "train/loss")
        assert [m.value for m in sorted(history, key=lambda m: m.step)] == pytest.approx(losses)
        assert found.data.metrics["final/top1"] == pytest.approx(
            records(run)[cell]["deployables"]["student"]["last"]["top1"]
        )
        assert found.info.status == "FINISHED"


def test_wrong_tracking_uri(kdbench, tiny_matrix):
    done = kdbench.run_here(tiny_matrix("typo", seeds=1), "--tracking-uri", "sqlit:///x.db")
    assert done.returncode == 0, done.stderr
    assert "warning: sink 'mlflow' is off" in done.stderr
    assert len(done_files(kdbench.cwd / "runs" / "typo")) == 2


def test_the_default_store_says_what_an_empty_one_says_after_sync(kdbench, tiny_matrix):
    done = kdbench.run_here(tiny_matrix("plain", methods=["vanilla", "kd"]), "--sink", "mlflow")
    assert done.returncode == 0, done.stderr
    live = f"sqlite:///{kdbench.cwd / 'mlflow.db'}"
    sync = kdbench.here("sync", "plain")
    assert "0 written, 3 unchanged, 0 failed" in sync.stdout

    said = contents(live, "plain")
    kinds = Counter(kind for kind, _ in said)
    assert kinds == {"cell": 3, "summary": 3, "matrix": 1}
    (matrix,) = (run for (kind, _), run in said.items() if kind == "matrix")
    assert "system/cpu_utilization_percentage" in matrix["metrics"]
    (kd,) = (run for (kind, _), run in said.items() if kind == "cell" and run["params"]["method"] == "kd")
    assert set(kd["artifacts"]) == {
        "confusion.csv", "curves.csv", "curves.jsonl", "per_class.csv", "result.json"
    }  # fmt: skip
    assert kd["inputs"]

    empty = f"sqlite:///{kdbench.cwd / 'empty.db'}"
    sync = kdbench.here("sync", "plain", "--tracking-uri", empty)
    assert "3 written, 0 unchanged, 0 failed" in sync.stdout
    rebuilt = contents(empty, "plain")
    (invocation,) = (run for (kind, _), run in rebuilt.items() if kind == "matrix")
    assert invocation["tags"].pop("kdbench.made_by") == "sync"
    assert rebuilt == said
