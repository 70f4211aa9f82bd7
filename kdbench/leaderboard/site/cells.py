"""Cells as small script files: one page shows any of them by its id, ``cell.html#<cell id>``.

A page of its own for each of 10,000 cells would be 10,000 files of mostly equal text. Scripts and not JSON files,
because a page that was opened as a file may load scripts but not fetch data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.curves import Curve, thin
from kdbench.leaderboard.site.model import SiteBoard, link, method_page

if TYPE_CHECKING:
    from kdbench.results.schema import Record

#: Cells in a file, about; the number of leading digits of the id that name a file follows from it.
_PER_FILE = 60
#: Longest traceback that is shown, in characters of its end.
_TRACEBACK = 3000
_WARNINGS = 10
#: Most points of a cell's own curve, and the columns that are kept: its page draws no other.
_POINTS = 32
_DRAWN = ("test_top1", "val_top1")
_LONG = re.compile(r"-?\d+\.\d{5,}(?:e[+-]?\d+)?")
_FREE = {
    "schema_version", "cell_id", "identity", "environment", "plugins", "teachers", "speeds", "deployables",
    "throughput", "cost", "floors", "error", "warnings",
}  # fmt: skip
_NUMBERS = {"deployables", "throughput", "cost", "floors"}


def prefix_length(cells: int) -> int:
    """Return how many leading digits of a cell id name the file that has it."""
    return next(n for n in range(4) if cells <= _PER_FILE * 16**n or n == 3)


def cell_files(board: SiteBoard) -> Iterator[tuple[str, str]]:
    """Yield (path within the site, text) of the files of a board's cells."""
    shared = _Shared()
    files: dict[str, list[str]] = {}
    digits = prefix_length(sum(len(row.records) for row in board.board.rows))
    sections: dict[int, int] = {}
    for number, section in enumerate(board.board.sections):
        for line in section.rows:
            sections.setdefault(board.number(line), number)
    for number, row in enumerate(board.board.rows):
        # what a row's cells share is said once, with its place among the tables and its method's page
        where = {
            "n": number,
            "t": sections.get(number),
            "m": link(board.path("cell.html"), method_page(row.labels.method)),
        }
        place = shared.add("row", where)
        for record in row.records:
            curve = board.curves.get(record.cell_id)
            text = f'"{record.cell_id}":{_cell(record, shared, place, curve)}'
            files.setdefault(record.cell_id[:digits], []).append(text)
    for prefix, cells in sorted(files.items()):
        name = f"cells/{prefix or 'all'}"
        yield board.path(f"{name}.js"), f"kdbench.put({{{','.join(sorted(cells))}}});\n"
    yield board.path("cells/shared.js"), f"kdbench.put([{','.join(shared.texts)}]);\n"


class _Shared:
    """Texts that many cells have in common, each once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._known: dict[str, int] = {}
        self._last: dict[str, tuple[Any, int]] = {}

    def add(self, place: str, value: Any) -> int:
        """Return the number of a value; what stood last in the same place is compared without its text."""
        last = self._last.get(place)
        if last is not None and last[0] == value:
            return last[1]
        text = _json(value)
        number = self._known.get(text)
        if number is None:
            number = self._known[text] = len(self.texts)
            self.texts.append(text)
        self._last[place] = (value, number)
        return number


def _cell(record: Record, shared: _Shared, place: int, curve: Curve | None) -> str:
    head = record.model_dump(mode="json", exclude=_FREE, exclude_none=True)
    labels = head.pop("labels")
    seed = labels.pop("seed")
    # references: what is shared is given by its number
    head |= {
        "seed": seed,
        "row": place,
        "labels": shared.add("labels", labels),
        "environment": shared.add("environment", record.environment),
        "plugins": shared.add(
            "plugins", {k: v.model_dump(exclude_none=True) for k, v in record.plugins.items()}
        ),
        "teachers": shared.add("teachers", [t.model_dump(exclude_none=True) for t in record.teachers]),
        "identity": {
            key: shared.add(f"identity.{key}", value)
            for key, value in record.identity.items()
            if key != "seed"
        },
    }
    if record.error is not None:
        head["error"] = [
            record.error.type,
            record.error.message,
            (record.error.traceback or "")[-_TRACEBACK:],
        ]
    if record.warnings:
        head["warnings"] = [text[:500] for text in record.warnings[:_WARNINGS]]
    if record.speeds:
        head["speeds"] = [
            s.model_dump(mode="json", exclude={"samples_ms"}, exclude_none=True) for s in record.speeds
        ]
    if curve is not None and (own := _curve(curve, shared)):
        head["curve"] = own
    numbers = _json(record.model_dump(mode="json", include=_NUMBERS, exclude_none=True))
    # six digits are more than any of these numbers has
    numbers = _LONG.sub(lambda m: f"{float(m[0]):.6g}", numbers)
    return f'{_json(head)[:-1]},"numbers":{numbers}}}'


def _curve(curve: Curve, shared: _Shared) -> dict[str, Any]:
    """Return what is drawn of a cell's curves: column -> number of its epochs among the shared, values."""
    found = {}
    for name in _DRAWN:
        pairs = zip(curve.epochs, curve.columns[name], strict=True)
        values = {epoch: round(value, 2) for epoch, value in pairs if value is not None}
        if values:
            epochs = thin(sorted(values), _POINTS)
            found[name] = [shared.add(f"epochs.{name}", epochs), [values[epoch] for epoch in epochs]]
    return found


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
