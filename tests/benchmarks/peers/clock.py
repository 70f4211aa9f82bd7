"""Time and memory of a training, taken in one way whatever trains."""

from __future__ import annotations

import multiprocessing
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from torch.optim.optimizer import register_optimizer_step_post_hook


class Clock:
    """Notes the end of every optimizer step, by torch's hook on all optimizers.

    Evaluation makes no such step, so it is in no time. In the first epoch, which is for warming up, the loader
    processes' memory is looked at after each step; it is the only epoch that this disturbs.
    """

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []
        self.loaders_mb = 0.0
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()

    def epoch(self) -> None:
        """Tell that an epoch starts: before loader processes are started, after evaluation."""
        if self.epochs and len(self.epochs[-1]) == 1:
            self.epochs.pop()  # an announcement that no step followed
        self.epochs.append([time.perf_counter()])

    def _step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.epochs[-1].append(time.perf_counter())
        if len(self.epochs) == 1:
            self.loaders_mb = max(self.loaders_mb, loaders_mb())

    def times(self) -> list[dict[str, Any]]:
        """Return for each epoch its seconds, from its start to its last step, and those between steps."""
        out = []
        for at in self.epochs:
            if len(at) > 1:
                between = [b - a for a, b in pairwise(at[1:])]
                out.append({"seconds": at[-1] - at[0], "steps": len(at) - 1, "between": between})
        return out


def loaders_mb() -> float:
    """Return the memory that the loader processes of this one do not share with any other (Linux; else 0)."""
    keys = ("Private_Clean:", "Private_Dirty:")
    pids = [process.pid for process in multiprocessing.active_children()]
    return sum(_kib(f"/proc/{pid}/smaps_rollup", key) for pid in pids for key in keys) / 1024


def own_peak_mb() -> float:
    """Return the largest resident memory that this process has had (Linux; else 0).

    Not from getrusage: its figure starts at that of the process that started this one.
    """
    return _kib("/proc/self/status", "VmHWM:") / 1024


def _kib(path: str, key: str) -> float:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith(key)), 0.0)
