"""The teacher cache of a cell: what its teachers say of training images comes from tables on disk.

The values are those of the same forward in larger batches, rounded to the table's dtype, so they are close to the
online ones and not bit-equal. Whether a cell uses tables is therefore part of its id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.api import cache_dir
from kdbench.engine.cellspec import CellFile
from kdbench.engine.checkpoint import weights_bytes
from kdbench.engine.context import CellRun
from kdbench.engine.data.every_view import PIXELS, EveryView
from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.seeds import seeded
from kdbench.engine.taps import Site
from kdbench.engine.teacher_table import PART_ROWS, Shape, Table, Tables
from kdbench.engine.unchanged import Unchanged
from kdbench.matrix.identity import canonical_json
from kdbench.matrix.storage import size_text
from kdbench.measure.environment import capture
from kdbench.protocol.types import Feats, Out, Tap
from kdbench.results.store import atomic_write_json

#: Raised when a table of the same key would hold other numbers than before.
FORMAT = 2

#: What :attr:`kdbench.hooks.Needs.reads` makes necessary.
TABLES = {"logits": ("logits",), "pooled": ("logits", "pooled")}


class TableOut(Out):
    """What tables know of a batch. Raises RuntimeError for pooled features that were not declared."""

    def __init__(
        self, logits: Tensor, feats: dict[Tap, Tensor] | None = None, pooled: Tensor | None = None
    ) -> None:
        self.logits, self._pooled = logits, pooled
        self.feats = Feats() if feats is None else feats

    @property
    def pooled(self) -> Tensor:  # type: ignore[override]
        if self._pooled is None:
            raise RuntimeError(
                'a pooled feature of a teacher is read, and the method declares Needs(reads="logits"); '
                'declare reads="pooled"'
            )
        return self._pooled


@dataclass
class _Known:
    tables: Mapping[str, Table]
    unchanged: Unchanged


class Lookup:
    """Stands in for the teachers of a run; asks `beyond` where no table has the answer."""

    def __init__(
        self,
        run: CellRun,
        known: Mapping[NetHandle, _Known],
        beyond: Callable[[NetHandle, Tensor, tuple[Site, ...], bool], Captured | None] | None,
    ) -> None:
        self._run, self._known, self._beyond = run, known, beyond

    def __call__(self, handle: NetHandle, x: Tensor, sites: tuple[Site, ...], head: bool) -> Captured | None:
        got = None if sites else self._read(handle, x)
        if got is None and self._beyond is not None:
            return self._beyond(handle, x, sites, head)
        return got

    def _read(self, handle: NetHandle, x: Tensor) -> Captured | None:
        known, batch = self._known.get(handle), self._run.batch
        if known is None or batch is None or batch.origin is None:
            return None
        found = batch.origin.find(x)
        if found is None or not known.unchanged((self._run.phase_epochs, self._run.epoch)):
            return None
        self._run.answered += 1
        out = {name: table.read(*found) for name, table in known.tables.items()}
        return Captured(out["logits"], {}, out.get("pooled"), TableOut)


class TeacherCache:
    """Makes the tables of a cell's teachers, before its method may touch these, and puts them in place after.

    Attributes:
        fill_s: seconds that filling took; waiting for another process is not counted.
        notes: what a reader of the record should know.
    """

    def __init__(self, cell: CellFile, run: CellRun, every: EveryView | None) -> None:
        self.fill_s, self.notes = 0.0, list[str]()
        self._cell, self._run, self._every = cell, run, every
        self._seals = {handle: Unchanged(handle.net) for handle in run.teachers}

    def start(self, reads: str, stop: Callable[[], None]) -> None:
        """Open the tables, fill those that are missing, and let the run read them.

        Args:
            reads: what the method declared.
            stop: called now and then while filling; may raise.

        Raises KdbenchError when tables cannot be written.
        """
        every, dtype = self._every, self._cell.teacher_cache
        if every is None or dtype is None or reads not in TABLES:
            return
        known = {}
        for k, handle in enumerate(self._run.teachers):
            if not self._seals[handle](None):
                self.notes.append(f"{handle.name} was changed in setup, so its outputs are not cached")
                continue
            widths = {"logits": self._run.data.num_classes, "pooled": handle.num_features}
            shapes = {n: Shape(every.images, every.views, widths[n], dtype) for n in TABLES[reads]}
            folder = tables_folder() / table_key(self._cell, k, handle, every, self._run.device)[:32]
            tables = self._ready(Tables(folder, shapes, self._run.device), handle, every, stop)
            about = folder / "about.json"
            if not about.exists():  # for plans, which cannot make the key
                with contextlib.suppress(OSError):
                    atomic_write_json(about, self._cell.table_facts(k))
            known[handle] = _Known(tables, self._seals[handle])
        self._run.lookup = Lookup(self._run, known, self._run.lookup)

    def _ready(
        self, tables: Tables, handle: NetHandle, every: EveryView, stop: Callable[[], None]
    ) -> Mapping[str, Table]:
        found = tables.open()
        if found is not None:
            return found
        with tables.alone():
            missing = tables.missing()
            began = time.perf_counter()
            total = sum(tables.shapes[name].nbytes for name in missing)
            if missing:
                print(
                    f"filling {tables.folder}: {every.views} views x {every.images} images, {size_text(total)}",
                    flush=True,
                )
            try:
                return tables.fill(
                    lambda a, b: self._rows(handle, every, missing, a, b), lambda n: None, stop
                )
            finally:
                if missing:
                    self.fill_s += time.perf_counter() - began

    def _rows(
        self, handle: NetHandle, every: EveryView, names: Sequence[str], first: int, last: int
    ) -> list[Tensor]:
        """Forward every view of some images. The batches are the same for whoever fills: so are the numbers."""
        out: dict[str, list[Tensor]] = {name: [] for name in names}
        with seeded(0), torch.inference_mode(), self._run.amp():
            for x in every.batches(first, last):
                got = handle.capture(x, (), frozen=True)
                values = {"logits": got.logits, "pooled": got.pooled}
                for name in names:
                    value = values[name]
                    if value is None:
                        raise RuntimeError(f"{handle.name} has no pooled feature")
                    out[name].append(value)
        return [torch.cat(out[name]) for name in names]


def tables_folder() -> Path:
    """Return the folder of all tables; it may be removed when no cell runs."""
    return Path(cache_dir("teacher-tables"))


def table_key(cell: CellFile, k: int, handle: NetHandle, every: EveryView, device: torch.device) -> str:
    """Return the sha256 of all that the numbers of a table depend on: teacher, images, precision, machine."""
    source, recipe = cell.teachers[k], cell.recipe
    expected = handle.normalisation
    machine = ["device_name", "torch", "timm", "precision", "deterministic"]
    machine += ["threads"] if device.type == "cpu" else []
    here = capture(device, precision=recipe.precision, deterministic=recipe.deterministic, compiled="none")
    data = {key: cell.identity["dataset"][key] for key in ("name", "version", "revision", "args")}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "batches": [PART_ROWS, PIXELS],
        "teacher": {
            "weights": hashlib.sha256(weights_bytes(handle.net)).hexdigest(),
            "architecture": source.architecture.name,
            "args": source.architecture.args,
            "normalisation": None if expected is None else [list(expected.mean), list(expected.std)],
        },
        "task": cell.identity["task"],
        "data": data,
        "images": every.facts(),
        "dtype": cell.teacher_cache,
        "machine": {name: here[name] for name in machine},
    }
    return hashlib.sha256(canonical_json(json.loads(json.dumps(facts, default=str)))).hexdigest()
