"""What several methods share: precision, divergences, connectors, feature sizes, stage pairs."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.api import NotApplicable, Run, Tap, pair_stages


def full(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32 and others unchanged (float64 keeps its digits)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def kl_divergence(zs: Tensor, zt: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``(1/B) Σ_b Σ_k p_t (log p_t - log p_s)`` with ``p = softmax(z/T)``, a scalar in nats.

    `zs` (student) and `zt` (teacher) are logits (B, K). There is no factor T².
    """
    log_s = F.log_softmax(full(zs) / temperature, 1)
    log_t = F.log_softmax(full(zt) / temperature, 1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def standardise(z: Tensor) -> Tensor:
    """Return ``(z - mean) / (std + 1e-7)`` of each row of logits (B, K), std with K - 1 in the denominator.

    Logit standardisation of Sun et al., CVPR 2024, arXiv:2403.01427, as its official code has it.
    """
    z = full(z)
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)


def connector(c_in: int, c_out: int) -> nn.Sequential:
    """Return a 1×1 convolution without bias, drawn from N(0, √(2/(k²·C_out))), and BatchNorm.

    (B, c_in, H, W) -> (B, c_out, H, W).
    """
    conv = nn.Conv2d(c_in, c_out, 1, bias=False)
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / c_out))
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool (B, C, H, W) maps to the smaller height and the smaller width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pool(a, size), _pool(b, size)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = x.shape[2:]
    if (height, width) == size:
        return x
    if height % size[0] == 0 and width % size[1] == 0:
        # Equal to adaptive pooling here, and its gradient is deterministic on CUDA, unlike that one's.
        return F.avg_pool2d(x, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(x, size)


def stage_pairs(run: Run, when: Literal["post", "pre"]) -> list[tuple[Tap, Tap]]:
    """Return ``[(student tap, teacher tap), ...]`` of the paired stages, last stage last.

    Raises NotApplicable where one of the networks has no stages.
    """
    for handle in (run.student, run.teacher):
        if not handle.stages:
            raise NotApplicable(f"{handle.name} has no stages to take features from")
    return pair_stages(run.student, run.teacher, when=when)


def want_pairs(run: Run, when: Literal["post", "pre"]) -> list[tuple[Tap, Tap]]:
    """Ask both networks for all their paired stages and return the pairs as :func:`stage_pairs` does."""
    pairs = stage_pairs(run, when)
    run.student.want(*(s for s, _ in pairs))
    run.teacher.want(*(t for _, t in pairs))
    return pairs


def channels(handle: Any, tap: Tap) -> int:
    """Return C of a feature (B, C, H, W)."""
    return int(handle.shape(tap)[1])


def require_categorical(run: Run, method: str) -> None:
    """Raise NotApplicable unless the task's outputs are logits over classes."""
    if run.task.kind != "categorical":
        raise NotApplicable(f"{method} is defined on class logits; the task's outputs are {run.task.kind}")
