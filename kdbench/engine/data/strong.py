"""The ``strong`` view: RandAugment with 2 operations of magnitude 10 of 30, on pixels cropped and flipped.

What happens to a sample is drawn from (seed, epoch, sample) alone. Images of a batch that get the same operation
get it together, by torchvision's functions for batches, so no work is done per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.matrix.identity import derive_seed

#: Operations per image.
DEPTH = 2
#: Number of the magnitude among BINS.
MAGNITUDE, BINS = 10, 31


def strong_table(seed: int, epoch: int, n: int) -> Tensor:
    """Return the operations of each of `n` samples in an epoch, int64 (n, 2) on the CPU.

    A code is twice the number of the operation, and one more where the magnitude is negative.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "strong", epoch))
    return torch.randint(2 * len(OPERATIONS), (n, DEPTH), generator=generator)


def strong_view(pixels: Tensor, codes: Tensor) -> Tensor:
    """Apply RandAugment (Cubuk et al. 2019, arXiv:1909.13719), with torchvision's operations and magnitudes.

    Args:
        pixels: uint8 (B, H, W, C).
        codes: int64 (B, 2) on the CPU, as :func:`strong_table` gives them.
    """
    images = pixels.permute(0, 3, 1, 2).clone()
    for layer in codes.unbind(1):
        for code in layer.unique().tolist():
            chosen = (layer == code).nonzero()[:, 0].to(pixels.device)
            operation = OPERATIONS[code // 2]
            images[chosen] = operation(images[chosen], -1.0 if code % 2 else 1.0)
    return images.permute(0, 2, 3, 1).contiguous()


def _magnitude(most: float, first: float = 0.0) -> float:
    """Return the magnitude in float32, as torchvision has it, so that every pixel is the same."""
    return float(torch.linspace(first, most, BINS)[MAGNITUDE])


def _affine(images: Tensor, **changes: Any) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    plain: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return F.affine(images, **(plain | changes))


def _shear(axis: int) -> Callable[[Tensor, float], Tensor]:
    def apply(images: Tensor, sign: float) -> Tensor:
        shear = [0.0, 0.0]
        shear[axis] = math.degrees(math.atan(sign * _magnitude(0.3)))
        return _affine(images, shear=shear, center=[0, 0])

    return apply


def _translate(axis: int) -> Callable[[Tensor, float], Tensor]:
    def apply(images: Tensor, sign: float) -> Tensor:
        size = images.shape[3 - axis]
        translate = [0, 0]
        translate[axis] = int(sign * _magnitude(150.0 / 331.0 * size))
        return _affine(images, translate=translate)

    return apply


def _call(name: str, *arguments: Any) -> Callable[[Tensor, float], Tensor]:
    def apply(images: Tensor, sign: float) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        return getattr(F, name)(images, *arguments)  # type: ignore[no-any-return]

    return apply


def _scaled(name: str, most: float, base: float = 0.0) -> Callable[[Tensor, float], Tensor]:
    return lambda images, sign: _call(name, base + sign * _magnitude(most))(images, sign)


#: torchvision's operations, in its order; each takes uint8 (B, C, H, W) and the sign of the magnitude.
OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda images, sign: images,
    _shear(0),
    _shear(1),
    _translate(0),
    _translate(1),
    _scaled("rotate", 30.0),
    _scaled("adjust_brightness", 0.9, 1.0),
    _scaled("adjust_saturation", 0.9, 1.0),
    _scaled("adjust_contrast", 0.9, 1.0),
    _scaled("adjust_sharpness", 0.9, 1.0),
    _call("posterize", 8 - round(4 * MAGNITUDE / (BINS - 1))),
    _call("solarize", 255 * _magnitude(0.0, 1.0)),
    _call("autocontrast"),
    _call("equalize"),
)
