"""The worker: runs one cell in this process and leaves exactly one record, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.launch.holding import DONE, INTERRUPTED, hold, lost
from kdbench.launch.life import kill_group, tie
from kdbench.launch.log import bound, flush, keep_bounded, redirect
from kdbench.launch.peers import PROCESSES, Seat, spread
from kdbench.redact import scrub

if TYPE_CHECKING:
    from kdbench.engine.cellspec import CellFile
    from kdbench.registry import Registry
    from kdbench.results.lease import Lease

Report = Callable[[Mapping[str, Any]], None]

#: Exit codes of a worker process.
FAILED, NO_SPACE = 1, 3

#: A disk or a quota that is full, a limit on the size of files, a disk that became read-only.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

#: A file server or a disk that does not answer: nobody's code is at fault, and what is kept may be whole.
_NO_ANSWER = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE)

#: Memory that is let go of when there is no more, so that a record can be written.
_reserve: list[bytes] = []
_RESERVE_BYTES = 8 << 20


def run_folder(
    folder: Path,
    report: Callable[[Mapping[str, Any]], None],
    stop: threading.Event,
    seat: Seat | None = None,
    leave: Callable[[int], None] = os._exit,
) -> int:
    """Run the cell in `folder`. Returns an exit code; the record is on disk unless it was interrupted.

    Args:
        seat: this process's place among those of the cell; None: it is alone.
        leave: ends this process with an exit code, from a thread, when another of the cell is lost.
    """
    if seat is not None:
        from kdbench.launch.together import run_seat

        return run_seat(folder, report, stop, seat, leave)
    import torch

    from kdbench.engine.cell import now, read_cell
    from kdbench.engine.speed.cell import SpeedCell
    from kdbench.engine.trial import trainer_of
    from kdbench.registry import Registry

    started = now()
    cell = read_cell(folder)
    try:
        lease = hold(folder, stop.is_set)  # a worker of a killed parent may still be on its way out
    except OSError as e:
        return conclude(folder, cell, None, e, started, report)
    if isinstance(lease, int):
        return lease
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    report({"event": "started", "cell_id": cell.cell_id, "pid": os.getpid()})
    keep_reserve()
    registry = None
    hooks = WorkerHooks(folder, cell.device, cell.cell_id, report, stop, lease)
    try:
        registry = Registry.load(disable=cell.disable_plugins)
        runner = SpeedCell if cell.only_speed else trainer_of(folder)
        runner(folder, registry, hooks).run()
    except Exception as e:
        return conclude(folder, cell, registry, e, started, report, lease)
    finally:
        hooks.close()
        lease.close()
    return DONE


def keep_reserve() -> None:
    """Put memory aside for :func:`conclude`."""
    _reserve[:] = [bytes(_RESERVE_BYTES)]


def what_happened(e: BaseException) -> str:
    """Return an exception as a reader needs it: with its class, unless its text was written to be read alone."""
    from kdbench.engine.divergence import Diverged
    from kdbench.errors import KdbenchError
    from kdbench.protocol.types import NotApplicable

    name, text = type(e).__name__, str(e)
    if text and isinstance(e, (KdbenchError, NotApplicable, Diverged)):
        return text
    return f"{name}: {text}" if text else name


def conclude(
    folder: Path,
    cell: CellFile,
    registry: Registry | None,
    error: Exception,
    started: str,
    report: Callable[[Mapping[str, Any]], None],
    lease: Lease | None = None,
) -> int:
    """Write the record of a cell that ended with `error`, if `lease` still holds. Returns its exit code."""
    _reserve.clear()  # first of all: even an import takes memory
    from kdbench.engine.progress import Interrupted
    from kdbench.errors import RecordError
    from kdbench.launch.failure import write_failure
    from kdbench.results.lease import LeaseLost

    if isinstance(error, Interrupted) or lost(lease, error):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        message = f"{error.filename or folder}: {error.strerror}"
        report({"event": "no_space", "cell_id": cell.cell_id, "message": message})
        return NO_SPACE
    status, text, trace = judge(error)
    # to the cell's log, where people look first
    with contextlib.suppress(Exception):
        print(trace or f"{status}: {text}", file=sys.stderr)
    try:
        write_failure(
            folder,
            status,
            text,
            type_=type(error).__name__,
            traceback=trace,
            started_at=started,
            **_circumstances(cell, registry),
        )
    except RecordError as kept:  # a finished cell that ran again for files that it lacks keeps its result
        print(kept, file=sys.stderr)
    except (LeaseLost, FileNotFoundError) as late:
        if lost(lease, late):
            return INTERRUPTED
        raise
    return FAILED


def judge(error: BaseException) -> tuple[Any, str, str | None]:
    """Return status, message and traceback for the record of a cell that ended with `error`."""
    from kdbench.engine.divergence import Diverged
    from kdbench.measure.memory import out_of_memory
    from kdbench.protocol.types import NotApplicable

    status = "failed"
    if isinstance(error, NotApplicable):
        status = "not_applicable"
    elif isinstance(error, Diverged):
        status = "diverged"
    elif out_of_memory(error):
        status = "oom"
    elif isinstance(error, OSError) and error.errno in _NO_ANSWER:
        status = "crashed"
    text = what_happened(error)
    # what is told in one line has no place in code to look at, unless something refused what was not finite
    told = status == "not_applicable" or (status == "diverged" and error.__cause__ is None)
    trace = "".join(traceback.format_exception(error))
    if status == "oom":
        _let_go(error)
    return status, text, None if told else trace


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold; nobody reads them any more."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    gc.collect()


def _circumstances(cell: CellFile, registry: Registry | None) -> dict[str, Any]:
    """Return environment and plug-ins for a failure's record; a second failure here must not hide the first."""
    import torch

    from kdbench.engine.cell import provenance
    from kdbench.measure.environment import capture

    out: dict[str, Any] = {}
    recipe = cell.recipe
    with contextlib.suppress(Exception):
        out["environment"] = capture(
            torch.device(cell.device),
            precision=recipe.precision,
            deterministic=recipe.deterministic,
            compiled=recipe.compile,
        )
        if registry is not None:
            out["plugins"] = provenance(registry, cell)
    return out


class WorkerHooks:
    """Connects a cell to the process that runs it: events, stopping, the turn to measure alone."""

    def __init__(
        self,
        folder: Path,
        device: str,
        cell_id: str,
        report: Callable[[Mapping[str, Any]], None],
        stop: threading.Event,
        lease: Lease | None = None,
    ) -> None:
        from kdbench.launch.locks import Turnstile

        self._turnstile = Turnstile(folder.parent.parent, device, self._wait)
        self._device = device
        self._cell_id, self._report, self._stop, self._lease = cell_id, report, stop, lease

    def _wait(self, begins: bool) -> None:
        # a clock that all processes of a machine have in common
        told = {"event": "waiting" if begins else "going_on", "at": time.monotonic()}
        self._report({**told, "cell_id": self._cell_id})

    def enter(self) -> None:
        """A lone cell has every turn."""

    def epoch(self, row: dict[str, Any]) -> None:
        from kdbench.measure.gpu import gpu_state

        bound()
        told = {"event": "epoch", "cell_id": self._cell_id, "row": row}
        self._report(told if (gpu := gpu_state(self._device)) is None else {**told, "gpu": gpu})

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._report({"event": "note", "cell_id": self._cell_id, "message": text})

    def should_stop(self) -> bool:
        if self._lease is not None and self._lease.lost:
            self._lease.check()
        return self._stop.is_set()

    def fence(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def wanted(self) -> bool:
        return self._turnstile.wanted()

    def gate(self) -> None:
        self._turnstile.gate()

    def close(self) -> None:
        """Leave the turnstile."""
        self._turnstile.close()

    def alone(self) -> Any:
        return self._turnstile.alone()


def child(folder: str, connection: Any, environment: Mapping[str, str], life: Any = None) -> None:
    """Entry of a worker process: own session, output to the cell's log, ends when its parent does."""
    where = Path(folder).absolute()  # a method may leave for another folder

    def run(report: Report, stop: threading.Event, seat: Seat | None) -> int:
        return run_folder(where, report, stop, seat, lambda code: _leave(log_of(where, seat), code))

    serve(where, connection, environment, run, life)


def serve(
    log: Path,
    connection: Any,
    environment: Mapping[str, str],
    run: Callable[[Report, threading.Event, Seat | None], int],
    life: Any = None,
) -> None:
    """Be a worker: send what `run` reports, tell it to stop, and end this process with its exit code.

    Output goes to ``log.txt`` in the folder `log`. The process and what it started end when the other end of
    `life` is closed. Where the environment asks for several processes, this becomes them; who follows the leading
    one reports nothing, is told to stop by it, and has a log of its own.
    """
    os.setsid()
    if life is not None:
        tie(life)
    os.environ.update({k: v for k, v in environment.items() if k != PROCESSES})
    processes = int(environment.get(PROCESSES, 1))
    seat = spread(processes) if processes > 1 else None
    own = log_of(log, seat)
    redirect(own)
    keep_bounded()
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    send_lock = threading.Lock()

    def report(event: Mapping[str, Any]) -> None:
        with send_lock, contextlib.suppress(OSError):
            connection.send(dict(event))

    def watch() -> None:
        while True:
            try:
                word = connection.recv()
            except (EOFError, OSError):
                # the parent is gone: what is on disk is whole, and nobody wants the rest
                kill_group(os.getpid())
            if word == "stop":
                stop.set()

    if seat is None or seat.rank == 0:
        threading.Thread(target=watch, daemon=True).start()
    else:
        connection.close()
    lock_bars()
    try:
        code = run(report, stop, seat)
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
        code = FAILED
    _leave(own, code)


def log_of(folder: Path, seat: Seat | None) -> Path:
    """Return the log of a process of the cell in `folder`."""
    return folder / ("log.txt" if seat is None or seat.rank == 0 else f"log-{seat.rank}.txt")


def _leave(log: Path, code: int) -> None:
    flush()
    bound()
    scrub(log)
    os._exit(code)


def lock_bars() -> None:
    """Let progress bars, which torch has while it compiles, lock threads and not processes.

    A semaphore of processes would be left behind by :func:`os._exit`, and Python warns of it on the terminal once
    the command is done. This process is the only one that writes to its log.
    """
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())
