"""The log of a cell: all that its process prints, bounded, and never a reason to fail."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from kdbench.redact import HidingStream

#: Size in bytes at which a log loses its middle, and what stays of its beginning and of its end.
LIMIT, HEAD, TAIL = 8 << 20, 1 << 20, 1 << 20
_GAP = b"\n[what was printed here is left out: the log grew too long]\n"
_PIECE = 1 << 20
_bounded = False


def redirect(log: Path) -> None:
    """Append what this process prints, and what libraries print, to a file."""
    fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def keep_bounded() -> None:
    """Bound what this process prints from now on; its output must be a log of ours."""
    global _bounded
    flush()
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    _bounded = True


def flush() -> None:
    """Write out what Python holds back, whatever a method has made of the streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def bound() -> None:
    """Cut the log if it grew too long by what was printed from outside of Python."""
    if _bounded:
        _cut(1)


def _stream(fd: int) -> io.TextIOWrapper:
    # a line at a time: the last words of a process that dies are the ones that matter
    writer = io.BufferedWriter(_Raw(fd))
    # a plug-in may print its environment, and in it a token
    return HidingStream(writer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class _Raw(io.RawIOBase):
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        # a disk that is full is told where it matters: at the checkpoint and the record
        with contextlib.suppress(OSError):
            for start in range(0, len(view), _PIECE):
                os.write(self._fd, view[start : start + _PIECE])
                _cut(self._fd)
        return len(view)


def _cut(fd: int) -> None:
    with contextlib.suppress(OSError):
        size = os.fstat(fd).st_size
        if size > LIMIT:
            tail = os.pread(fd, TAIL, size - TAIL)
            os.ftruncate(fd, HEAD)
            os.write(fd, _GAP + tail)
