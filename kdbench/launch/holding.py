"""A cell is worked on by one process at a time: taking its lease, and what it means not to get it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.results.lease import Lease, LeaseLost
from kdbench.results.store import RESULT, read_record_dict

#: Exit codes of a worker process that did all it had to, and of one that leaves the rest to a later one.
DONE, INTERRUPTED = 0, 130


class Over(Exception):
    """A cell of a gang has nothing left to do here; `code` is the exit code that says why."""

    def __init__(self, code: int) -> None:
        self.code = code


class Busy(Exception):
    """Another process is at work on a cell, and the caller has others to get on with."""


def hold(folder: Path, stop: Callable[[], bool], patience_s: float = math.inf) -> Lease | int:
    """Take the lease of a cell, waiting for a holder that is not done.

    Returns the lease, or an exit code: of a cell that the holder before brought to its record, or of a wait that
    `stop` ended. Raises OSError, and Busy after `patience_s`: two that wait for each other's cells would wait for
    ever.
    """
    lease, before = Lease(folder), _stamp(folder)
    if lease.take():
        return lease
    print(f"waiting: {lease.holder()} is at work on this cell", file=sys.stderr, flush=True)
    until = time.monotonic() + patience_s
    if not lease.wait(lambda: stop() or time.monotonic() > until):
        if stop():
            return INTERRUPTED
        raise Busy
    if _stamp(folder) != before and _done(folder):
        lease.close()
        return DONE
    return lease


def lost(lease: Lease | None, error: BaseException) -> bool:
    """Return whether a cell belongs to another process by now, so that its end is not for this one to tell."""
    if lease is None:
        return False
    if not isinstance(error, LeaseLost):
        try:
            lease.check()
        except LeaseLost as e:
            error = e
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
