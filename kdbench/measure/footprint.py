"""What this process as a whole holds, on the device or the host, and the most that it held."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


def used_bytes(device: torch.device) -> int:
    """Return what this process holds: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Return the most that this process held since :func:`reset_peak`, or since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Begin to look for a new peak, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    """Return an entry of the process's status in bytes; 0 where the system has none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0
