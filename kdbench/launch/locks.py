"""Locks between the processes of one run folder. The kernel drops them when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileLock:
    """An advisory lock on a file, shared or exclusive."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def shared(self) -> None:
        """Wait for, and take, a share."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def exclusive(self) -> None:
        """Wait until nobody else holds it, and take it."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def try_exclusive(self) -> bool:
        """Take it if nobody holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let it go."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let it go for good."""
        os.close(self._fd)


class Turnstile:
    """Lets one process measure while all others of the run pause between epochs.

    Trainers hold a share of `main` during an epoch. Who wants to measure takes `intent` first, which keeps
    trainers from starting another epoch, and then `main`, which waits for those under way.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._main = FileLock(folder / f".measure-{device.replace(':', '-')}.lock")
        self._intent = FileLock(folder / f".intent-{device.replace(':', '-')}.lock")

    def gate(self) -> None:
        """Pass between two epochs; waits while another process measures."""
        self._main.release()
        self._intent.shared()
        self._intent.release()
        self._main.shared()

    def close(self) -> None:
        """Let go of everything for good."""
        self._main.close()
        self._intent.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold everybody else between epochs for the length of the block."""
        self._main.release()
        self._intent.exclusive()
        try:
            self._main.exclusive()
            yield
        finally:
            self._main.release()
            self._intent.release()
