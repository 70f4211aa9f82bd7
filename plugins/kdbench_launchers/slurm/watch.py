"""How cells in tasks of Slurm jobs are doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.api import Job
from kdbench_launchers.followed import Followed, Report
from kdbench_launchers.slurm.submissions import Submission


class Watched(Followed):
    """A cell in a task of a submission.

    Attributes:
        missed: looks at the queue in a row that did not find its task.
    """

    def __init__(self, job: Job, submission: Submission, task: int) -> None:
        super().__init__(job)
        self.submission, self.task, self.missed = submission, task, 0

    def see(self, events: Sequence[Mapping[str, Any]], report: Report) -> bool:
        """Report what is new. Returns whether the cell is over."""
        own = self.news(events, report)
        if not own or own[-1]["event"] != "ended":
            return False
        return self.ended(own[-1], report, wait=self.missed < 2)

    def gone(self, report: Report) -> None:
        """Report a cell whose job is over without a word of how it ended."""
        told = {"cell_id": self.job.cell_id}
        if self.recorded:
            report({"event": "finished", **told})
        elif self.starts:
            report({"event": "interrupted", **told})
        else:
            message = (
                f"{self.job.label}: Slurm job {self.submission.task_id(self.task)} ended before it began"
            )
            report({"event": "note", "message": message})
