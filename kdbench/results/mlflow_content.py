"""What goes to MLflow for one cell, or for the seeds of one row together. Imports no mlflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.results import mlflow_fields as fields
from kdbench.results.confusion import CONFUSION, by_class, read_confusion, table
from kdbench.results.digest import record_sha256
from kdbench.results.store import CURVES, RESULT, read_curves

#: Raised whenever equal records give other runs: what stands in a store with another number is written anew.
LAYOUT = 2
CURVES_CSV, PER_CLASS = "curves.csv", "per_class.csv"


@dataclass(frozen=True)
class RunContent:
    """One run as it is to be, without ids.

    Attributes:
        kind, key: ``cell`` and the cell id, or ``summary`` and the id of the row: what identifies the run.
        digest: of all that the run is made from; equal ones need not be written again.
        metrics: (name, value, step).
        begun, ended: milliseconds since 1970; None: now.
        dataset: name, digest and source of the data set.
        files: artifacts, as bytes or as the file that is to be copied.
    """

    kind: str
    key: str
    digest: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int]]
    status: str
    begun: int | None
    ended: int | None
    dataset: tuple[str, str, str]
    files: Mapping[str, bytes | Path]


def cell_content(record: Mapping[str, Any], folder: Path) -> RunContent:
    """Return the run of a cell. Raises RecordError when a file in its folder is broken."""
    curves = fields.curve_metrics(read_curves(folder), fields.primary_deployable(record))
    numbers = [(name, value, 0) for name, value in fields.final_metrics(record).items()]
    files: dict[str, bytes | Path] = {n: folder / n for n in (RESULT, CURVES) if (folder / n).is_file()}
    if curves:
        files[CURVES_CSV] = curves_csv(curves)
    found = read_confusion(folder) if record["status"] == "done" else None
    if found is not None:
        files[CONFUSION] = folder / CONFUSION
        files[PER_CLASS] = per_class_csv(*found)
    return RunContent(
        kind="cell",
        key=record["cell_id"],
        digest=record_sha256(record),
        name=fields.run_name(record),
        tags=fields.tags(record),
        params=fields.params(record),
        metrics=[*numbers, *curves],
        status=fields.run_status(record["status"]),
        begun=fields.epoch_ms(record.get("started_at")),
        ended=fields.epoch_ms(record.get("finished_at")),
        dataset=fields.dataset_input(record),
        files=files,
    )


def summary_content(summary: Mapping[str, Any]) -> RunContent:
    """Return the run of a row, given as :func:`kdbench.leaderboard.mirrored.row_summary` does."""
    labels = summary["labels"]
    tags = {
        "kdbench.protocol": summary["protocol"],
        "kdbench.status": "done" if summary["whole"] else "incomplete",
        "kdbench.role": labels["role"],
        "kdbench.matrix": labels["matrix"],
        "kdbench.fidelity": labels["fidelity"],
        "kdbench.track": labels.get("track") or "default",
        "kdbench.seeds": ", ".join(map(str, summary["seeds"])),
        **{f"kdbench.{name}": text for name, text in summary["notes"].items()},
    }
    params = fields.params(summary) | {"seed": "all"}
    metrics = {fields.key(k): v for k, v in summary["metrics"].items()}
    return RunContent(
        kind="summary",
        key=summary["row_id"],
        digest=summary_sha256(summary),
        name=fields.run_name(summary),
        tags={fields.key(k): str(v)[: fields.MAX_TAG_VALUE] for k, v in tags.items()},
        params=params,
        metrics=[(name, value, 0) for name, value in metrics.items()],
        status="FINISHED" if summary["whole"] else "FAILED",
        begun=fields.epoch_ms(summary["started_at"]),
        ended=fields.epoch_ms(summary["finished_at"]),
        dataset=fields.dataset_input(summary),
        files={},
    )


def summary_sha256(summary: Mapping[str, Any]) -> str:
    """Return the digest of a row's content."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def curves_csv(curves: Sequence[tuple[str, float, int]]) -> bytes:
    """Return curves as a table: a row for each epoch, a column for each metric under its name in MLflow."""
    names = sorted({name for name, _, _ in curves})
    values = {(name, epoch): value for name, value, epoch in curves}
    epochs = sorted({epoch for _, _, epoch in curves})
    return table([["epoch", *names], *([e, *(values.get((n, e)) for n in names)] for e in epochs)])


def per_class_csv(names: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Return the accuracy of each class as a table, in percent."""
    head = ["class", "images", "correct", "top1", "precision"]
    rows = [[c.name, c.images, c.correct, c.top1, c.precision] for c in by_class(names, counts)]
    return table([head, *rows])
