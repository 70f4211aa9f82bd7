"""Precision of a run: autocast, TF32 and the gradient scaler that fp16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from kdbench.engine.optim import Driven
from kdbench.errors import KdbenchError


def automatic(device: str) -> str:
    """Return what ``precision: auto`` stands for: bf16 where the device has units for it, else fp32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    able = any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return "bf16" if able else "fp32"


class Precision:
    """``fp32``, ``tf32``, ``bf16`` or ``fp16`` on one device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        if name == "auto":
            raise KdbenchError("recipe.precision: auto must be settled when cells are planned")
        if name in ("tf32", "fp16") and device.type != "cuda":
            raise KdbenchError(
                f"recipe.precision: {name} needs a CUDA device; use fp32 or bf16 on {device.type}"
            )
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            torch.backends.cudnn.allow_tf32 = name == "tf32"
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.scaler = torch.amp.GradScaler("cuda", enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast for forward passes."""
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)

    def backward(self, loss: Tensor, *, retain_graph: bool) -> None:
        """Backward of the (scaled) loss."""
        self.scaler.scale(loss).backward(retain_graph=retain_graph)

    def step(self, chosen: Sequence[Driven], clip: float | None) -> None:
        """Unscale, clip and step."""
        for driven in chosen:
            driven.align()
            if clip is not None:
                self.scaler.unscale_(driven.optimizer)
                clip_grad_norm_(driven.params, clip)
            self.scaler.step(driven.optimizer)
        self.scaler.update()
