"""How cells on other machines are doing, from the files that they leave."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.api import Job
from kdbench_launchers.slurm.submissions import Submission

Report = Callable[[Mapping[str, Any]], None]


@dataclass
class Watched:
    """A cell in a task of a submission, and what was reported of it.

    Attributes:
        starts: how often it was seen to start.
        rows: rows of its curves that are not news.
        missed: looks at the queue in a row that did not find its task.
    """

    job: Job
    submission: Submission
    task: int
    starts: int = 0
    rows: int = 0
    missed: int = 0

    def __post_init__(self) -> None:
        self.rows = len(self._lines())

    def see(self, events: list[dict[str, Any]], report: Report) -> bool:
        """Report what is new. Returns whether the cell is over."""
        own = [e for e in events if e["cell_id"] == self.job.cell_id]
        starts = sum(e["event"] == "started" for e in own)
        told = {"cell_id": self.job.cell_id}
        if starts > self.starts:
            self.starts = starts
            report({"event": "started", **told})
        for row in self._rows() if self.starts else ():
            report({"event": "epoch", "row": row, **told})
        if not own or own[-1]["event"] != "ended":
            return False
        return self._ended(own[-1], report)

    def gone(self, report: Report) -> None:
        """Report a cell whose job is over without a word of how it ended."""
        told = {"cell_id": self.job.cell_id}
        if _recorded(self.job):
            report({"event": "finished", **told})
        elif self.starts:
            report({"event": "interrupted", **told})
        else:
            message = (
                f"{self.job.label}: Slurm job {self.submission.task_id(self.task)} ended before it began"
            )
            report({"event": "note", "message": message})

    def _ended(self, event: Mapping[str, Any], report: Report) -> bool:
        told, code = {"cell_id": self.job.cell_id}, event.get("code")
        if (teacher := event.get("teacher")) is not None:
            message = f"its teacher cell {str(teacher)[:12]} did not finish"
            report({"event": "died", "status": "failed", "message": message, **told})
        elif event.get("late"):
            message = f"stopped after the limit of {self.job.timeout_s:g} s"
            report({"event": "died", "status": "timeout", "message": message, **told})
        elif _recorded(self.job):
            report({"event": "finished", **told})
        elif code in (0, 1) and self.missed < 2:
            return False  # the record is on its way: a shared folder shows files late
        else:
            status = "interrupted" if code == -signal.SIGKILL else "crashed"
            report({"event": "died", "status": status, "message": _how(code, self.job), **told})
        return True

    def _rows(self) -> Iterator[dict[str, Any]]:
        lines = self._lines()
        # a cell that resumes drops the rows of epochs that it does again
        known, self.rows = min(self.rows, len(lines)), len(lines)
        for line in lines[known:]:
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def _lines(self) -> list[str]:
        try:
            text = (self.job.folder / "curves.jsonl").read_text(errors="replace")
        except OSError:
            return []
        return text.split("\n")[:-1]


def _recorded(job: Job) -> bool:
    return (job.folder / "result.json").exists()


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
            return "\n".join(f.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
