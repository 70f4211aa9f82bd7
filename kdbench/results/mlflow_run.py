"""Writing one run to MLflow, in as few calls as it takes."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.results.mlflow_content import LAYOUT, RunContent
from kdbench.results.tracking import one_line

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

#: MLflow takes 1,000 entities, 1,000 metrics, 100 params and 100 tags in one batch.
_METRICS_PER_BATCH = 800
_PARAMS_PER_BATCH = 100
#: For what fails when another writer does the same at the same time.
_ATTEMPTS = 3
#: Kind of run -> the tags with what identifies it and with the digest of its content.
IDENTITY = {
    "cell": ("kdbench.cell_id", "kdbench.record_sha256"),
    "summary": ("kdbench.row_id", "kdbench.summary_sha256"),
}


def write_run(
    client: MlflowClient, uri: str, experiment_id: str, content: RunContent
) -> tuple[str, list[str]]:
    """Write a run; return its id and a line for each artifact that could not be stored.

    Whatever the store raises is raised; the run that was begun is then deleted.
    """
    tags = {**content.tags, **identifying_tags(content)}
    first = dict(list(tags.items())[:_PARAMS_PER_BATCH])
    run = client.create_run(experiment_id, start_time=content.begun, tags=first, run_name=content.name)
    run_id = str(run.info.run_id)
    try:
        _log_numbers(client, run_id, content, {k: v for k, v in tags.items() if k not in first})
        _log_dataset(client, run_id, content)
        warnings = _log_files(uri, run, content)
        # a run counts as complete by its ended status alone, so this comes last
        client.set_terminated(run_id, content.status, end_time=content.ended)
    except BaseException:
        with contextlib.suppress(Exception):
            client.delete_run(run_id)
        raise
    return run_id, warnings


def identifying_tags(content: RunContent) -> dict[str, str]:
    """Return the tags by which a run is found again, whatever it is called."""
    key, digest = IDENTITY[content.kind]
    return {
        key: content.key,
        digest: content.digest,
        "kdbench.kind": content.kind,
        "kdbench.layout": str(LAYOUT),
    }


def log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
    """Add metrics, (name, value, step, milliseconds since 1970), to a run."""
    from mlflow.entities import Metric

    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        part = metrics[start : start + _METRICS_PER_BATCH]
        client.log_batch(run_id, [Metric(name, value, at, step) for name, value, step, at in part])


def _log_numbers(client: MlflowClient, run_id: str, content: RunContent, tags: dict[str, str]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    when = content.ended or now_ms()
    metrics = [Metric(name, value, when, step) for name, value, step in content.metrics]
    params = [Param(k, v) for k, v in content.params.items()]
    more = [RunTag(k, v) for k, v in tags.items()]
    while metrics or params or more:
        client.log_batch(
            run_id,
            metrics=metrics[:_METRICS_PER_BATCH],
            params=params[:_PARAMS_PER_BATCH],
            tags=more[:_PARAMS_PER_BATCH],
        )
        del metrics[:_METRICS_PER_BATCH], params[:_PARAMS_PER_BATCH], more[:_PARAMS_PER_BATCH]


def _log_dataset(client: MlflowClient, run_id: str, content: RunContent) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest, source = content.dataset
    dataset = Dataset(name=name, digest=digest, source_type="code", source=source)
    context = [InputTag("mlflow.data.context", "training")]
    for attempt in range(_ATTEMPTS):
        try:
            client.log_inputs(run_id, datasets=[DatasetInput(dataset, context)])
            return
        except Exception:
            # MLflow looks for the data set, then inserts it: of writers that come first together one fails
            if attempt + 1 == _ATTEMPTS:
                raise


def _log_files(uri: str, run: Run, content: RunContent) -> list[str]:
    if not content.files:
        return []
    # the client's own log_artifacts would ask the store for the run again
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        with tempfile.TemporaryDirectory(prefix="kdbench-") as staged:
            for name, file in content.files.items():
                if isinstance(file, bytes):
                    (Path(staged) / name).write_bytes(file)
                else:
                    shutil.copyfile(file, Path(staged) / name)
            get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).log_artifacts(staged)
    except Exception as error:
        warning = f"MLflow: artifacts of run {run.info.run_id} were not stored: {one_line(error)}"
        log.warning("%s", warning)
        return [warning]
    return []


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    import time

    return time.time_ns() // 1_000_000
