"""Locks between the processes of one run folder. The kernel drops them when their holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.results.filelock import FileLock

__all__ = ["FileLock", "Turnstile"]


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
