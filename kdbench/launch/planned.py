"""A planned cell, and the plan."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.matrix import CellSpec, LoadedMatrix
from kdbench.matrix.identity import canonical_json
from kdbench.matrix.tune import DEFAULT
from kdbench.protocol.types import DataInfo
from kdbench.results.store import RunFolder


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
