"""What runs on a node: the cells of one job, one after the other, each in a process of its own.

submitit calls a :class:`CellGroup`, and its ``checkpoint`` when Slurm warns that the job has to go; the group then
has its cell save its state, and the same job goes on later, here or on another node.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench_launchers.node import SAVED, Cell, Limit, ask, endings, is_done, kill, note, read_events, start

#: Seconds between two looks at the limit of a cell.
_LOOK_S = 1.0


class CellGroup:
    """Runs cells and notes in a file how each ended; a cell that ends badly leaves the others alone."""

    def __init__(self, cells: Sequence[Cell], events: Path, delay_s: float) -> None:
        self._cells, self._events, self._delay_s = tuple(cells), events, delay_s
        self._child: int | None = None
        self._halted = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None, "_halted": False}

    def __call__(self) -> None:
        """Run every cell that has not ended in an earlier life of this job."""
        signal.signal(signal.SIGTERM, self._warned)
        over = set(endings(read_events(self._events)))
        for cell in self._cells:
            if cell.cell_id not in over:
                self._one(cell)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Save the state of the running cell; returns what submitit is to run when the job goes on."""
        from submitit.helpers import DelayedSubmission

        self._halt()
        return DelayedSubmission(self)

    def _one(self, cell: Cell) -> None:
        lacks = next((t for t in cell.teachers if not is_done(t)), None)
        if lacks is not None:
            note(self._events, cell, "ended", code=None, teacher=lacks.name)
            return
        note(self._events, cell, "started", host=socket.gethostname(), job=os.environ.get("SLURM_JOB_ID"))
        limit, process = Limit(cell), start(cell)
        self._child = process.pid
        late = False
        while process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_LOOK_S)
            if process.returncode is None and limit.over():
                late = True
                kill(process.pid)
                process.wait()
        self._child = None
        kill(process.pid)  # what it left behind
        kind = "cut" if process.returncode in SAVED and not late else "ended"
        note(self._events, cell, kind, code=process.returncode, late=late)

    def _warned(self, number: int, frame: Any) -> None:
        """Act on SIGTERM: a job that was cancelled ends, one that only has to make room goes on later."""
        ask(self._child)
        running = _state() == "RUNNING"
        if running:  # submitit's way out, which puts the job into the queue again
            name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
            return
        self._halt()
        sys.exit(128 + number)

    def _halt(self) -> None:
        """Have the running cell save its state and end, within the time that Slurm leaves."""
        child = self._child
        if child is None or self._halted:
            return
        self._halted = True
        ask(self._child)
        end = time.monotonic() + max(1.0, self._delay_s - 5.0)
        # without reaping it: whoever waits for it in the interrupted call holds its lock
        while not _over(child):
            if time.monotonic() > end:
                kill(child)
                break
            time.sleep(0.05)


def _over(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _state() -> str:
    """Return the state of this job, or nothing where Slurm does not say."""
    command = ["squeue", "-h", "-o", "%T", "-j", os.environ.get("SLURM_JOB_ID", "0")]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip()
