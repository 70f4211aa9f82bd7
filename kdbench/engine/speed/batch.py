"""Finding a batch size: doubled until memory ends or speed no longer rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from kdbench.measure.memory import out_of_memory
from kdbench.measure.rounds import Contender, seconds_of, warm_up

#: A doubling is worth its memory when it makes at least this much of the best speed so far ...
WORTH = 1.05
#: ... and the search ends after so many in a row that are not: one alone may be a bad moment.
PATIENCE = 2
LARGEST = 4096
#: Share of the free memory that a batch may be expected to need.
SHARE = 0.8


@dataclass(frozen=True)
class Found:
    """Outcome of a search: the fastest batch size tried (None: not even the first fitted) and why it ended."""

    batch: int | None
    why: Literal["memory", "speed", "limit"]


def find_batch(
    make: Callable[[int], Contender],
    bytes_of: Callable[[Contender, int], int],
    free: Callable[[], int | None],
    device: torch.device,
    *,
    start: int = 1,
    drop: Callable[[int], None] = lambda batch: None,
) -> Found:
    """Double a batch size from `start`.

    The search ends when a batch runs out of memory, when the next one is expected to (twice the need of the last
    against 80 % of what is free: on a CPU the system would kill the process), or when two doublings in a row do
    not raise images/s by 5 % of the best. The answer is the smallest size that no later one beats by that.

    Args:
        make: returns the contender of a batch size.
        bytes_of: returns what a warm contender needs at most.
        free: returns the free bytes, None where they are unknown.
        drop: lets the input of a batch size go.

    Raises what a call raises, but for a lack of memory.
    """
    best: int | None = None
    best_speed, idle, batch = 0.0, 0, start
    while True:
        try:
            contender = make(batch)
            warm_up(contender, device)
            # what else the machine does only ever adds
            once = (
                min(seconds_of(contender.call, contender.calls, device) for _ in range(3)) / contender.calls
            )
            need = bytes_of(contender, batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
            empty(device)
            return Found(best, "memory")
        finally:
            drop(batch)
        idle += 1
        if best is None or batch / once >= WORTH * best_speed:
            best, best_speed, idle = batch, batch / once, 0
        if idle == PATIENCE:
            return Found(best, "speed")
        batch *= 2
        if batch > LARGEST:
            return Found(best, "limit")
        left = free()
        if left is not None and 2 * need > SHARE * left:
            return Found(best, "memory")


def empty(device: torch.device) -> None:
    """Give back what torch keeps for later, after a lack of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
