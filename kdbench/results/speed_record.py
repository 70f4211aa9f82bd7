"""Speed sheets as records, so that boards, MLflow and comparisons read what ``kdbench throughput`` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.matrix.identity import PROTOCOL, cell_id
from kdbench.registry import Registry, code_digest
from kdbench.results.schema import BatchSpeed, Deployable, Labels, Plugin, Record
from kdbench.results.speed import SpeedRow, SpeedSheet
from kdbench.results.store import RunFolder, write_record

#: Name of the network in a record without a trained one, and of what takes the place of a method.
NETWORK, METHOD = "student", "throughput"


def refuse_empty(sheet: SpeedSheet) -> None:
    """Raise KdbenchError with the first reason, MemoryError where it was memory, when no row was measured."""
    if any(row.status == "done" for row in sheet.rows):
        return
    first = sheet.rows[0]
    text = f"{first.model}: nothing could be measured: {first.message or first.status}"
    raise MemoryError(text) if first.status == "oom" else KdbenchError(text)


def speed_parts(sheet: SpeedSheet, model: str) -> dict[str, Any]:
    """Return the fields of a model's record that its rows in a sheet give.

    ``throughput`` has the inference at the first precision, where trained cells have theirs; ``speeds`` has all.
    """
    rows = [row for row in sheet.rows if row.model == model]
    precisions = sheet.settings.precisions
    plain = [r for r in rows if (r.mode, r.precision, r.status) == ("infer", precisions[0], "done")]
    facts = next((row for row in rows if row.params is not None), rows[0])
    bad = [row for row in rows if row.status != "done"]
    environment = dict(sheet.environment) | {
        "precision": ", ".join(precisions),
        "channels_last": sheet.settings.channels_last,
        "image_size": sheet.settings.image_size,
    }
    return {
        "primary": NETWORK,
        "deployables": {NETWORK: Deployable(last={}, params=facts.params or 0, macs=facts.macs)},
        "throughput": {NETWORK: {_size(row): _batch_speed(row) for row in plain}} if plain else {},
        "speeds": rows,
        "environment": environment,
        "warnings": [*sheet.warnings, *(f"{_name(row)}: {row.status}: {row.message}"[:300] for row in bad)],
        "started_at": sheet.started_at,
        "finished_at": sheet.finished_at,
    }


def sheet_records(sheet: SpeedSheet, plugins: dict[str, Plugin] | None = None) -> list[Record]:
    """Return a record for each model of a sheet of which at least one row was measured.

    What was measured how and on which hardware makes the cell id: the same again has the same id. `plugins` are
    the providers of the models, by model.
    """
    found = []
    for model in dict.fromkeys(row.model for row in sheet.rows if row.status == "done"):
        settings = sheet.settings
        how = settings.model_dump(mode="json", exclude={"models", "args", "threads"})
        where = {k: sheet.environment.get(k) for k in ("device", "device_name", "threads")}
        identity = {
            "protocol": PROTOCOL,
            "task": {"name": "classification", "version": ""},
            "method": {"name": METHOD},
            "student": {"name": model, "args": settings.args.get(model, {})},
            "dataset": {"name": "random", "args": {"image_size": settings.image_size}},
            "teachers": [],
            "throughput": {**how, "hardware": where},
            "seed": 0,
        }
        labels = Labels(
            matrix=METHOD,
            task="classification",
            dataset=f"random images, {settings.image_size} px",
            student=model,
            method=METHOD,
            variant=METHOD,
            recipe="none",
            seed=0,
        )
        parts = speed_parts(sheet, model)
        made = {"student": plugins[model]} if plugins and model in plugins else {}
        found.append(
            Record(
                cell_id=cell_id(identity),
                status="done",
                protocol=PROTOCOL,
                labels=labels,
                identity=identity,
                plugins=made,
                **parts,
            )
        )
    return found


def write_records(sheet: SpeedSheet, folder: Path, registry: Registry) -> int:
    """Write the records of a sheet into a run folder and return how many. Raises OSError.

    An earlier one of the same id is replaced.
    """
    plugins = {}
    for model in sheet.settings.models:
        found = registry.get("architectures", model)
        who, code = found.plugin, code_digest(found.entry.target)
        plugins[model] = Plugin(distribution=who.distribution, version=who.version, git=who.git, code=code)
    made, run = sheet_records(sheet, plugins), RunFolder(folder)
    for record in made:
        write_record(run.cell(record.cell_id), record, overwrite=True)
    if made and not (folder / "matrix.json").exists():
        run.write_matrix({"name": METHOD, "title": "Speed of networks", "protocol": PROTOCOL})
    return len(made)


def _size(row: SpeedRow) -> str:
    return str(row.batch_size)


def _name(row: SpeedRow) -> str:
    return f"{row.mode}, {row.precision}, batch {'auto' if row.found_by else row.batch_size or 'auto'}"


def _batch_speed(row: SpeedRow) -> BatchSpeed:
    return BatchSpeed(
        images_per_s=row.images_per_s or 0.0,
        latency_ms_p50=row.latency_ms_p50 or 0.0,
        latency_ms_p95=row.latency_ms_p95 or 0.0,
        iqr_ratio=row.iqr_ratio or 0.0,
        rounds=row.rounds,
        peak_memory_mb=row.peak_memory_mb,
    )
