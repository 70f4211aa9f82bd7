"""The augmentation as a pure function of (seed, epoch, sample): a table of view ids per epoch.

Crop with padding p and flip has ``(2p+1)^2 * 2`` views (162 for p = 4). Every method of a seed therefore sees
the same views in the same order, and any step can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.matrix.identity import derive_seed


def _generator(seed: int, *axes: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *axes))


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of an epoch: a permutation of ``range(n)``, int64 on the CPU."""
    return torch.randperm(n, generator=_generator(seed, "order", epoch))


@dataclass(frozen=True)
class CropFlip:
    """Random crop after padding, and horizontal flip."""

    padding: int
    flip: bool

    @property
    def count(self) -> int:
        """Number of distinct views of an image."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def table(self, seed: int, epoch: int, n: int, view: str = "") -> Tensor:
        """Return the view id of each of `n` samples in an epoch, int64 (n,) on the CPU."""
        return torch.randint(self.count, (n,), generator=_generator(seed, "augment", view, epoch))

    def decode(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (row offset, column offset, flip) of view ids."""
        side = 2 * self.padding + 1
        return ids // side % side, ids % side, ids // (side * side) == 1
