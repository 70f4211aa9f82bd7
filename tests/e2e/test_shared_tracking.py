"""One MLflow server over PostgreSQL, and eight processes that write to it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from factories import make_record, write_run
from services import mlflow_server, postgres

from kdbench.results.digest import record_sha256

pytestmark = pytest.mark.e2e

WRITERS, CELLS = 8, 3

#: One import for all: eight of MLflow take longer than what is tested.
WRITE = """
import multiprocessing, sys
from kdbench.results.mlflow_sink import MlflowSink
from kdbench.results.sync import sync
MlflowSink.prepare()
url, *folders = sys.argv[1:]
context = multiprocessing.get_context("fork")
together = context.Barrier(len(folders))


def write(folder):
    together.wait()
    counts = sync(folder, MlflowSink(), uri=url)
    assert not counts.failed, counts.problems


writers = [context.Process(target=write, args=(folder,)) for folder in folders]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
sys.exit(max(writer.exitcode for writer in writers))
"""


def test_eight_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    """Each has cells of its own, and one that all of them have: a cell has one run in the end."""
    common = make_record(method="kd", seed=999)
    folders, records = [], {common["cell_id"]: common}
    for writer in range(WRITERS):
        own = [make_record(method="dkd", seed=100 * writer + k) for k in range(CELLS)]
        records |= {r["cell_id"]: r for r in own}
        (tmp_path / str(writer)).mkdir()
        folders.append(write_run(tmp_path / str(writer), [*own, common], name="shared"))
    with postgres() as store, mlflow_server(store, tmp_path) as url:
        line = [sys.executable, "-c", WRITE, url, *map(str, folders)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr

        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=url, registry_uri=url)
        (experiment,) = [e for e in client.search_experiments() if e.name == "kdbench/shared"]
        runs = [r for r in client.search_runs([experiment.experiment_id]) if "kdbench.cell_id" in r.data.tags]
        seen = [r.data.tags["kdbench.cell_id"] for r in runs]
        assert sorted(seen) == sorted(records)
        for run in runs:
            record = records[run.data.tags["kdbench.cell_id"]]
            assert run.info.status == "FINISHED"
            assert run.data.tags["kdbench.record_sha256"] == record_sha256(record)
            stored = client.download_artifacts(run.info.run_id, "result.json", str(tmp_path))
            assert json.loads(Path(stored).read_text())["cell_id"] == record["cell_id"]
