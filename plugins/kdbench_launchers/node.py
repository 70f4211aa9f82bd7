"""The process of a cell on a machine that is not the parent's, and the files that tell how it is doing.

What runs on a node starts ``python -m kdbench cell``, and nothing of the cell in its own process: a cell that
crashes takes nothing else with it, and one whose starter dies does not outlive it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.hooks import WAITS

#: Exit codes of ``kdbench cell``: the state is saved, for there is no space or somebody asked to stop.
NO_SPACE = 3
SAVED = (NO_SPACE, 130, -signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
#: Seconds between two looks whether a cell waits.
_LOOK_S = 0.5


@dataclass(frozen=True)
class Cell:
    """A cell as a node needs it: its folder, those of its teachers, and the limit of an attempt in seconds."""

    cell_id: str
    folder: Path
    teachers: tuple[Path, ...] = ()
    timeout_s: float | None = None


def start(cell: Cell, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the process of a cell; what it prints goes to the cell's log. Raises OSError."""
    command = [sys.executable, "-m", "kdbench", "cell", str(cell.folder)]
    with (cell.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, preexec_fn=_prepare_child
        )


class Limit:
    """The time limit of an attempt; what the cell waits for others of its machine does not count."""

    def __init__(self, cell: Cell) -> None:
        self._mark, self._left = cell.folder / WAITS, cell.timeout_s
        self._at = time.monotonic()
        if self._left is not None:
            with contextlib.suppress(OSError):
                self._mark.unlink()  # of an attempt that was killed

    def over(self) -> bool:
        """Return whether it is reached; to be asked every second or so."""
        now = time.monotonic()
        if self._left is None or now - self._at < _LOOK_S:
            return False
        if not os.path.exists(self._mark):  # which raises nothing where a file server does not answer
            self._left -= now - self._at
        self._at = now
        return self._left < 0


def ask(pid: int | None) -> None:
    """Have a cell's process save its state and end."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def kill(pid: int) -> None:
    """Kill a cell's process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def note(events: Path, cell: Cell, event: str, **more: Any) -> None:
    """Append an event of a cell to a file, so that it is there whatever becomes of this process."""
    line = json.dumps({"event": event, "cell_id": cell.cell_id, "at": time.time(), **more})
    with events.open("a", encoding="utf-8") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that were noted; a line that is not whole yet is left out."""
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


def is_done(folder: Path) -> bool:
    """Return whether a cell's record says that it is done."""
    try:
        return bool(json.loads((folder / "result.json").read_text())["status"] == "done")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepare_child() -> None:
    """Ready a cell's process: a session of its own, which ends with this process.

    Slurm sends the warning to every process of a job; only its starter is to act on it.
    """
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
