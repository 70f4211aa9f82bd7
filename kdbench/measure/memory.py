"""Peak memory of a call, the memory that there is, and errors that say that there is no more."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What torch says when the host has no more; its allocator of the CPU has no error of its own for it.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live; views count nothing.

    Attributes:
        peak: largest number of bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and _key(made) not in before | self._known:
                self._add(made.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)

        def gone() -> None:
            self._known.discard(key)
            self._now -= size

        weakref.finalize(storage, gone)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def growth_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a call holds at one time beyond what was there before it.

    On a GPU these are bytes allocated, on the CPU bytes of tensors.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with LiveTensors() as live:
        call()
    return live.peak


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the distinct storages of the tensors among `tensors`."""
    found = {_key(t): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(found.values())


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be had on a device, or None where the system does not tell.

    On the CPU this is the memory that the system calls available, within the limit of the control group.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    known = [value for value in (_available(), _left_in_group()) if value is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    for limit, usage in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int(limit.read_text()) - int(usage.read_text()))
        except (OSError, ValueError):  # "max" is no number: there is no limit
            continue
    return None
