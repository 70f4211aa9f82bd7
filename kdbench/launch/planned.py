"""A planned cell, the plan, and what is on disk of a cell already."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.errors import KdbenchError, RecordError
from kdbench.matrix import CellSpec, LoadedMatrix
from kdbench.matrix.identity import canonical_json
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


#: Stands for the seed in the text that ids are made of.
_SEED = "@ seed @"

#: Records of one pattern of which the plan remembers what they cost: more make no better forecast.
MOST_SEEN = 32


@dataclass(eq=False, slots=True)
class Pattern:
    """What cells have in common that differ in nothing but their seed; a plan of 100,000 cells has a few hundred.

    Attributes:
        spec, file: of one of the cells.
        cells: the folder of all cells' folders.
        after: ids of the cells that train its teachers.
        images: that it trains on in an epoch.
        macs: multiply-accumulates of a training step for one image.
        reason: why none of them can be, or None.
        seen: how many of its cells the plan remembers the costs of.
    """

    spec: CellSpec
    file: CellFile
    cells: Path
    after: list[str] = field(default_factory=list)
    images: int | None = None
    macs: float | None = None
    teaching: Teaching | None = None
    reason: str | None = None
    seen: int = 0
    _text: tuple[bytes, bytes] | None = None

    def id_of(self, seed: int) -> str:
        """Return the id of its cell with this seed."""
        if self._text is None:
            text = canonical_json({**self.file.identity, "seed": _SEED})
            before, _, after = text.partition(json.dumps(_SEED).encode())
            self._text = before, after
        before, after = self._text
        return hashlib.sha256(b"%s%d%s" % (before, seed, after)).hexdigest()


@dataclass(eq=False, slots=True)
class PlannedCell:
    """One cell of the plan. `status` is a record's status, ``to run``, ``interrupted`` or ``not_applicable``."""

    pattern: Pattern
    seed: int
    id: str
    status: str = "to run"
    reason: str | None = None
    stale: bool = False
    #: whether there is a record that cannot be read, or that is not as it was written
    damaged: bool = False
    #: what its record says of its cost: ``status``, ``cost``, ``device``, ``elapsed_s``; None without a record
    seen: Mapping[str, Any] | None = None
    #: fields of its file in which it differs from its pattern otherwise
    own: dict[str, Any] | None = None

    @property
    def file(self) -> CellFile:
        """The content of its ``cell.json``, made anew each time; :meth:`change` changes it."""
        file = self.pattern.file
        labels = file.labels.model_copy(update={"seed": self.seed})
        mine = {"cell_id": self.id, "seed": self.seed, "labels": labels}
        mine["identity"] = {**file.identity, "seed": self.seed}
        return file.model_copy(update={**mine, **(self.own or {})})

    def change(self, **fields: Any) -> None:
        """Change fields of its file, for this cell only."""
        self.own = {**(self.own or {}), **fields}

    @property
    def spec(self) -> CellSpec:
        return replace(self.pattern.spec, seed=self.seed)

    @property
    def folder(self) -> Path:
        return self.pattern.cells / self.id

    @property
    def after(self) -> list[str]:
        return self.pattern.after

    @property
    def images(self) -> int | None:
        return self.pattern.images

    @property
    def macs(self) -> float | None:
        return self.pattern.macs

    @property
    def teaching(self) -> Teaching | None:
        return self.pattern.teaching

    def take_after(self, other: PlannedCell) -> None:
        """Take over what building the networks told of a cell with the same ones."""
        mine, theirs = self.pattern, other.pattern
        mine.macs, mine.images, mine.teaching = theirs.macs, theirs.images, theirs.teaching
        mine.reason = mine.reason or theirs.reason
        if other.status == "not_applicable":
            self.status, self.reason = other.status, other.reason

    @property
    def label(self) -> str:
        """Short text for people: variant, pair and seed."""
        names = self.pattern.file.labels
        role = "" if names.role == "student" else f" ({names.role})"
        role += "" if names.track == DEFAULT else f" ({names.track})"
        return f"{names.variant} | {names.pair} | {names.dataset} | seed {self.seed}{role}"


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
        if cell.pattern.seen < MOST_SEEN:
            cell.pattern.seen += record["status"] == "done"
            cell.seen = costs(record)
        cell.reason = (record.get("error") or {}).get("message")
        cell.stale = stale(record, registry, cell.pattern.file)
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
    kept = (cell.own or {}).get("keep_epochs", [])
    if cell.pattern.spec.role != "teacher" and not kept:
        return True
    route = cell.folder / "route"
    names = [route / f"epoch-{e:04d}.safetensors" for e in kept]
    return all(p.exists() for p in [cell.folder / "model.safetensors", *names])
