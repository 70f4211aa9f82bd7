"""All views of all training images, in a fixed order: what a table of a teacher's outputs is filled from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.engine.data.resident import ResidentStream
from kdbench.engine.data.splits import Split
from kdbench.engine.data.views import CropFlip
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import DataInfo

#: Pixels of a forward pass while a table is filled: 1024 images of 32 x 32.
PIXELS = 2**20


class EveryView:
    """Images by (number in the training split, view id), the same pixels as training streams give.

    Attributes:
        images: number of training images, N.
        views: number of views of each, V.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        info: DataInfo,
        crop: CropFlip,
        *,
        padding_mode: str,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.images, self.views = len(split), crop.count
        self._dataset, self._split, self._info, self._crop = dataset, split, info, crop
        self._mode, self._device, self._channels_last = padding_mode, device, channels_last

    def batches(self, first: int, last: int) -> Iterator[Tensor]:
        """Yield all views of images `first` to `last` (excluded), image by image: (B, C, H, W) each."""
        size = min(1024, max(32, PIXELS // self._info.image_size**2))
        numbers = self._split.indices[first:last]
        stream = ResidentStream(
            self._dataset.arrays(self._split.source, numbers),
            np.zeros(len(numbers), np.int64),
            self._info,
            seed=0,
            batch_size=size,
            device=self._device,
            augment=self._crop,
            padding_mode=self._mode,
            channels_last=self._channels_last,
        )
        for row in torch.arange(len(numbers) * self.views, device=self._device).split(size):
            yield stream.images(row // self.views, row % self.views)

    def facts(self) -> dict[str, Any]:
        """Return what the pixels depend on besides the data set's own identity."""
        info, split = self._info, self._split
        indices = np.ascontiguousarray(split.indices, dtype=np.int64)
        return {
            "revision": info.revision,
            "split": split.source,
            "indices": hashlib.sha256(indices.tobytes()).hexdigest(),
            "images": self.images,
            "image_size": info.image_size,
            "mean": list(info.mean),
            "std": list(info.std),
            "padding": self._crop.padding,
            "padding_mode": self._mode,
            "flip": self._crop.flip,
            "channels_last": self._channels_last,
        }
