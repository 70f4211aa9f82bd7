"""What the run folder knows of how long cells take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.errors import KdbenchError
from kdbench.launch.forecast import Forecast, Seen, seen_in, size_of
from kdbench.launch.looking import costs
from kdbench.launch.planned import Plan, PlannedCell
from kdbench.results.store import read_curves, read_record_dict

#: Records of cells that the matrix no longer has, of which at most so many are read.
MOST_FORMER = 200


def forecast_of(plan: Plan, device: str | None = None) -> Forecast:
    """Return a forecast of the plan's cells, with what their records and those of former cells tell.

    Args:
        device: take only records made on this kind of device; None: those of the kind that most were made on.
    """
    patterns = dict.fromkeys(cell.pattern for cell in plan.cells)
    by_pattern = {p: size_of(p.file, p.images, p.macs) for p in patterns}
    sizes = {cell.id: by_pattern[cell.pattern] for cell in plan.cells}
    found: list[tuple[str | None, Seen]] = []
    for cell in plan.cells:
        seen = None if cell.seen is None else seen_in(sizes[cell.id], cell.seen, cell.seen["elapsed_s"])
        if cell.seen is not None and seen is not None:
            found.append((cell.seen["device"], seen))
    found += _former(plan)
    kinds = [kind for kind, _ in found]
    wanted = device or max(dict.fromkeys(kinds), key=kinds.count, default=None)
    begun = {cell.id: _begun(cell, wanted) for cell in plan.cells if cell.status == "interrupted"}
    return Forecast(sizes, (seen for kind, seen in found if kind == wanted), begun)


def _begun(cell: PlannedCell, device: str | None) -> list[Mapping[str, Any]]:
    """Return the epochs of a cell that goes on from its checkpoint; of another device they tell no seconds."""
    try:
        made_on = json.loads((cell.folder / "cell.json").read_bytes())["device"]
        rows = {int(row["epoch"]): row for row in read_curves(cell.folder)}  # a cut epoch may be there twice
    except (OSError, ValueError, KeyError, TypeError, KdbenchError):
        return []
    found = [row for row in rows.values() if isinstance(row.get("train_s"), float | int)]
    return found if device in (None, made_on) else []


def _former(plan: Plan) -> Iterator[tuple[str | None, Seen]]:
    """Yield what cells tell that were run before the matrix was changed; epochs and method may be others now."""
    here = {cell.id for cell in plan.cells}
    patterns = dict.fromkeys(cell.pattern for cell in plan.cells)
    images = {p.file.dataset.model_dump_json(): p.images for p in patterns}
    others = (plan.run.cells / name for name in sorted(plan.run.cell_names() - here))
    others = (folder for folder in others if (folder / "result.json").exists())
    for folder in islice(others, MOST_FORMER):
        try:
            cell = CellFile.model_validate_json((folder / "cell.json").read_bytes())
            record = costs(read_record_dict(folder / "result.json"))
        except (OSError, ValueError, AttributeError, KdbenchError):
            continue
        size = size_of(cell, images.get(cell.dataset.model_dump_json()))
        seen = seen_in(size, record, record["elapsed_s"]) if size.images else None
        if seen is not None:
            yield record["device"], seen
