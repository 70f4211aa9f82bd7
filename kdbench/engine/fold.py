"""BatchNorm folded into the convolution before it, for networks that are only read.

In eval mode ``BN(conv(x)) = gamma (conv(x) - mean) / sqrt(var + eps) + beta`` is a convolution again, with the
weights ``W gamma / sqrt(var + eps)``. Which layers can be folded is seen in one forward pass: nothing but the
BatchNorm may read the convolution's output.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Largest difference of logits, relative to the largest logit, that folding may make.
TOLERANCE = 1e-3


#: Methods of a tensor that tell of it without reading its values.
_FACTS = frozenset(
    {"dim", "ndimension", "size", "stride", "numel", "nelement", "is_contiguous", "is_floating_point"}
)


class Rest(nn.Module):
    """What is left of a BatchNorm that was folded: its activation, under the names that timm gives them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))  # type: ignore[no-any-return]


class _Readers(TorchFunctionMode):
    """Counts how many operations read each tensor. Keeps the tensors, so that no address is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _FACTS or (_is_getter(func) and not isinstance(out, Tensor)):
            return out
        for value in (*args, *(kwargs or {}).values()):
            for t in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(t, Tensor):
                    self._kept.append(t)
                    self.count[id(t)] += 1
        return out


def _is_getter(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__"  # of a shape, a type, a device


def foldable(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Return the paths of convolutions and of the BatchNorm that alone reads each.

    Args:
        net: in eval mode.
        x: images (B, C, H, W) that the network takes.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str, Tensor]] = []
    calls: Counter[str] = Counter()
    handles: list[Any] = []

    def conv(path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            calls[path] += 1
            made[id(out)] = path, out

        return hook

    def norm(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            calls[path] += 1
            if id(args[0]) in made:
                pairs.append((made[id(args[0])][0], path, args[0]))

        return hook

    readers = _Readers()
    try:
        for path, module in net.named_modules():
            if type(module) is nn.Conv2d:
                handles.append(module.register_forward_hook(conv(path)))
            elif _has_statistics(module):
                handles.append(module.register_forward_pre_hook(norm(path)))
        with torch.no_grad(), readers:
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (first, second)
        for first, second, value in pairs
        if calls[first] == calls[second] == 1 and readers.count[id(value)] == 1 and value._version == 0
    ]


def _has_statistics(module: nn.Module) -> bool:
    plain = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return plain and module.track_running_stats and module.running_mean is not None


def folded(net: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Return a copy of `net` without the BatchNorm layers of `pairs`; it shares all other weights with `net`."""
    shared: dict[int, Any] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    out = copy.deepcopy(net, shared)
    for first, second in pairs:
        _fold(out.get_submodule(first), out.get_submodule(second))
        parent, _, name = second.rpartition(".")
        setattr(out.get_submodule(parent), name, Rest(out.get_submodule(second)))
    return out.requires_grad_(False).eval()


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    variance, eps = norm.running_var.double(), norm.eps
    scale = torch.rsqrt(variance + eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    kept = conv.weight
    layout = torch.channels_last if kept.is_contiguous(memory_format=torch.channels_last) else None
    weight = (kept.double() * scale.view(-1, 1, 1, 1)).to(kept.dtype)
    weight = weight.contiguous(memory_format=layout or torch.contiguous_format)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(shift.to(kept.dtype), requires_grad=False)


def agrees(net: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Return whether two networks give the same logits for images (B, C, H, W), up to rounding."""
    with torch.no_grad():
        a, b = net(x), other(x)
    return bool(((a - b).abs().max() <= TOLERANCE * a.abs().max().clamp(min=1.0)).item())
