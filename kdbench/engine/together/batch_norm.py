"""BatchNorm by the statistics of the whole batch, of which each process has a part.

Ioffe and Szegedy, arXiv:1502.03167. Whatever module calls ``torch.nn.functional.batch_norm`` gets it, so no
network is changed and no key of a state dict is. (torch's SyncBatchNorm works on GPUs only and replaces modules.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from kdbench.engine.together.group import Group

_SIGNATURE = inspect.signature(F.batch_norm)


class WholeBatch(TorchFunctionMode):
    """In its block, batch statistics are those of the whole batch."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments["training"]:
                return _batch_norm(self._group, **given.arguments)
        return func(*args, **(kwargs or {}))


def _batch_norm(
    group: Group,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    mean, var, count = _statistics(group, input.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return _Normalise.apply(group, input, weight, bias, mean, var, count, eps)  # type: ignore[no-any-return]


def _statistics(group: Group, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return by channel mean and biased variance over all parts, (C,) float64, and of how many values."""
    dims = [0, *range(2, x.dim())]
    n = x.numel() // x.shape[1]
    var, mean = torch.var_mean(x.float(), dims, correction=0)
    var, mean = var.double(), mean.double()
    told = torch.cat([n * mean, n * (var + mean.square()), mean.new_tensor([n])])
    first, second, count = group.sum_(told).split([len(mean), len(mean), 1])
    mean = first / count
    return mean, (second / count - mean.square()).clamp_min(0), count


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: Group,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        # torch's own kernel, told what the statistics are
        kind = torch.float32 if weight is None else weight.dtype
        return F.batch_norm(x, mean.to(kind), var.to(kind), weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        dy = grad.float()
        normal = (x.float() - mean.float().view(shape)) * scale.float().view(shape)
        mine = torch.stack([dy.sum(dims, dtype=torch.float64), (dy * normal).sum(dims, dtype=torch.float64)])
        need_x, need_weight, need_bias = ctx.needs_input_grad[1:4]
        to_weight = mine[1].to(weight.dtype) if need_weight and weight is not None else None
        to_bias = mine[0].to(torch.float32 if weight is None else weight.dtype) if need_bias else None
        to_x = None
        if need_x:
            by, by_normal = (ctx.group.sum_(mine.clone()) / count).float()
            factor = scale.float() if weight is None else scale.float() * weight.float()
            to_x = factor.view(shape) * (dy - by.view(shape) - normal * by_normal.view(shape))
            to_x = to_x.to(x.dtype)
        return None, to_x, to_weight, to_bias, None, None, None, None
