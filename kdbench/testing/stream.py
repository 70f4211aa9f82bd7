"""Training batches of the bench: random images in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdbench.protocol.types import Batch

IMAGE_SIZE = 32
#: Always drawn together, so that the first images are the same however many a stream uses.
MADE = 32


class Undeclared(Exception):
    """A method read what its needs do not declare."""


class TinyStream:
    """Batches of random images of 32 pixels with labels.

    Args:
        batches: numbers of the images of each step; the same in every epoch.
        images: number of images of the set, where it has more than the batches use.
        views: number of further views of each image.
        classes: number of classes, K; image i has label i mod K.
        labelled, indexed: whether batches carry ``y`` and ``index``.
        readable: otherwise an epoch raises :class:`Undeclared`.
        variant: another number gives other images.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[int]],
        *,
        images: int = 0,
        views: int = 0,
        classes: int = 5,
        labelled: bool = True,
        indexed: bool = True,
        readable: bool = True,
        variant: int = 0,
    ) -> None:
        self._batches = [torch.tensor(numbers) for numbers in batches]
        self.n = max(images, *(1 + int(numbers.max()) for numbers in self._batches))
        generator = torch.Generator().manual_seed(1 + variant)
        shape = (max(MADE, self.n), 3, IMAGE_SIZE, IMAGE_SIZE)
        self._x = [torch.randn(shape, generator=generator) for _ in range(1 + views)]
        self.labels: Tensor | None = torch.arange(self.n) % classes if labelled else None
        self._indexed, self._readable = indexed, readable

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches from step `start` on; every epoch is the same."""
        if not self._readable:
            raise Undeclared('the training set is read, and the needs say data="none"')
        for i in self._batches[start:]:
            main, *views = (x[i] for x in self._x)
            y = None if self.labels is None else self.labels[i]
            yield Batch(main, y, i if self._indexed else None, tuple(views))
