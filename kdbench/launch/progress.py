"""What the user sees while a matrix runs: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kdbench.launch.plan import PlannedCell
from kdbench.results.speed_row import fastest

#: The status of a cell that is to be resumed; it is no progress.
INTERRUPTED = "interrupted"


class Progress(Protocol):
    """A display. Its methods are called from the parent's only thread."""

    def start(self, total: int, done: int, left: Left = ...) -> None: ...

    def cell_started(self, cell: PlannedCell) -> None: ...

    def epoch(self, cell: PlannedCell, row: Mapping[str, Any], epochs: int) -> None: ...

    def cell_ended(self, cell: PlannedCell, status: str, detail: str) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


def make_progress(*, terminal: bool | None = None) -> Progress:
    """Return live bars for a terminal, plain lines otherwise."""
    live = sys.stderr.isatty() if terminal is None else terminal
    return LiveProgress() if live else PlainProgress()


def describe(row: Mapping[str, Any]) -> str:
    """Return loss, accuracy and speed of an epoch as text."""
    parts = [f"loss {row['train'].get('loss', float('nan')):.3f}"]
    for metrics in list(row.get("eval", {}).values())[:1]:
        parts += [f"{k.split('/')[0]} top-1 {v:.2f} %" for k, v in metrics.items() if k.endswith("/top1")]
    parts.append(f"{row['step_ms']:.0f} ms/step")
    return ", ".join(parts)


#: Gives the seconds that are left of the whole run; None: unknown.
Left = Callable[[], float | None]


def clock_text(seconds: float) -> str:
    """Return a duration as ``minutes:seconds``, or ``hours:minutes:seconds``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Eta:
    """Time left, as it is forecast."""

    def __init__(self) -> None:
        self.total = self.ended = 0
        self.left: Left = lambda: None

    def text(self) -> str:
        seconds = self.left()
        return "?" if seconds is None else clock_text(seconds)


class PlainProgress:
    """One line per cell that starts or ends, and at most one per cell and half minute in between."""

    def __init__(self) -> None:
        self._eta = Eta()
        self._told: dict[str, float] = {}

    def start(self, total: int, done: int, left: Left = lambda: None) -> None:
        self._eta.total, self._eta.left = total, left

    def cell_started(self, cell: PlannedCell) -> None:
        self._told[cell.id] = time.monotonic()
        self.note(f"start  {cell.label}")

    def epoch(self, cell: PlannedCell, row: Mapping[str, Any], epochs: int) -> None:
        if time.monotonic() - self._told.get(cell.id, 0.0) < 30:
            return
        self._told[cell.id] = time.monotonic()
        self.note(f"       {cell.label}: epoch {row['epoch']}/{epochs}, {describe(row)}")

    def cell_ended(self, cell: PlannedCell, status: str, detail: str) -> None:
        if status == INTERRUPTED:  # it is not done, and the time left is that of a run that stops
            self.note(f"{status:6} {cell.label}: {detail}")
            return
        self._eta.ended += 1
        left = f"{self._eta.ended}/{self._eta.total}, left {self._eta.text()}"
        self.note(f"{status:6} {cell.label}: {detail} ({left})")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Nothing to put back."""


class LiveProgress:
    """A bar for the matrix and a line per running cell."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        console = Console(stderr=True)

        def text(width: int) -> Column:
            return Column(no_wrap=True, overflow="ellipsis", max_width=width)

        self._bars = Bars(
            TextColumn(
                "{task.description}", markup=False, table_column=text(max(20, console.width * 4 // 10))
            ),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[detail]}", markup=False, table_column=text(console.width)),
            console=console,
        )
        self._eta = Eta()
        self._matrix: Any = None
        self._cells: dict[str, Any] = {}

    def start(self, total: int, done: int, left: Left = lambda: None) -> None:
        self._eta.total, self._eta.left = total, left
        self._bars.start()
        self._matrix = self._bars.add_task("matrix", total=total, detail=f"{done} finished before")

    def cell_started(self, cell: PlannedCell) -> None:
        if cell.id in self._cells:  # it left a gang and starts again
            self._bars.remove_task(self._cells.pop(cell.id))
        self._cells[cell.id] = self._bars.add_task(f"  {cell.label}", total=None, detail="starting")

    def epoch(self, cell: PlannedCell, row: Mapping[str, Any], epochs: int) -> None:
        if cell.id in self._cells:
            text = f"{row['phase']}: {describe(row)}"
            self._bars.update(self._cells[cell.id], total=epochs, completed=row["epoch"], detail=text)
            self._bars.update(self._matrix, detail=f"left {self._eta.text()}")

    def cell_ended(self, cell: PlannedCell, status: str, detail: str) -> None:
        if cell.id in self._cells:
            self._bars.remove_task(self._cells.pop(cell.id))
        if status != INTERRUPTED:
            self._eta.ended += 1
            self._bars.update(self._matrix, advance=1, detail=f"left {self._eta.text()}")
        self.note(f"{status:6} {cell.label}: {detail}")

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._bars.stop()


def outcome(record: Mapping[str, Any]) -> str:
    """Return in a few words what came of a cell."""
    if record["status"] != "done":
        lines = ((record.get("error") or {}).get("message") or "").splitlines()
        return lines[0][:200] if lines else ""
    if record.get("speeds"):
        return fastest(record["speeds"])
    if (seen := record.get("validation")) is not None:
        return f"validation {seen['metric']} {seen['last']:.2f}, best {seen['best']:.2f}"
    last = record["deployables"][record["primary"]]["last"]
    return ", ".join(f"{k} {v:.2f} %" for k, v in last.items() if k == "top1")
