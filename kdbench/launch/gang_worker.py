"""The worker of a gang: several cells in this process, each with its own record, log and lock."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.launch.holding import DONE, INTERRUPTED, Busy, Over, hold
from kdbench.launch.log import flush, redirect
from kdbench.launch.worker import (
    FAILED,
    NO_SPACE,
    WorkerHooks,
    conclude,
    keep_reserve,
    serve,
)

if TYPE_CHECKING:
    from kdbench.results.lease import Lease

#: Exit code of a worker whose device is of no more use to anybody: cells that are left need a new process.
BROKEN = 4
#: Seconds that a gang waits for a cell of another process, while it has cells of its own.
PATIENCE_S = 2.0

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
    another process: it ran out of memory among the others, there was no room to begin it, or it was busy.
    """
    import torch

    from kdbench.engine.cell import now, read_cell
    from kdbench.engine.gang import Gang
    from kdbench.measure.memory import out_of_memory
    from kdbench.registry import Registry

    started = now()
    cells = {folder: read_cell(folder) for folder in folders}
    first = cells[folders[0]]
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    leases: dict[Path, Lease] = {}
    codes: list[int] = []
    registry = Registry.load(disable=first.disable_plugins)
    turnstile = WorkerHooks(folders[0], first.device, first.cell_id, report, stop)

    def hooks(folder: Path) -> _GangHooks:
        lease = hold(folder, stop.is_set, PATIENCE_S if leases else math.inf)
        if isinstance(lease, int):
            raise Over(lease)
        leases[folder] = lease
        report({"event": "started", "cell_id": cells[folder].cell_id, "pid": os.getpid()})
        return _GangHooks(folder, cells[folder].cell_id, report, stop, turnstile, lease)

    def unlock(folder: Path) -> None:
        lease = leases.pop(folder, None)
        if lease is not None:
            lease.close()

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
        if isinstance(error, Busy):
            report({"event": "released", "cell_id": cell_id, "why": "busy"})
            return True
        code = DONE
        if isinstance(error, Over):
            code = error.code
        elif error is not None:
            assert isinstance(error, Exception)
            code = conclude(folder, cells[folder], registry, error, started, report, leases.get(folder))
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
        for folder in list(leases):
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
        self,
        folder: Path,
        cell_id: str,
        report: Report,
        stop: threading.Event,
        process: WorkerHooks,
        lease: Lease,
    ) -> None:
        self._log, self._process = folder / "log.txt", process
        self._cell_id, self._report, self._stop, self._lease = cell_id, report, stop, lease
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
