"""Clocks of a cell: real time, or the time of its own turns when several cells take turns in one process."""

from __future__ import annotations

import time

import torch


class Clock:
    """Real time in seconds."""

    def __call__(self) -> float:
        return time.perf_counter()

    def take(self) -> float:
        """Return the seconds that were given since the last call: none to a cell that runs alone."""
        return 0.0


class TurnClock(Clock):
    """Runs only during a cell's own turns, and is told what others did for the cell.

    A batch or a teacher's forward that was made for several cells counts in full on each of their clocks, as if
    each had made it; :meth:`take` tells what the cell was so given. On a GPU a turn ends when the device is
    done with it: what one cell queues must not run on the time of the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._given = 0.0
        self._device = device
        self._total = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)

    def resume(self) -> None:
        """A turn begins."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """A turn ends."""
        if self._since is not None:
            wait(self._device)
            self._total += time.perf_counter() - self._since
            self._since = None

    def charge(self, seconds: float) -> None:
        """Count what another cell did for this one."""
        self._total += seconds
        self._given += seconds

    def take(self) -> float:
        """Return the seconds that were charged since the last call."""
        given, self._given = self._given, 0.0
        return given


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
