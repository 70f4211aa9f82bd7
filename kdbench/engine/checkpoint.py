"""Checkpoints: tensors as safetensors, everything else as JSON in its header. No pickle, ever."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.measure.memory import out_of_memory
from kdbench.results.store import atomic_write_bytes


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples into a flat dict of tensors and a JSON skeleton."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = f"t{len(tensors)}"
            # a copy each: safetensors refuses tensors that share memory, and shared modules do
            tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"$t": key}
        if isinstance(value, Mapping):
            return {"$d": [[walk(k), walk(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"$u": [walk(v) for v in value]}
        if isinstance(value, list):
            return [walk(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"cannot save a {type(value).__name__} in a checkpoint")

    return tensors, walk(state)


def unpack(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """Invert :func:`pack`."""
    if isinstance(skeleton, list):
        return [unpack(tensors, v) for v in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "$t" in skeleton:
        return tensors[skeleton["$t"]]
    if "$u" in skeleton:
        return tuple(unpack(tensors, v) for v in skeleton["$u"])
    return {unpack(tensors, k): unpack(tensors, v) for k, v in skeleton["$d"]}


def save_state(path: Path, state: Any) -> None:
    """Write a nested state atomically."""
    tensors, skeleton = pack(state)
    metadata = {"state": json.dumps(skeleton), "crc32": _crc32(tensors)}
    atomic_write_bytes(path, save(tensors, metadata=metadata))


def _crc32(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of contiguous tensors on the CPU; safetensors notices a length that changed, not a bit."""
    crc = 0
    for key in sorted(tensors):
        tensor = tensors[key]
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote.

    Raises KdbenchError naming a file that is not a whole checkpoint, and what says that memory ran out, as it is;
    OSError where the file system does not give it, which tells nothing of what is in it.
    """
    with path.open("rb") as file:  # of safetensors any such error is that of a file that is not there
        file.read(1)
    try:
        with safe_open(str(path), framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict
            metadata = f.metadata()
        if metadata.get("crc32") not in (None, _crc32(tensors)):
            raise ValueError("its tensors are not as they were written")
        return unpack(tensors, json.loads(metadata["state"]))
    except Exception as e:
        if out_of_memory(e):  # the file may be as it should
            raise
        raise KdbenchError(f"{path}: not a usable checkpoint ({type(e).__name__}: {e})") from e


def weights_bytes(net: torch.nn.Module) -> bytes:
    """Return a network's state dict as the bytes of a safetensors file (equal weights give equal bytes)."""
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in net.state_dict().items()
    }
    return save(state)
