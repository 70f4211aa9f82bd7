"""Convolutions without the part of their kernel that meets nothing but padding, for networks that are only read.

Small images leave little of late stages: of a 3x3 kernel with padding 1 on one pixel, eight ninths meet padding,
and are multiplied and read from memory all the same.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

#: Height and width.
Size = tuple[int, int]


class Trimmed(nn.Module):
    """A convolution that takes images of one size by the part of its kernel that meets them."""

    def __init__(self, conv: nn.Conv2d, part: nn.Conv2d, size: Size) -> None:
        super().__init__()
        self.conv, self.part = conv, part
        self._size = size

    def forward(self, x: Tensor) -> Tensor:
        fits = tuple(x.shape[-2:]) == self._size
        return self.part(x) if fits else self.conv(x)  # type: ignore[no-any-return]


def conv_sizes(net: nn.Module, x: Tensor) -> dict[str, Size]:
    """Return the size of the input of each convolution that gets one size, by its path; `x`: (B, C, H, W)."""
    seen: dict[str, set[Size]] = defaultdict(set)
    handles = []

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            seen[path].add((args[0].shape[-2], args[0].shape[-1]))

        return hook

    try:
        for path, module in net.named_modules():
            if type(module) is nn.Conv2d:
                handles.append(module.register_forward_pre_hook(watch(path)))
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return {path: next(iter(sizes)) for path, sizes in seen.items() if len(sizes) == 1}


def trimmed(conv: nn.Conv2d, size: Size) -> Trimmed | None:
    """Return what stands in for a convolution on images of a size; None where all of its kernel is needed."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    sides = [_side(conv, axis, n) for axis, n in enumerate(size)]
    if any(side is None for side in sides) or all(
        side == (0, k, p) for side, k, p in zip(sides, conv.kernel_size, conv.padding, strict=True)
    ):
        return None
    (top, height, pad_y), (left, width, pad_x) = (side for side in sides if side is not None)
    part = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (height, width),
        conv.stride,
        (pad_y, pad_x),
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    weight = conv.weight.detach()
    flat = weight.is_contiguous(memory_format=torch.contiguous_format)
    layout = torch.contiguous_format if flat else torch.channels_last
    cut = weight[:, :, top : top + height, left : left + width]
    part.weight = nn.Parameter(cut.contiguous(memory_format=layout), requires_grad=False)
    part.bias = conv.bias
    return Trimmed(conv, part, size)


def _side(conv: nn.Conv2d, axis: int, n: int) -> tuple[int, int, int] | None:
    """Return first row, number of rows and padding of the part along an axis; None where there is no such part."""
    k, s, d = conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis]
    p = int(conv.padding[axis])
    outputs = (n + 2 * p - d * (k - 1) - 1) // s + 1
    met = [r for r in range(k) if any(0 <= i * s - p + r * d < n for i in range(outputs))]
    if not met:
        return None
    first, rows = met[0], met[-1] - met[0] + 1
    padding = p - first * d
    # the same number of outputs, from the same rows
    if padding < 0 or (n + 2 * padding - d * (rows - 1) - 1) // s + 1 != outputs:
        return None
    return first, rows, padding
