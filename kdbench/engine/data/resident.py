"""Small data sets: the whole split lives on the device as padded uint8; a batch is one flat gather."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.engine.data.origin import Origin
from kdbench.engine.data.strong import strong_table, strong_view
from kdbench.engine.data.views import CropFlip, epoch_order
from kdbench.protocol.types import Batch, DataInfo


class Normalise:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W): scaled to [0, 1], then (x - mean) / std."""

    def __init__(self, info: DataInfo, device: torch.device, *, channels_last: bool) -> None:
        self.mean = torch.tensor(info.mean, device=device)
        self.std = torch.tensor(info.std, device=device)
        self.channels_last = channels_last

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.float().div_(255).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)
        return x if self.channels_last else x.contiguous()


def pad_images(images: np.ndarray[Any, Any], padding: int, mode: str) -> Tensor:
    """Pad (N, H, W, C) uint8 images before normalising: zeros are black, as in torchvision's RandomCrop."""
    x = torch.from_numpy(np.ascontiguousarray(images))
    if padding == 0:
        return x
    if mode == "zeros":
        return F.pad(x, (0, 0, padding, padding, padding, padding))
    chunks = [
        F.pad(part.permute(0, 3, 1, 2).float(), (padding,) * 4, mode="reflect").byte().permute(0, 2, 3, 1)
        for part in x.split(4096)
    ]
    return torch.cat(chunks).contiguous()


class ResidentStream:
    """Training batches of a resident split."""

    def __init__(
        self,
        images: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        info: DataInfo,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        augment: CropFlip | None,
        padding_mode: str = "zeros",
        views: Sequence[str] = (),
        drop_last: bool = False,
        channels_last: bool = True,
        labelled: bool = True,
    ) -> None:
        self._crop = augment or CropFlip(0, False)
        padded = pad_images(images, self._crop.padding, padding_mode)
        self._n, self._rows, self._cols, channels = padded.shape
        self._size = info.image_size
        self._flat = padded.reshape(-1, channels).to(device)
        self._labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self._normalise = Normalise(info, device, channels_last=channels_last)
        self._seed, self._batch, self._device = seed, batch_size, device
        self._views, self._drop_last, self._labelled = tuple(views), drop_last, labelled
        self._offsets = torch.arange(self._size, device=device)

    def __len__(self) -> int:
        full, rest = divmod(self._n, self._batch)
        return full + (1 if rest and not self._drop_last else 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        shuffled = epoch_order(self._seed, epoch, self._n)
        order = shuffled.to(self._device)
        names = ("", *self._views)
        tables = [self._crop.table(self._seed, epoch, self._n, v).to(self._device) for v in names]
        strong = strong_table(self._seed, epoch, self._n) if "strong" in self._views else None
        for step in range(start, len(self)):
            here = slice(step * self._batch, (step + 1) * self._batch)
            index = order[here]
            codes = None if strong is None else strong[shuffled[here]]
            ids = [table[index] for table in tables]
            main, *extra = (self._gather(index, views) for views in ids)
            x = self._normalise(main)
            views = tuple(
                self._view(name, pixels, codes) for name, pixels in zip(self._views, extra, strict=True)
            )
            y = self._labels[index] if self._labelled else None
            known = [None if name == "strong" else v for name, v in zip(names, ids, strict=True)]
            origin = Origin(index, zip((x, *views), known, strict=True))
            yield Batch(x, y, index, views, origin=origin)

    def images(self, index: Tensor, view: Tensor) -> Tensor:
        """Return images (B, C, H, W), normalised, by number and view id, both (B,) int64."""
        return self._normalise(self._gather(index, view))

    def _view(self, name: str, pixels: Tensor, codes: Tensor | None) -> Tensor:
        if name == "strong" and codes is not None:
            pixels = strong_view(pixels, codes)
        return self._normalise(pixels)

    def _gather(self, index: Tensor, view: Tensor) -> Tensor:
        top, left, flip = self._crop.decode(view)
        col = self._offsets
        cols = torch.where(flip[:, None], self._size - 1 - col, col) + left[:, None]
        rows = self._offsets + top[:, None]
        flat = (index[:, None, None] * self._rows + rows[:, :, None]) * self._cols + cols[:, None, :]
        shape = (len(index), self._size, self._size, self._flat.shape[1])
        return self._flat.index_select(0, flat.reshape(-1)).view(shape)


class ResidentSplit:
    """Evaluation batches of a resident split, in order."""

    def __init__(
        self,
        images: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        info: DataInfo,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self._labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self._normalise = Normalise(info, device, channels_last=channels_last)
        self._batch = batch_size

    def __len__(self) -> int:
        return -(-len(self._labels) // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        for x, y in zip(self._images.split(self._batch), self._labels.split(self._batch), strict=True):
            yield Batch(self._normalise(x), y)
