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
        return self.laid_out(self.scaled(pixels))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return uint8 (..., C) as float32 of the same shape."""
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)

    def laid_out(self, x: Tensor) -> Tensor:
        """Return float32 (B, H, W, C) as (B, C, H, W) in the recipe's memory format."""
        x = x.permute(0, 3, 1, 2)
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


#: Largest table of normalised pixels, in bytes, on the CPU and on a GPU; above it a batch is normalised when it is
#: made, from a table of a quarter of the size.
READY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


#: Largest number of pixels whose places in all views are kept: 32 MB.
MOST_PLACES = 1 << 22


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
        fits = 4 * self._flat.numel() <= READY_BYTES.get(device.type, 0)
        # pixel by pixel the same numbers as when a batch is normalised after the gather
        self._ready = self._normalise.scaled(self._flat) if fits else None
        self._seed, self._batch, self._device = seed, batch_size, device
        self._views, self._drop_last, self._labelled = tuple(views), drop_last, labelled
        count = self._crop.count
        few = count * self._size**2 <= MOST_PLACES
        self._places = self._pixels(torch.arange(count, device=device)) if few else None

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
            x, *views = (self._view(n, index, v, codes) for n, v in zip(names, ids, strict=True))
            y = self._labels[index] if self._labelled else None
            known = [None if name == "strong" else v for name, v in zip(names, ids, strict=True)]
            origin = Origin(index, zip((x, *views), known, strict=True))
            yield Batch(x, y, index, tuple(views), origin=origin)

    def images(self, index: Tensor, view: Tensor) -> Tensor:
        """Return images (B, C, H, W), normalised, by number and view id, both (B,) int64."""
        if self._ready is not None:
            return self._normalise.laid_out(self._gather(self._ready, index, view))
        return self._normalise(self._gather(self._flat, index, view))

    def _view(self, name: str, index: Tensor, view: Tensor, codes: Tensor | None) -> Tensor:
        if name == "strong" and codes is not None:
            return self._normalise(strong_view(self._gather(self._flat, index, view), codes))
        return self.images(index, view)

    def _gather(self, table: Tensor, index: Tensor, view: Tensor) -> Tensor:
        pixels = self._pixels(view) if self._places is None else self._places.index_select(0, view)
        flat = pixels + (index * (self._rows * self._cols))[:, None]
        shape = (len(index), self._size, self._size, table.shape[1])
        return table.index_select(0, flat.view(-1)).view(shape)

    def _pixels(self, view: Tensor) -> Tensor:
        """Return where the pixels of views lie in a padded image, int64 (B, H * W)."""
        top, left, flip = self._crop.decode(view)
        side = torch.arange(self._size, device=view.device)
        cols = torch.where(flip[:, None], self._size - 1 - side, side) + left[:, None]
        rows = side + top[:, None]
        return (rows[:, :, None] * self._cols + cols[:, None, :]).flatten(1)


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
