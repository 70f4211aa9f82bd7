"""A speed sheet in MLflow: experiment ``kdbench/throughput``, a run for each sheet, one below for each model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

from kdbench.results import mlflow_fields as fields
from kdbench.results.mlflow_sink import MlflowSink
from kdbench.results.speed import SpeedRow, SpeedSheet

EXPERIMENT = "throughput"


def log_sheet(sheet: SpeedSheet, *, uri: str | None = None) -> str:
    """Write a sheet to MLflow, once; return the id of its run. Raises SinkError."""
    sink = _SheetSink()
    sink.open({"name": EXPERIMENT}, uri=uri)
    try:
        return sink.log(sheet)
    finally:
        sink.close("done")


def model_metrics(rows: list[SpeedRow]) -> dict[str, float]:
    """Return the metrics of one model at one precision.

    Named as those of records: ``perf/infer_images_per_s_b64``, with ``auto`` for a batch size that was found.
    """
    out: dict[str, float | None] = {}
    for row in rows:
        size = "auto" if row.found_by else str(row.batch_size)
        out["model/params"], out["model/macs"] = row.params, row.macs
        if row.status != "done":
            continue
        prefix = "perf/" if row.mode == "infer" else "perf/train_"
        out[f"perf/{row.mode}_images_per_s_b{size}"] = row.images_per_s
        for name in ("latency_ms_p50", "latency_ms_p95", "peak_memory_mb", "iqr_ratio", "batch_size"):
            out[f"{prefix}{name}_b{size}"] = getattr(row, name)
    return {fields.key(name): float(value) for name, value in out.items() if value is not None}


class _SheetSink(MlflowSink):
    def log(self, sheet: SpeedSheet) -> str:
        """Write the runs of a sheet; one that is there already is left alone."""
        client = self._ready()
        digest = hashlib.sha256(sheet.model_dump_json().encode()).hexdigest()
        made: list[str] = []
        with self._told():
            found = client.search_runs([self._experiment_id], f"tags.`kdbench.sheet_sha256` = '{digest}'")
            if found:
                return str(found[0].info.run_id)
            try:
                return self._write(sheet, digest, made)
            except BaseException:
                for run_id in made:
                    with contextlib.suppress(Exception):
                        client.delete_run(run_id)
                raise

    def _write(self, sheet: SpeedSheet, digest: str, made: list[str]) -> str:
        from mlflow.entities import Metric, Param

        client = self._ready()
        began, ended = fields.epoch_ms(sheet.started_at), fields.epoch_ms(sheet.finished_at)
        environment = {f"env.{k}": str(v) for k, v in sheet.environment.items() if v is not None}

        def create(name: str, tags: Mapping[str, str]) -> str:
            run = client.create_run(
                self._experiment_id, run_name=name, start_time=began, tags={**tags, **environment}
            )
            made.append(str(run.info.run_id))
            return made[-1]

        name = str(sheet.environment.get("device_name") or EXPERIMENT)
        parent = create(name, {"kdbench.role": "sheet", "kdbench.sheet_sha256": digest})
        for (model, precision), rows in _by_model(sheet).items():
            run = create(f"{model} {precision}", {"kdbench.role": "speed", "mlflow.parentRunId": parent})
            params = {"model": model, "precision": precision, **_shared_params(sheet)}
            metrics = [Metric(k, v, ended or 0, 0) for k, v in model_metrics(rows).items()]
            client.log_batch(run, metrics=metrics, params=[Param(k, v) for k, v in params.items()])
            whole = all(row.status == "done" for row in rows)
            client.set_terminated(run, "FINISHED" if whole else "FAILED", end_time=ended)
        client.log_dict(parent, sheet.model_dump(mode="json"), "sheet.json")
        client.set_terminated(parent, "FINISHED", end_time=ended)
        return parent


def _by_model(sheet: SpeedSheet) -> Mapping[tuple[str, str], list[SpeedRow]]:
    groups: dict[tuple[str, str], list[SpeedRow]] = {}
    for row in sheet.rows:
        groups.setdefault((row.model, row.precision), []).append(row)
    return groups


def _shared_params(sheet: SpeedSheet) -> dict[str, Any]:
    names = ("image_size", "num_classes", "channels_last", "threads", "rounds")
    return {name: str(getattr(sheet.settings, name)) for name in names}
