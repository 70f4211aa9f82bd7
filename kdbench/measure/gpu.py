"""What the GPU of this process has left: memory, and time in which it does not compute."""

from __future__ import annotations

import torch

#: What a process takes besides its tensors, about.
_CONTEXT_MB = 500.0


def gpu_state(name: str) -> dict[str, float | None] | None:
    """Return ``memory_mb`` that this process takes of a device, ``free_mb`` of it, and ``busy`` in percent.

    None on the CPU. What the process takes is what its allocator has reserved at most; the context of CUDA comes
    on top, some 500 MiB, and is counted with it. ``busy`` needs pynvml; None without it, or where the driver
    does not tell.

    Args:
        name: of the device, such as ``cuda``.
    """
    if not name.startswith("cuda"):
        return None
    device = torch.device(name)
    try:
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.max_memory_reserved(device)
    except RuntimeError:
        return None
    return {"memory_mb": taken / 2**20 + _CONTEXT_MB, "free_mb": free / 2**20, "busy": _busy(device)}


def _busy(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # pynvml is missing, too old, or refuses (MIG, containers)
        return None
