"""A cell on several processes: what each of them does, and how one record comes of it, whatever happens."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.launch.failure import write_failure
from kdbench.launch.holding import DONE, INTERRUPTED, Busy, hold, lost
from kdbench.launch.peers import MEETING, Loss, Peers, Seat
from kdbench.results.lease import LeaseLost

if TYPE_CHECKING:
    from kdbench.engine.cellspec import CellFile
    from kdbench.results.lease import Lease


def run_seat(
    folder: Path,
    report: Callable[[Mapping[str, Any]], None],
    stop: threading.Event,
    seat: Seat,
    leave: Callable[[int], None],
) -> int:
    """Run the cell in `folder` together with the other seats. Returns an exit code.

    The leading process does all that a lone worker does; the others write nothing. A cell that only measures speed
    is the leading one's alone.
    """
    from kdbench.engine.cell import read_cell
    from kdbench.launch.worker import run_folder

    if not read_cell(folder).only_speed:
        return _Part(folder, report, stop, seat, leave).run()
    return run_folder(folder, report, stop) if seat.rank == 0 else DONE


class _Part:
    def __init__(
        self,
        folder: Path,
        report: Callable[[Mapping[str, Any]], None],
        stop: threading.Event,
        seat: Seat,
        leave: Callable[[int], None],
    ) -> None:
        self._folder, self._report, self._stop, self._seat, self._leave = folder, report, stop, seat, leave
        self._lead = seat.rank == 0
        self._started = ""
        #: of the cell, which the leading process holds for all
        self._lease: Lease | None = None

    def run(self) -> int:
        import os

        import torch

        from kdbench.engine.cell import Hooks, now, read_cell
        from kdbench.engine.together.sharing import Together
        from kdbench.engine.trial import trainer_of
        from kdbench.launch.worker import WorkerHooks, conclude, keep_reserve
        from kdbench.registry import Registry

        folder, self._started = self._folder, now()
        cell = read_cell(folder)
        try:
            held = self._hold() if self._lead else None
        except OSError as e:
            return conclude(folder, cell, None, e, self._started, self._report)
        if isinstance(held, int):
            with contextlib.suppress(KdbenchError):  # who did not come need not be sent away
                Peers(self._seat, cell.device, self._lost, self._leave).dismiss(held)
            return held
        self._lease = held
        if cell.threads is not None:
            torch.set_num_threads(cell.threads)
        peers = registry = None
        hooks: Any = Hooks()
        hooks.should_stop = self._stop.is_set
        close = contextlib.ExitStack()
        if self._lead:
            self._report({"event": "started", "cell_id": cell.cell_id, "pid": os.getpid()})
            hooks = WorkerHooks(folder, cell.device, cell.cell_id, self._report, self._stop, held)
            close.callback(hooks.close)
        keep_reserve()
        try:
            peers = Peers(self._seat, cell.device, self._lost, self._leave)
            registry = Registry.load(disable=cell.disable_plugins)
            trainer_of(folder)(folder, registry, hooks, sharing=Together(peers.group)).run()
        except Exception as e:
            return self._end(e, cell, registry, peers)
        finally:
            close.close()
            if held is not None:
                held.close()
        peers.leave()
        return DONE

    def _hold(self) -> Lease | int:
        try:
            # the others wait for the leading one, and not for ever
            return hold(self._folder, self._stop.is_set, MEETING.total_seconds() / 2)
        except Busy:
            return INTERRUPTED

    def _end(self, error: Exception, cell: CellFile, registry: Any, peers: Peers | None) -> int:
        """Write how the cell ended, once: what came to all processes, or what became of one of them."""
        from kdbench.engine.progress import Interrupted
        from kdbench.launch.worker import FAILED, conclude, judge

        if isinstance(error, Interrupted):
            if peers is not None:
                peers.leave()
            return INTERRUPTED
        loss = peers.cause() if peers is not None and _unreachable(error) else None
        if peers is not None and not peers.claim():
            threading.Event().wait()  # another thread ends this process
        if peers is not None:
            peers.tidy()
        if loss is not None:
            return self._write(loss) if self._lead else FAILED
        if self._lead:
            code = conclude(self._folder, cell, registry, error, self._started, self._report, self._lease)
            if code == INTERRUPTED and peers is not None:  # the cell is another's by now
                peers.dismiss(code)
            return code
        status, text, trace = judge(error)
        with contextlib.suppress(Exception):
            print(trace or f"{status}: {text}", file=sys.stderr)
        if peers is not None:
            peers.fail(Loss(status, type(error).__name__, text, trace))
        return FAILED

    def _lost(self, loss: Loss) -> None:
        from kdbench.launch.worker import FAILED

        code = FAILED
        try:
            if self._lead:
                code = self._write(loss)
        finally:
            self._leave(code)

    def _write(self, loss: Loss) -> int:
        """Write what became of another process, if the cell is still ours. Returns the exit code."""
        from kdbench.launch.worker import FAILED

        with contextlib.suppress(Exception):
            print(f"{loss.status}: {loss.message}", file=sys.stderr)
        try:
            write_failure(
                self._folder,
                loss.status,  # type: ignore[arg-type]
                loss.message,
                type_=loss.type,
                traceback=loss.traceback,
                started_at=self._started,
            )
        except (LeaseLost, FileNotFoundError) as late:
            if lost(self._lease, late):
                return INTERRUPTED
            raise
        return FAILED


def _unreachable(error: BaseException | None) -> bool:
    from kdbench.engine.together.group import PeerLost

    while error is not None:
        if isinstance(error, PeerLost):
            return True
        error = error.__cause__ or error.__context__
    return False
