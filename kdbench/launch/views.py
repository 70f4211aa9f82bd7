"""What a session shows of its cells: made when it is asked for, since there may be 100,000."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.launch.planned import PlannedCell


class Files(Mapping[str, CellFile]):
    """What the cells are, by id, made when it is asked for: there may be 100,000."""

    def __init__(self, cells: Mapping[str, PlannedCell]) -> None:
        self._cells = cells

    def __getitem__(self, cell_id: str) -> CellFile:
        return self._cells[cell_id].file

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


class Facts(Sequence[Mapping[str, Any]]):
    """The cells as plug-ins see them, made when they are asked for."""

    def __init__(self, cells: Sequence[PlannedCell]) -> None:
        self._cells = cells

    def __getitem__(self, index: Any) -> Any:
        found = self._cells[index]
        return [_fact(c) for c in found] if isinstance(index, slice) else _fact(found)

    def __len__(self) -> int:
        return len(self._cells)


def _fact(cell: PlannedCell) -> dict[str, str]:
    return {"cell_id": cell.id, "status": cell.status, "label": cell.label}
