"""The worker of a gang: several cells in this process, each with its own record, log and lock."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdbench.launch.log import flush, redirect
from kdbench.launch.worker import (
    DONE,
    FAILED,
    INTERRUPTED,
    NO_SPACE,
    WorkerHooks,
    conclude,
    keep_reserve,
    out_of_memory,
    serve,
)

#: Exit code of a worker whose device is of no more use to anybody: cells that are left need a new process.
BROKEN = 4

Report = Callable[[Mapping[str, Any]], None]


def gang_child(
    folders: Sequence[str], connection: Any, environment: Mapping[str, str], life: Any = None
) -> None:
    """Entry of a worker process for several cells; each prints to its own log."""
    where = [Path(f).absolute() for f in folders]  # a method may leave for another folder
    serve(where[0], connection, environment, lambda report, stop, _: run_gang(where, report, stop), life)


def run_gang(folders: Sequence[Path], report: Report, stop: threading.Event) -> int:
    """Run the cells in `folders` in lockstep. Returns an exit code.

    Reports ``ended`` for each cell that is over, with its exit code, and ``released`` for each that is to run in
    another process: it ran out of memory among the others, or there was no room to begin it.
    """
    import torch

    from kdbench.engine.cell import now, read_cell
    from kdbench.engine.gang import Gang
    from kdbench.launch.locks import FileLock
    from kdbench.registry import Registry
    from kdbench.results.store import remove_unfinished

    started = now()
    cells = {folder: read_cell(folder) for folder in folders}
    first = cells[folders[0]]
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    locks: dict[Path, FileLock] = {}
    codes: list[int] = []
    registry = Registry.load(disable=first.disable_plugins)
    turnstile = WorkerHooks(folders[0], first.device, first.cell_id, report, stop)

    def hooks(folder: Path) -> _GangHooks:
        locks[folder] = FileLock(folder / ".lock")
        locks[folder].exclusive()
        remove_unfinished(folder)
        report({"event": "started", "cell_id": cells[folder].cell_id, "pid": os.getpid()})
        return _GangHooks(folder, cells[folder].cell_id, report, stop, turnstile)

    def unlock(folder: Path) -> None:
        lock = locks.pop(folder, None)
        if lock is not None:
            lock.close()

    def ended(folder: Path, error: BaseException | None) -> bool:
        cell_id = cells[folder].cell_id
        if error is not None and out_of_memory(error) and gang.left:
            print(
                f"out of memory among {gang.left + 1} cells; it goes on in a process of its own",
                file=sys.stderr,
            )
            report({"event": "released", "cell_id": cell_id, "why": "oom"})
            unlock(folder)
            return True
        code = DONE
        if error is not None:
            assert isinstance(error, Exception)
            code = conclude(folder, cells[folder], registry, error, started, report)
            keep_reserve()
        flush()
        codes.append(code)
        unlock(folder)
        report({"event": "ended", "cell_id": cell_id, "code": code})
        if code == FAILED and not _works(torch.device(first.device)):
            codes.append(BROKEN)
            return False
        return code != NO_SPACE

    keep_reserve()
    gang = Gang(folders, registry, hooks, ended)
    try:
        for folder in gang.run():
            report({"event": "released", "cell_id": cells[folder].cell_id, "why": "room"})
    finally:
        turnstile.close()
        for folder in list(locks):
            unlock(folder)
    return next((c for c in (BROKEN, NO_SPACE, INTERRUPTED) if c in codes), DONE)


def _works(device: Any) -> bool:
    """Return whether the device still computes: an error inside a kernel leaves it useless to this process."""
    import torch

    if device.type != "cuda":
        return True
    try:
        return bool((torch.ones(2, device=device).sum() == 2).item())
    except RuntimeError:
        return False


class _GangHooks(WorkerHooks):
    """The hooks of one cell of a gang. The turn to measure is the process's, not the cell's."""

    def __init__(
        self, folder: Path, cell_id: str, report: Report, stop: threading.Event, process: WorkerHooks
    ) -> None:
        self._log, self._process = folder / "log.txt", process
        self._cell_id, self._report, self._stop = cell_id, report, stop
        self._device = process._device

    def enter(self) -> None:
        redirect(self._log)

    def wanted(self) -> bool:
        return self._process.wanted()

    def gate(self) -> None:
        self._process.gate()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Measure; the other cells of the gang go on afterwards, so the process takes its share back."""
        with self._process.alone():
            yield
        self._process.gate()
