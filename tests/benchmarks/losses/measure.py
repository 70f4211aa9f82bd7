"""Time and memory of a loss and of its formula in straight lines, in turn, in one process."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Timer = Callable[[], float]

#: Seconds for the rounds of one comparison, how many rounds there are at least and at most, and from how many
#: seconds a round on there is one only.
SECONDS, FEWEST, MOST, SLOW = 4.0, 3, 100, 10.0


def synchronised(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Return a function that calls and waits until the device is done."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


class Storages(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are alive at once; views count nothing.

    What an operation allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in given | self._known:
                    self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """Return what a call returns, and the largest number of bytes that it holds beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = call()
        torch.cuda.synchronize(device)
        return out, torch.cuda.max_memory_allocated(device) - before
    with Storages() as storages:
        out = call()
    return out, storages.peak


@dataclass
class Turns:
    """Seconds of both, round by round."""

    ours: Sequence[float]
    plain: Sequence[float]

    @property
    def ratio(self) -> float:
        """The median over the rounds of the ratio of neighbours in time, which a busy machine slows alike."""
        return statistics.median(a / b for a, b in zip(self.ours, self.plain, strict=True))

    @property
    def fastest_ratio(self) -> float:
        """The ratio of the fastest rounds."""
        return min(self.ours) / min(self.plain)


def in_turns(benchmark: Any, ours: Callable[[], None], plain: Callable[[], None], timer: Timer) -> Turns:
    """Time `ours` with pytest-benchmark (which must use `timer` too), and `plain` before each of its rounds."""
    seconds: list[float] = []

    def before_each_round() -> None:
        seconds.append(clocked(plain, timer))

    once = 2 * clocked(plain, timer)
    rounds = 1 if once > SLOW else int(min(MOST, max(FEWEST, SECONDS / once)))
    benchmark.pedantic(ours, setup=before_each_round, rounds=rounds, warmup_rounds=int(rounds > FEWEST))
    # a warm-up has a setup too
    return Turns(benchmark.stats.stats.data, seconds[-rounds:])


def clocked(call: Callable[[], Any], timer: Timer) -> float:
    """Return the seconds of a call."""
    start = timer()
    call()
    return timer() - start
