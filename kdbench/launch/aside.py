"""Earlier results of a cell are moved out of the way; nothing is ever overwritten."""

from __future__ import annotations

from pathlib import Path

from kdbench.errors import RecordError
from kdbench.launch.planned import PlannedCell
from kdbench.results.store import put_record_aside, read_record_dict, refuse_unread


def put_aside(folder: Path) -> str:
    """Move a cell's record to ``previous/``; returns in words where in the cell's folder it is."""
    return f"it is put aside as {put_record_aside(folder).relative_to(folder)}"


def set_aside(cell: PlannedCell, *, keep_done: bool) -> list[str]:
    """Make way for a cell that runs again; with `keep_done` a finished one keeps its record.

    Returns a line on what nobody asked to have moved: a record that is of no use.
    """
    # a cell that was killed or ran out of memory or time goes on where it was; a result that is made anew,
    # or that failed by its own code, starts from nothing. Before its record is moved: without that, whoever comes
    # after a kill would go on from the checkpoint
    if cell.status in ("done", "failed", "diverged"):
        (cell.folder / "checkpoint.safetensors").unlink(missing_ok=True)
    path, told = cell.folder / "result.json", []
    if path.exists():
        done = False
        try:
            done = read_record_dict(path)["status"] == "done"
        except RecordError as error:
            refuse_unread(error)
        if done and keep_done:
            return []
        there = put_aside(cell.folder)
        if cell.damaged:
            told.append(f"note: {cell.label}: {cell.reason}; {there}, and the cell runs again")
    return told
