"""A planned cell, the plan, and what is on disk of a cell already."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.errors import KdbenchError, RecordError
from kdbench.matrix import CellSpec, LoadedMatrix
from kdbench.matrix.tune import DEFAULT
from kdbench.protocol.types import DataInfo
from kdbench.registry import Registry, code_digest
from kdbench.results.content import refuse_edited
from kdbench.results.store import RunFolder, read_record_dict


@dataclass
class Teaching:
    """What a cell takes from its teachers.

    Attributes:
        reads, views: as the method declares, see :class:`kdbench.hooks.Needs`.
        real_data: whether it reads training images.
        pooled: width of the pooled feature of each teacher, known once the networks were built.
    """

    info: DataInfo
    reads: str
    real_data: bool
    views: tuple[str, ...] = ()
    pooled: tuple[int, ...] = ()


@dataclass
class PlannedCell:
    """One cell of the plan. `status` is a record's status, ``to run``, ``interrupted`` or ``not_applicable``."""

    spec: CellSpec
    file: CellFile
    folder: Path
    status: str = "to run"
    reason: str | None = None
    after: list[str] = field(default_factory=list)
    stale: bool = False
    #: whether there is a record that cannot be read, or that is not as it was written
    damaged: bool = False
    #: images that it trains on in an epoch, and multiply-accumulates of a training step for one of them
    images: int | None = None
    macs: float | None = None
    #: what its record says of its cost: ``status``, ``cost``, ``device``, ``elapsed_s``; None without a record
    seen: Mapping[str, Any] | None = None
    teaching: Teaching | None = None

    @property
    def id(self) -> str:
        return self.file.cell_id

    def take_after(self, other: PlannedCell) -> None:
        """Take over what building the networks told of a cell with the same ones."""
        self.macs, self.images, self.teaching = other.macs, other.images, other.teaching
        if other.status == "not_applicable":
            self.status, self.reason = other.status, other.reason

    @property
    def label(self) -> str:
        """Short text for people: variant, pair and seed."""
        names = self.file.labels
        role = "" if names.role == "student" else f" ({names.role})"
        role += "" if names.track == DEFAULT else f" ({names.track})"
        return f"{names.variant} | {names.pair} | {names.dataset} | seed {names.seed}{role}"


@dataclass
class Plan:
    """All cells, teachers first. `notes` say what was settled for them."""

    matrix: LoadedMatrix
    run: RunFolder
    cells: list[PlannedCell]
    warnings: list[str]
    notes: list[str] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        return Counter(c.status for c in self.cells)


def look(cell: PlannedCell, registry: Registry) -> None:
    """Take the cell's status from what is on disk."""
    path = cell.folder / "result.json"
    if path.exists():
        try:
            record = read_record_dict(path)
            refuse_edited(record, path)
            if record["cell_id"] != cell.id:
                raise RecordError(f"{path}: cell_id is that of another cell")
        except KdbenchError as e:
            cell.damaged = True
            cell.reason = f"its record cannot be read and is set aside: {e}"
            return
        cell.status = record["status"]
        cell.seen = costs(record)
        cell.reason = (record.get("error") or {}).get("message")
        cell.stale = stale(record, registry, cell.file)
        if cell.status == "done" and not _has_artifacts(cell):
            cell.status, cell.reason = "to run", "its weights or route are needed again"
    elif (cell.folder / "checkpoint.safetensors").exists():
        cell.status = "interrupted"


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a forecast needs of a record."""
    device = (record.get("environment") or {}).get("device")
    seen = {"status": record["status"], "cost": record.get("cost"), "device": device, "elapsed_s": None}
    with contextlib.suppress(KeyError, ValueError):
        began, ended = (datetime.fromisoformat(record[key]) for key in ("started_at", "finished_at"))
        seen["elapsed_s"] = (ended - began).total_seconds()
    return seen


def stale(record: Mapping[str, Any], registry: Registry, file: CellFile) -> bool:
    """Whether other code of the method's plug-in made the record."""
    seen = (record.get("plugins") or {}).get("method") or {}
    now = code_digest(registry.get("methods", file.method).entry.target)
    return bool(seen.get("code")) and now is not None and seen["code"] != now


def _has_artifacts(cell: PlannedCell) -> bool:
    if cell.spec.role != "teacher" and not cell.file.keep_epochs:
        return True
    route = cell.folder / "route"
    names = [route / f"epoch-{e:04d}.safetensors" for e in cell.file.keep_epochs]
    return all(p.exists() for p in [cell.folder / "model.safetensors", *names])
