"""What runs on a node: one cell, in a process of its own below Ray's worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdbench_launchers.node import SAVED, Cell, Limit, ask, kill, note, start

#: Seconds in which a shared folder shows what another machine wrote, and in which a cell that was asked to saves.
_SHOWN_S, _GRACE_S = 30.0, 600.0
_LOOK_S = 0.1


def run_cell(cell: Cell, events: Path, cwd: Path) -> dict[str, Any]:
    """Run a cell to its end, and return how its process ended.

    Ray's cancellation, which comes as SIGINT, and SIGTERM, with which Ray ends a worker, have the cell save its
    state. Raises FileNotFoundError for a run folder that this node does not see, OSError.
    """
    _wait_for(cell.folder / "cell.json")
    host = socket.gethostname()
    with _signals() as came:
        note(events, cell, "started", host=host)
        limit, process = Limit(cell), start(cell, cwd if cwd.is_dir() else None)
        late = _wait(process, limit, came)
    code = process.returncode
    recorded = (cell.folder / "result.json").exists()
    kind = "cut" if code in SAVED and not late else "ended"
    return {
        "event": kind,
        "cell_id": cell.cell_id,
        "code": code,
        "late": late,
        "recorded": recorded,
        "host": host,
    }


def _wait(process: subprocess.Popen[bytes], limit: Limit, came: list[int]) -> bool:
    """Wait for the end of a cell's process. Returns whether it was killed because it took too long."""
    asked_at = None
    try:
        while process.poll() is None:
            now = time.monotonic()
            if came and asked_at is None:
                asked_at = now
                ask(process.pid)
            late = limit.over()
            if late or (asked_at is not None and now - asked_at > _GRACE_S):
                kill(process.pid)
                process.wait()
                return late
            time.sleep(_LOOK_S)
        return False
    finally:
        kill(process.pid)  # and what it left behind


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask this worker to leave; after the block it follows them."""
    came: list[int] = []
    old = {
        number: signal.signal(number, lambda n, _: came.append(n))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if signal.SIGTERM in came:
            os.kill(os.getpid(), signal.SIGTERM)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + _SHOWN_S
    while not path.exists():
        if time.monotonic() > end:
            host = socket.gethostname()
            raise FileNotFoundError(
                f"{host} does not see {path}: the run folder has to be where all nodes see it (--runs)"
            )
        time.sleep(0.5)
