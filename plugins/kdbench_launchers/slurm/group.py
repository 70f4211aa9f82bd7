"""What runs on a node: the cells of one job, one after the other, each in a process of its own.

submitit calls a :class:`CellGroup`, and its ``checkpoint`` when Slurm warns that the job has to go; the group then
has its cell save its state, and the same job goes on later, here or on another node.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Exit codes of ``kdbench cell``: the state is saved, for there is no space or somebody asked to stop.
SAVED = (3, 130, -signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Cell:
    """A cell as a node needs it: its folder, those of its teachers, and the limit of an attempt in seconds."""

    cell_id: str
    folder: Path
    teachers: tuple[Path, ...] = ()
    timeout_s: float | None = None


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
        lacks = next((t for t in cell.teachers if not _done(t)), None)
        if lacks is not None:
            self._note(cell, "ended", code=None, teacher=lacks.name)
            return
        self._note(cell, "started", host=socket.gethostname(), job=os.environ.get("SLURM_JOB_ID"))
        command = [sys.executable, "-m", "kdbench", "cell", str(cell.folder)]
        with (cell.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_prepare_child
            )
        self._child = process.pid
        late = False
        try:
            process.wait(timeout=cell.timeout_s)
        except subprocess.TimeoutExpired:
            late = True
            _kill(process.pid)
            process.wait()
        self._child = None
        kind = "cut" if process.returncode in SAVED and not late else "ended"
        self._note(cell, kind, code=process.returncode, late=late)

    def _warned(self, number: int, frame: Any) -> None:
        """Act on SIGTERM: a job that was cancelled ends, one that only has to make room goes on later."""
        self._ask_child()
        running = _state() == "RUNNING"
        if running:  # submitit's way out, which puts the job into the queue again
            name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
            return
        self._halt()
        sys.exit(128 + number)

    def _ask_child(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

    def _halt(self) -> None:
        """Have the running cell save its state and end, within the time that Slurm leaves."""
        child = self._child
        if child is None or self._halted:
            return
        self._halted = True
        self._ask_child()
        end = time.monotonic() + max(1.0, self._delay_s - 5.0)
        # without reaping it: whoever waits for it in the interrupted call holds its lock
        while not _over(child):
            if time.monotonic() > end:
                _kill(child)
                break
            time.sleep(0.05)

    def _note(self, cell: Cell, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, "cell_id": cell.cell_id, "at": time.time(), **more})
        with self._events.open("a", encoding="utf-8") as f:
            f.write(line + "\n")
            f.flush()
            os.fsync(f.fileno())


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that a group noted; a line that is not whole yet is left out."""
    out = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"event", "cell_id"} <= set(event):
                out.append(event)
    return out


def endings(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the event with which each cell ended for good."""
    return {e["cell_id"]: e for e in events if e["event"] == "ended"}


def _done(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "result.json").read_text())["status"] == "done")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepare_child() -> None:
    """Ready a cell's process: a session of its own, which ends with this process.

    Slurm sends the warning to every process of a job; only this one is to act on it.
    """
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _over(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _state() -> str:
    """Return the state of this job, or nothing where Slurm does not say."""
    command = ["squeue", "-h", "-o", "%T", "-j", os.environ.get("SLURM_JOB_ID", "0")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
