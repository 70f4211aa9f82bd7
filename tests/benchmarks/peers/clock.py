"""Time and memory of a training, taken in one way whatever trains."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Clock:
    """Notes the end of every optimizer step, by torch's hook on all optimizers.

    Evaluation makes no such step, so it is in no time. On a GPU the times are the device's, by events, which make
    no one wait. In the first epoch, which is for warming up, the loader processes' memory is looked at after each
    step; it is the only epoch that this disturbs.

    Attributes:
        loaders_mb: the most that loader processes had for themselves.
        others: processors that were busy with anything else, from the second epoch on (Linux; else 0).
    """

    def __init__(self, device: str = "cpu") -> None:
        self.loaders_mb = 0.0
        self.others = 0.0
        self._load: tuple[float, float, float] | None = None
        self._cuda = torch.device(device).type == "cuda"
        self._epochs: list[list[Any]] = []
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        if self._load is not None:
            began, busy, own = self._load
            seconds = time.perf_counter() - began
            self.others = max(0.0, busy_s() - busy - (own_cpu_s() - own)) / seconds

    def epoch(self) -> None:
        """Tell that an epoch starts: before loader processes are started, after evaluation."""
        if self._epochs and len(self._epochs[-1]) == 1:
            self._epochs.pop()  # an announcement that no step followed
        if len(self._epochs) == 1 and self._load is None:
            self._load = time.perf_counter(), busy_s(), own_cpu_s()
        self._epochs.append([self._now()])

    def _step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._epochs[-1].append(self._now())
        if len(self._epochs) == 1:
            self.loaders_mb = max(self.loaders_mb, loaders_mb())

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1e3 if self._cuda else b - a

    def times(self) -> list[dict[str, Any]]:
        """Return for each epoch its seconds, from its start to its last step, and those between steps."""
        if self._cuda:
            torch.cuda.synchronize()
        out = []
        for at in self._epochs:
            if len(at) > 1:
                between = [self._seconds(a, b) for a, b in pairwise(at[1:])]
                out.append(
                    {"seconds": self._seconds(at[0], at[-1]), "steps": len(at) - 1, "between": between}
                )
        return out


def busy_s() -> float:
    """Return the seconds that all processors have been busy, or taken from this machine (Linux; else 0)."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    """Return the processor seconds of this process and of its loader processes, ended or alive."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for process in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            # after the name in brackets, which may have blanks
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def loaders_mb() -> float:
    """Return the memory that the loader processes of this one do not share with any other (Linux; else 0)."""
    keys = ("Private_Clean:", "Private_Dirty:")
    pids = [process.pid for process in multiprocessing.active_children()]
    return sum(_kib(f"/proc/{pid}/smaps_rollup", key) for pid in pids for key in keys) / 1024


def own_peak_mb(device: str = "cpu") -> float:
    """Return the largest memory that this process has had: allocated on the GPU, or resident (Linux; else 0).

    Not from getrusage: its figure starts at that of the process that started this one.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _kib("/proc/self/status", "VmHWM:") / 1024


def _kib(path: str, key: str) -> float:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith(key)), 0.0)
