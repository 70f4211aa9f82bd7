"""Interleaved rounds of contenders: blocks of calls, single calls, and the first rounds again at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

#: Seconds that one block of calls should take, so that the clock and the wait for the device do not count.
BLOCK_S = 0.02
#: A call as long as this gains nothing from an untimed one before it.
LONG_S = 0.2
#: Rounds that are repeated at the end.
REPEATED = 3
WARM_UPS, WARM_UP_S = 3, 0.1


@dataclass(eq=False)
class Contender:
    """Something that is timed.

    Attributes:
        call: does the work once; it need not wait for the device.
        enter: called, untimed, before each block: modes and flags that another contender changed.
        calls: calls of a block, set by :func:`warm_up`.
        blocks: seconds of one call in each block.
        singles: seconds of the single calls.
        again: like `blocks`, of the rounds repeated at the end.
        error: what ended it; it takes part no further.
    """

    call: Callable[[], object]
    enter: Callable[[], None] = lambda: None
    calls: int = 1
    once_s: float = 0.0
    spent_s: float = 0.0
    blocks: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    error: Exception | None = None

    @property
    def drift(self) -> float | None:
        """Relative change of the median from the first rounds to their repetition; None where there is none."""
        first = self.blocks[: len(self.again)]
        return statistics.median(self.again) / statistics.median(first) - 1 if first else None


def seconds_of(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the seconds of `calls` calls in a row, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(contender: Contender, device: torch.device) -> None:
    """Call it at least three times and for 0.1 s, then choose how many calls make a block. May raise anything."""
    contender.enter()
    start, times = time.perf_counter(), []
    while len(times) < WARM_UPS or time.perf_counter() - start < WARM_UP_S:
        times.append(seconds_of(contender.call, 1, device))
    contender.once_s = statistics.median(times[-WARM_UPS:])
    contender.calls = max(1, math.ceil(BLOCK_S / contender.once_s))


def play(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    max_seconds: float,
    device: torch.device,
    told: Callable[[int], None] = lambda done: None,
) -> None:
    """Time all warm contenders in turn, `rounds` times; then the first rounds again: has the machine drifted?

    Rounds are interleaved, so that a slow minute hits all alike. In a round each contender makes an untimed call
    (unless a call is long), a single timed one, and a timed block of calls. After `max_seconds` a contender sits
    out, but not before its third round. One that raises is out, with its ``error``.
    """
    for number in range(rounds):
        for one in contenders:
            if one.error is None and (number < REPEATED or one.spent_s < max_seconds):
                _round(one, one.blocks, one.singles, device)
        told(number + 1)
    for _ in range(min(REPEATED, rounds)):
        for one in contenders:
            if one.error is None:
                _round(one, one.again, [], device)


def _round(one: Contender, blocks: list[float], singles: list[float], device: torch.device) -> None:
    start = time.perf_counter()
    try:
        one.enter()
        if one.once_s < LONG_S:
            seconds_of(one.call, 1, device)
        single = seconds_of(one.call, 1, device)
        block = single if one.calls == 1 else seconds_of(one.call, one.calls, device) / one.calls
    except Exception as error:
        one.error = error
        return
    singles.append(single)
    blocks.append(block)
    one.spent_s += time.perf_counter() - start
