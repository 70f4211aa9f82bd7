"""Inference speed of networks: interleaved rounds, warm-up outside the clock, median and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.results.schema import BatchSpeed

#: A contender's rounds end early when they have taken this long in all.
MAX_SECONDS = 3.0


def measure(
    nets: Mapping[str, nn.Module],
    make_inputs: Callable[[int], tuple[Tensor, ...]],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    max_seconds: float = MAX_SECONDS,
) -> tuple[dict[str, dict[str, BatchSpeed]], list[str]]:
    """Time forward passes of every network at every batch size.

    Rounds of all contenders are interleaved, so that a slow minute of the machine hits all alike. One round is
    one call, timed with CUDA events or a monotonic clock; p50 and p95 are over rounds. Training flags are put
    back.

    Returns:
        ``{network: {batch size: speed}}`` and a warning for each (network, batch size) that ran out of memory:
        the batch is never lowered silently.
    """
    modes = [(m, m.training) for net in nets.values() for m in net.modules()]
    inputs = {b: make_inputs(b) for b in batch_sizes}
    warnings: list[str] = []
    times: dict[tuple[str, int], list[float]] = {}
    memory: dict[tuple[str, int], float | None] = {}
    try:
        for net in nets.values():
            net.eval()
        with torch.inference_mode(), autocast():
            for key in [(name, b) for name in nets for b in batch_sizes]:
                try:
                    memory[key] = _warm_up(nets[key[0]], inputs[key[1]], device)
                    times[key] = []
                except (torch.OutOfMemoryError, MemoryError):
                    warnings.append(f"throughput of '{key[0]}' at batch {key[1]}: out of memory")
            spent = dict.fromkeys(times, 0.0)
            for _ in range(rounds):
                for key, seen in times.items():
                    if spent[key] < max_seconds or len(seen) < 3:
                        seconds = _timed(nets[key[0]], inputs[key[1]], device)
                        seen.append(seconds)
                        spent[key] += seconds
    finally:
        for module, training in modes:
            module.training = training
    out: dict[str, dict[str, BatchSpeed]] = {name: {} for name in nets}
    for (name, b), seen in times.items():
        out[name][str(b)] = summarise(seen, b, memory[name, b])
    return out, warnings


def summarise(seconds: Sequence[float], batch: int, peak_memory_mb: float | None = None) -> BatchSpeed:
    """Turn the rounds of one contender into a speed: median, p95 and interquartile range over median."""
    median = statistics.median(seconds)
    cuts = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else [median] * 19
    return BatchSpeed(
        images_per_s=batch / median,
        latency_ms_p50=1e3 * median,
        latency_ms_p95=1e3 * cuts[18],
        iqr_ratio=(cuts[14] - cuts[4]) / median,
        rounds=len(seconds),
        peak_memory_mb=peak_memory_mb,
    )


def _warm_up(net: nn.Module, args: tuple[Tensor, ...], device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        net(*args)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _timed(net: nn.Module, args: tuple[Tensor, ...], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        net(*args)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    start = time.perf_counter()
    net(*args)
    return time.perf_counter() - start


def median_seconds(call: Callable[[], Any], device: torch.device, *, repeats: int = 5) -> float:
    """Return the median seconds of `call`, after one warm-up."""
    call()
    seen = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seen.append(time.perf_counter() - start)
    return statistics.median(seen)
