"""What a launcher tells of cells, and what follows from it: statuses, records, the display, sinks and plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kdbench.errors import RecordError
from kdbench.launch.failure import clean_log, write_failure
from kdbench.launch.mirror import Mirrors
from kdbench.launch.outlook import Outlook
from kdbench.launch.planned import PlannedCell
from kdbench.launch.progress import INTERRUPTED, Progress, outcome
from kdbench.registry import Registry
from kdbench.results.store import read_record_dict


class Hearing:
    """Takes in events of the cells of a plan.

    Args:
        cells: by id.
        lost: whether what becomes of the cells is for another process to tell.
    """

    def __init__(
        self,
        registry: Registry,
        cells: Mapping[str, PlannedCell],
        progress: Progress,
        mirrors: Mirrors,
        outlook: Outlook,
        lost: Callable[[], bool],
    ) -> None:
        self._registry, self._cells, self._lost = registry, cells, lost
        self._progress, self._mirrors, self._outlook = progress, mirrors, outlook

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in one event, see :class:`kdbench.hooks.Launcher`."""
        kind = event["event"]
        if kind == "note":
            about = self._cells.get(event.get("cell_id", ""))
            self._progress.note(f"note: {about.label}: {event['message']}" if about else event["message"])
            return
        if kind == "found" and event["cell_id"] not in self._cells:
            return  # of cells that the matrix has no more
        cell = self._cells[event["cell_id"]]
        facts = {"cell_id": cell.id, **cell.file.labels.model_dump()}
        if kind not in ("finished", "died", "found"):
            self._outlook.see(event)
        clean_log(cell.folder, kind)
        if kind == "started":
            self._progress.cell_started(cell)
            self.fire("kdbench_cell_started", cell=facts)
        elif kind == "epoch":
            self._progress.epoch(cell, event["row"], cell.file.recipe.epochs)
            self.fire("kdbench_epoch_finished", cell=facts, epoch=event["row"])
        elif kind == "released":
            self._progress.note(f"{cell.label}: {event['message']}")
        elif kind == "interrupted":
            cell.status = "interrupted"
            how = event.get("message", "saved")
            self._progress.cell_ended(cell, INTERRUPTED, f"{how}; the same command resumes it")
        elif kind == "found":
            with suppress(RecordError):  # it ended without one, and is none of those that run now
                record = read_record_dict(cell.folder / "result.json")
                self._mirrors.write(cell.folder)
                self.fire("kdbench_cell_finished", cell=facts, record=record)
        elif kind == "died" and self._lost():
            cell.status = "interrupted"
            self._progress.cell_ended(cell, INTERRUPTED, "left to the kdbench that took over the run folder")
        elif kind in ("finished", "died"):
            if kind == "died":
                try:
                    # its process may live after all, on a machine that nobody hears of, and write one now
                    write_failure(cell.folder, event["status"], event["message"], new=True)
                except RecordError:
                    # a finished cell that ran again for its weights or route keeps its result
                    self._progress.note(
                        f"warning: {cell.label}: {event['message']}; its earlier result stays"
                    )
            record = read_record_dict(cell.folder / "result.json")
            cell.status = record["status"]
            cell.reason = (record.get("error") or {}).get("message")
            self._outlook.see(event, record)
            self._progress.cell_ended(cell, cell.status, outcome(record))
            self._mirrors.write(cell.folder)
            self.fire("kdbench_cell_finished", cell=facts, record=record)

    def fire(self, hook: str, **arguments: Any) -> None:
        """Call a hook of the plug-ins; one that fails is told of and costs nothing."""
        for warning in self._registry.fire(hook, **arguments):
            self._progress.note(f"warning: {warning}")
