"""Locks between the processes of one run folder. The kernel drops them when their holder dies."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.results.filelock import FileLock

__all__ = ["FileLock", "Turnstile"]


class Turnstile:
    """Lets one process measure while all others of the run on its machine and device pause between steps.

    Trainers hold a share of `main` while they train. Who wants to measure takes `intent` first, at which trainers
    let their share go after the step under way, and then `main`, which waits for the last of them.

    Args:
        folder: of the locks.
        device: on which they train and measure.
        tell: called with true when this process begins to wait for others, and with false when it goes on.
    """

    def __init__(self, folder: Path, device: str, tell: Callable[[bool], None] | None = None) -> None:
        self._tell = tell or (lambda waits: None)
        name = device.replace(":", "-")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if device == "cuda" and visible and "," not in visible:
            # the launcher gave this process one of several GPUs; the others need not wait for it
            name = f"cuda-{re.sub(r'[^0-9A-Za-z-]', '-', visible)}"
        # cells of one folder may run on several machines, which do not slow one another down
        name = f"{re.sub(r'[^0-9A-Za-z.-]', '-', socket.gethostname())}-{name}"
        self._main = FileLock(folder / f".measure-{name}.lock")
        self._intent = FileLock(folder / f".intent-{name}.lock")

    def wanted(self) -> bool:
        """Return whether another process wants to measure. Takes about a microsecond."""
        if not self._intent.try_shared():
            return True
        self._intent.release()
        return False

    def gate(self) -> None:
        """Pass between two epochs or steps; waits while another process measures."""
        self._main.release()
        self._share(self._intent)
        self._intent.release()
        self._share(self._main)

    def close(self) -> None:
        """Let go of everything for good."""
        self._main.close()
        self._intent.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold everybody else between epochs for the length of the block."""
        self._main.release()
        try:
            with self._waiting():
                self._intent.exclusive()
                self._main.exclusive()
            yield
        finally:
            self._main.release()
            self._intent.release()

    def _share(self, lock: FileLock) -> None:
        if not lock.try_shared():
            with self._waiting():
                lock.shared()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._tell(True)
        try:
            yield
        finally:
            self._tell(False)
