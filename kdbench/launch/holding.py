"""A cell is worked on by one process at a time: taking its lease, and what it means not to get it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.results import fence
from kdbench.results.artifacts import is_whole
from kdbench.results.holder import Holder, alive, newest_holder
from kdbench.results.lease import Lease, LeaseLost
from kdbench.results.store import RESULT, read_record_dict, remove_unfinished

#: Exit codes of a worker process that did all it had to, and of one that leaves the rest to a later one.
DONE, INTERRUPTED = 0, 130


class Over(Exception):
    """A cell of a gang has nothing left to do here; `code` is the exit code that says why."""

    def __init__(self, code: int) -> None:
        self.code = code


class Busy(Exception):
    """Another process is at work on a cell, and the caller has others to get on with."""


class CellLease(Lease):
    """The lease of a cell's folder, into which nothing is written once it is lost."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._guarded = folder

    def enter(self) -> None:
        """Guard the folder, and remove what an earlier process had begun to write. Raises LeaseLost, OSError."""
        fence.guard(self._guarded, self.check)
        remove_unfinished(self._guarded, self.check)

    def close(self) -> None:
        """Let the folder go."""
        fence.unguard(self._guarded)
        super().close()


def hold(folder: Path, stop: Callable[[], bool], patience_s: float = math.inf) -> Lease | int:
    """Take the lease of a cell, waiting for a holder that is not done.

    Returns the lease, or an exit code: of a cell that the holder before brought to its record, or of a wait that
    `stop` ended. Raises OSError, and Busy after `patience_s`: two that wait for each other's cells would wait for
    ever.
    """
    lease, before = CellLease(folder), _stamp(folder)
    if not lease.take():
        print(f"waiting: {lease.holder()} is at work on this cell", file=sys.stderr, flush=True)
        until = time.monotonic() + patience_s
        if not lease.wait(lambda: stop() or time.monotonic() > until):
            if stop():
                return INTERRUPTED
            raise Busy
    try:
        lease.enter()
    except LeaseLost as error:  # stopped for so long that another one has it by now
        print(error, file=sys.stderr, flush=True)
        lease.close()
        return INTERRUPTED
    # from here on the holder before writes nothing more; a finished cell runs again only for files that it lacks
    if _done(folder) and (_stamp(folder) != before or _whole(folder)):
        print("done before: nothing is left to do for this cell", file=sys.stderr, flush=True)
        lease.close()
        return DONE
    return lease


def refuse_held(folder: Path) -> None:
    """Raise KdbenchError where a process that surely lives has the lease of a run folder; nothing is taken.

    For before a plan is made, which may take a while. Of a process on another machine :func:`hold_run` finds out.
    """
    with contextlib.suppress(OSError):  # told of where the folder is written
        if (holder := newest_holder(folder)) is not None and alive(holder):
            raise _held(folder, holder)


def hold_run(folder: Path) -> Lease:
    """Take the lease of a run folder. Raises KdbenchError where another process has it, OSError."""
    lease = Lease(folder)
    if not lease.take() and (holder := lease.holder()) is not None and alive(holder) is None:
        text = f"{folder}: waiting for a sign of life of {holder}, at most {holder.expiry_s:g} s"
        print(text, file=sys.stderr, flush=True)
    if not lease.settle():
        raise _held(folder, lease.holder())
    return lease


def _held(folder: Path, holder: Holder | None) -> KdbenchError:
    return KdbenchError(f"{folder}: another kdbench is running this matrix ({holder})")


def lost(lease: Lease | None, error: BaseException) -> bool:
    """Return whether a cell belongs to another process by now, so that its end is not for this one to tell."""
    if lease is None:
        return False
    if not isinstance(error, LeaseLost):
        try:
            lease.check()
        except LeaseLost as e:
            error = e
        except OSError:  # nobody can tell; whoever writes asks again
            return False
        else:
            return False
    print(error, file=sys.stderr, flush=True)
    return True


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        status = (folder / RESULT).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _done(folder: Path) -> bool:
    try:
        return read_record_dict(folder / RESULT)["status"] == "done"
    except KdbenchError:
        return False


def _whole(folder: Path) -> bool:
    """Return whether a finished cell has the files that its ``cell.json`` asks for."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        cell = json.loads((folder / "cell.json").read_bytes())
        return is_whole(folder, cell["labels"]["role"], cell.get("keep_epochs") or ())
    return False
