"""The ``strong`` view: RandAugment(2, 10) of torchvision on pixels that are already cropped and flipped."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.engine.seeds import seeded


def strong_view(pixels: Tensor, seed: int) -> Tensor:
    """Apply RandAugment (Cubuk et al. 2019, arXiv:1909.13719; 2 operations, magnitude 10 of 30) per image.

    Args:
        pixels: uint8 (B, H, W, C).
        seed: of this batch; the global generator is left as it was.
    """
    from torchvision.transforms import v2

    augment = v2.RandAugment(num_ops=2, magnitude=10)
    with seeded(seed):
        images = [augment(image) for image in pixels.permute(0, 3, 1, 2).cpu()]
    return torch.stack(images).permute(0, 2, 3, 1).contiguous().to(pixels.device)
