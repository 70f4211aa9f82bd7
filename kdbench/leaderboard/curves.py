"""Learning curves that a board keeps: ``curves/<cell id>.csv`` beside ``records/``, a few hundred bytes each.

Records hold no curves, so a board that wants them keeps this extract of the run folder's ``curves.jsonl``. They
are drawn on the site and are in none of the files that ``kdbench leaderboard check`` compares.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import RecordError
from kdbench.results.store import (
    RunFolder,
    atomic_write_bytes,
    read_curves,
    read_limited,
    refuse_link,
)

if TYPE_CHECKING:
    from kdbench.results.schema import Record

#: Name in the files -> where ``curves.jsonl`` has it. Loss is the method's own sum; accuracies are percent.
COLUMNS = ("train_loss", "val_top1", "test_top1")
_HEAD = ",".join(("epoch", *COLUMNS))
_NAME = re.compile(r"[0-9a-f]{64}\.csv\Z")
#: Largest curves file that is read, in bytes: 4,000 epochs.
_MAX_BYTES = 128 * 1024
#: Values beyond these would overflow in the sums and scales of a plot.
_LARGEST, _MAX_EPOCH = 1e100, 10**9
#: Most points of a drawn curve; longer ones are thinned.
MAX_POINTS = 80


@dataclass(frozen=True)
class Curve:
    """The curves of one cell: epochs counted from 1, and for each column its values (None: not measured)."""

    epochs: tuple[int, ...]
    columns: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Band:
    """One column over the seeds of a row: mean, lowest and highest at each epoch that every seed has."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def extract(rows: Sequence[Mapping[str, Any]], primary: str | None) -> Curve | None:
    """Return the curves of a cell from the rows of its ``curves.jsonl``; None where nothing can be drawn.

    `primary` is the deployed network whose accuracies are taken. Values that are not finite are left out.
    """
    epochs: list[int] = []
    found: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
    for row in rows:
        epoch = row.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= _MAX_EPOCH:
            continue
        evals = _mapping(row.get("eval"))
        net = _mapping(evals.get(primary) if primary in evals else next(iter(evals.values()), None))
        epochs.append(epoch)
        found["train_loss"].append(_finite(_mapping(row.get("train")).get("loss")))
        found["val_top1"].append(_finite(net.get("val/top1")))
        found["test_top1"].append(_finite(net.get("test/top1")))
    if not any(value is not None for values in found.values() for value in values):
        return None
    return Curve(tuple(epochs), {name: tuple(values) for name, values in found.items()})


def dump(curve: Curve) -> bytes:
    """Return the file of a curve: six significant digits, empty where nothing was measured."""
    lines = [_HEAD]
    for at, epoch in enumerate(curve.epochs):
        values = (curve.columns[name][at] for name in COLUMNS)
        lines.append(",".join([str(epoch), *("" if v is None else f"{v:.6g}" for v in values)]))
    return ("\n".join(lines) + "\n").encode()


def parse(data: bytes, where: str | Path) -> Curve:
    """Read the file of a curve. Raises RecordError: it may come from a stranger."""
    lines = data.decode("ascii", "replace").splitlines()
    if not lines or lines[0] != _HEAD:
        raise RecordError(f"{where}: line 1: expected {_HEAD}")
    epochs: list[int] = []
    found: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        try:
            if len(cells) != 1 + len(COLUMNS):
                raise ValueError
            epoch = int(cells[0])
            values = [float(c) if c else None for c in cells[1:]]
            if not 0 <= epoch <= _MAX_EPOCH or any(v is not None and not abs(v) <= _LARGEST for v in values):
                raise ValueError
        except ValueError:
            raise RecordError(f"{where}: line {number}: expected an epoch and finite numbers") from None
        epochs.append(epoch)
        for name, value in zip(COLUMNS, values, strict=True):
            found[name].append(value)
    if epochs != sorted(set(epochs)):
        raise RecordError(f"{where}: epochs must rise")
    return Curve(tuple(epochs), {name: tuple(values) for name, values in found.items()})


def copy_curve(cell: Path, record: Record, board: Path) -> None:
    """Keep the curves of a cell's folder in ``curves/`` of a board; a cell without any has none there.

    Raises OSError, RecordError where ``curves`` is a link.
    """
    refuse_link(board / "curves")
    path = board / "curves" / f"{record.cell_id}.csv"
    curve = cell_curve(cell, record.primary)
    if curve is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, dump(curve))


def cell_curve(cell: Path, primary: str | None) -> Curve | None:
    """Return the curves of a cell's folder; None where it has none, or broken ones: no result depends on them."""
    try:
        return extract(read_curves(cell), primary)
    except RecordError:
        return None


def run_curves(run_folder: Path, records: Iterable[Record]) -> dict[str, Curve]:
    """Return the curves of a run folder's cells by cell id."""
    run = RunFolder(run_folder)
    found = {r.cell_id: cell_curve(run.cell(r.cell_id), r.primary) for r in records}
    return {cell_id: curve for cell_id, curve in found.items() if curve is not None}


def read_board_curves(
    folder: Path, cell_ids: Iterable[str], problems: list[str] | None = None
) -> dict[str, Curve]:
    """Read ``curves/*.csv`` of a board by cell id.

    Each problem is appended to `problems`; without that list the first is raised as RecordError.
    """
    known, found = set(cell_ids), {}
    curves = folder / "curves"
    try:
        refuse_link(curves)
    except RecordError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return {}
    for name in sorted(os.listdir(curves)) if curves.is_dir() else []:
        path = curves / name
        try:
            if not _NAME.match(name) or name[:-4] not in known:
                raise RecordError(f"{path}: expected a file named <cell id>.csv of a record of this board")
            refuse_link(path)
            found[name[:-4]] = parse(read_limited(path, _MAX_BYTES), path)
        except RecordError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return found


def band(records: Sequence[Record], curves: Mapping[str, Curve], column: str) -> Band | None:
    """Return a column over the seeds of a row, over those that have curves; None where none has."""
    by_seed = []
    for record in records:
        curve = curves.get(record.cell_id)
        if curve is not None:
            pairs = zip(curve.epochs, curve.columns[column], strict=True)
            by_seed.append({epoch: value for epoch, value in pairs if value is not None})
    by_seed = [values for values in by_seed if values]
    if not by_seed:
        return None
    shared = sorted(set.intersection(*(set(values) for values in by_seed)))
    if not shared:
        return None
    epochs = thin(shared)
    at = [[values[epoch] for values in by_seed] for epoch in epochs]
    return Band(
        epochs, [math.fsum(v) / len(v) for v in at], [min(v) for v in at], [max(v) for v in at], len(by_seed)
    )


def thin(epochs: list[int], points: int = MAX_POINTS) -> list[int]:
    """At most `points` of them, evenly, the first and the last among them."""
    if len(epochs) <= points:
        return epochs
    last = len(epochs) - 1
    return [epochs[round(n * last / (points - 1))] for n in range(points)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return float(value) if number else None
