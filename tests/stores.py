"""What an MLflow store says, without ids and times: to compare two stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def contents(uri: str, matrix: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return all of every active run of a matrix's experiment, by its kind and by what identifies it.

    Metrics are (step, value as text) by step.
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(f"kdbench/{matrix}")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {key_of(run): _content(client, run) for run in runs}
    assert len(found) == len(runs)
    return found


def key_of(run: Any) -> tuple[str, str]:
    """Return what a run stands for."""
    tags = run.data.tags
    kind = tags["kdbench.kind"]
    return kind, tags[
        {"cell": "kdbench.cell_id", "summary": "kdbench.row_id", "matrix": "kdbench.matrix"}[kind]
    ]


def _content(client: Any, run: Any) -> dict[str, Any]:
    run_id, tags = run.info.run_id, dict(run.data.tags)
    histories = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": tags,
        "metrics": {
            name: sorted(((m.step, str(m.value)) for m in history), key=lambda point: point[0])
            for name, history in histories.items()
        },
        "inputs": [
            (d.dataset.name, d.dataset.digest, d.dataset.source, [(t.key, t.value) for t in d.tags])
            for d in client.get_run(run_id).inputs.dataset_inputs
        ],
        "artifacts": {
            a.path: Path(client.download_artifacts(run_id, a.path)).read_bytes()
            for a in client.list_artifacts(run_id)
        },
    }
