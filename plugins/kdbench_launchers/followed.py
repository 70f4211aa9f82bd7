"""How a cell on another machine is doing, from the files that it leaves."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.api import Job

Report = Callable[[Mapping[str, Any]], None]


class Followed:
    """A cell that runs elsewhere, and what was reported of it.

    Attributes:
        starts: how often it was seen to start.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.starts = job, 0
        # rows of its curves that are not news
        self._rows = len(self._lines())

    @property
    def recorded(self) -> bool:
        """Whether its record is there."""
        return (self.job.folder / "result.json").exists()

    def news(self, events: Sequence[Mapping[str, Any]], report: Report) -> list[Mapping[str, Any]]:
        """Report starts and epochs that were not reported. Returns the events that are of this cell."""
        own = [e for e in events if e["cell_id"] == self.job.cell_id]
        starts = sum(e["event"] == "started" for e in own)
        told = {"cell_id": self.job.cell_id}
        if starts > self.starts:
            self.starts = starts
            report({"event": "started", **told})
        for row in self._new_rows() if self.starts else ():
            report({"event": "epoch", "row": row, **told})
        return own

    def ended(self, event: Mapping[str, Any], report: Report, *, wait: bool) -> bool:
        """Report how the cell ended. Returns False, with nothing told, for a record that is yet to be waited for.

        Args:
            event: with ``code``, the exit code of its process, ``late``, whether that reached its limit, and
                ``teacher``, which did not finish.
            report: takes what there is to tell.
            wait: whether a record that is missing may be on its way.
        """
        told, code = {"cell_id": self.job.cell_id}, event.get("code")
        if (teacher := event.get("teacher")) is not None:
            message = f"its teacher cell {str(teacher)[:12]} did not finish"
            report({"event": "died", "status": "failed", "message": message, **told})
        elif event.get("late"):
            message = f"stopped after the limit of {self.job.timeout_s:g} s"
            report({"event": "died", "status": "timeout", "message": message, **told})
        elif self.recorded:
            report({"event": "finished", **told})
        elif code in (0, 1) and wait:
            return False  # a shared folder shows files late
        else:
            status = "interrupted" if code == -signal.SIGKILL else "crashed"
            report({"event": "died", "status": status, "message": _how(code, self.job), **told})
        return True

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        lines = self._lines()
        # a cell that resumes drops the rows of epochs that it does again
        known, self._rows = min(self._rows, len(lines)), len(lines)
        for line in lines[known:]:
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def _lines(self) -> list[str]:
        try:
            text = (self.job.folder / "curves.jsonl").read_text(errors="replace")
        except OSError:
            return []
        return text.split("\n")[:-1]


def _how(code: int | None, job: Job) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory; the same command resumes it" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{hint}"
    tail = _tail(job.folder / "log.txt")
    return f"the worker ended with code {code} and left no record" + (
        f"; its log ends:\n{tail}" if tail else ""
    )


def _tail(path: Path, lines: int = 15) -> str:
    try:
        with path.open("rb") as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - 8192))
            # half a secret at the start is cut off
            return "\n".join(f.read().decode(errors="replace").splitlines()[-lines:])[-2000:]
    except OSError:
        return ""
