"""Data sets too large for memory: torch's DataLoader workers with timm's transforms.

The transform of a sample is seeded by (seed, epoch, sample), so the order of workers, a cut and a resume
change nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from kdbench.engine.data.origin import Origin
from kdbench.engine.data.resident import pad_images
from kdbench.engine.data.splits import Split
from kdbench.engine.data.strong import strong_table, strong_view
from kdbench.engine.data.views import CropFlip, epoch_order
from kdbench.engine.seeds import seeded
from kdbench.engine.together.group import Group
from kdbench.engine.together.reading import Shared
from kdbench.matrix.identity import derive_seed
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import Batch, DataInfo


class _Plan(Sampler[Any]):
    """Batches of (epoch, position) keys; set before each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Images(TorchDataset[Any]):
    def __init__(self, dataset: Dataset, split: Split, info: DataInfo, spec: dict[str, Any]) -> None:
        self.dataset, self.split, self.info, self.spec = dataset, split, info, spec
        self._tables: dict[tuple[int, str], Tensor] = {}
        self._composed: dict[str, Any] = {}

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int, list[Tensor]]:
        epoch, at = key
        number = int(self.split.indices[at])
        image: Any
        if self.spec["crop"] is not None:
            # the data set's own way to the square, which the resident pipeline takes too
            image = self.dataset.arrays(self.split.source, np.array([number]))
        else:
            image = self.dataset.image(self.split.source, number).convert("RGB")
        names = ("", *self.spec["views"])
        views = [self._transform(image, name, epoch, at) for name in names]
        return views[0], int(self.split.labels[at]), at, views[1:]

    def _transform(self, image: Any, view: str, epoch: int, at: int) -> Tensor:
        if self.spec["crop"] is not None:
            return self._crop(image, view, epoch, at)
        seed = derive_seed(self.spec["seed"], "augment", view, epoch, at)
        before, numpy_before = random.getstate(), np.random.get_state()
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # timm's RandAugment chooses its operations by numpy
            with seeded(seed):
                if view not in self._composed:
                    self._composed[view] = self._compose(view)
                return self._composed[view](image)
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)

    def _crop(self, image: Any, view: str, epoch: int, at: int) -> Tensor:
        """Crop and flip by view id, so that a sample's view is the one that the resident pipeline gives."""
        crop: CropFlip = self.spec["crop"]
        size = self.info.image_size
        pixels = pad_images(image, crop.padding, self.spec["padding_mode"])[0]
        top, left, flip = (int(v) for v in crop.decode(self._views(epoch, view)[at]))
        pixels = pixels[top : top + size, left : left + size]
        if flip:
            pixels = pixels.flip(1)
        if view == "strong":
            pixels = strong_view(pixels[None], self._operations(epoch)[at][None])[0]
        mean, std = torch.tensor(self.info.mean), torch.tensor(self.info.std)
        return pixels.float().div_(255).sub_(mean).div_(std).permute(2, 0, 1)

    def _views(self, epoch: int, view: str) -> Tensor:
        if (epoch, view) not in self._tables:
            self._tables = {k: v for k, v in self._tables.items() if k[0] == epoch}
            self._tables[epoch, view] = self.spec["crop"].table(
                self.spec["seed"], epoch, len(self.split), view
            )
        return self._tables[epoch, view]

    def _operations(self, epoch: int) -> Tensor:
        if (epoch, "operations") not in self._tables:
            table = strong_table(self.spec["seed"], epoch, len(self.split))
            self._tables[epoch, "operations"] = table
        return self._tables[epoch, "operations"]

    def _compose(self, view: str) -> Any:
        from timm.data.transforms_factory import create_transform

        spec, size = self.spec, self.info.image_size
        common = {"input_size": size, "mean": self.info.mean, "std": self.info.std, "use_prefetcher": False}
        if not spec["train"]:
            return create_transform(**common, is_training=False, crop_pct=1.0 if size <= 64 else 0.875)
        return create_transform(
            **common,
            is_training=True,
            hflip=0.5 if spec["flip"] else 0.0,
            color_jitter=None,
            auto_augment="rand-n2-m10" if view == "strong" else None,
        )


class StreamingStream:
    """Training batches through worker processes.

    With `augment`, crop and flip by view id, as the resident pipeline makes them; without, timm's
    RandomResizedCrop and flip.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        info: DataInfo,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        flip: bool,
        augment: CropFlip | None = None,
        padding_mode: str = "zeros",
        views: Sequence[str] = (),
        drop_last: bool = False,
        channels_last: bool = True,
        labelled: bool = True,
        workers: int = 0,
        group: Group | None = None,
    ) -> None:
        spec = {
            "seed": seed,
            "flip": flip,
            "views": tuple(views),
            "train": True,
            "crop": augment,
            "padding_mode": padding_mode,
        }
        self._plan, self._shared = _Plan(), Shared(group)
        self._loader = _loader(_Images(dataset, split, info, spec), self._plan, workers, device)
        self._n, self._batch, self._seed, self._drop_last = len(split), batch_size, seed, drop_last
        self._crop, self._names = augment, ("", *views)
        self._labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
        self._device, self._channels_last, self._labelled = device, channels_last, labelled

    def __len__(self) -> int:
        full, rest = divmod(self._n, self._batch)
        return full + (1 if rest and not self._drop_last else 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = epoch_order(self._seed, epoch, self._n)
        batches = [order[s * self._batch : (s + 1) * self._batch] for s in range(start, len(self))]
        shared = self._shared.now()
        self._plan.batches = [[(epoch, i) for i in shared.mine(at)] for at in batches]
        tables = [self._table(epoch, name) for name in self._names]
        for (main, y, at, views), whole in zip(self._loader, batches, strict=True):
            made = [_to(v, self._device, self._channels_last) for v in (main, *views)]
            x, *extra = shared.whole(made, len(whole))
            if len(at) < len(whole):
                y, at = self._labels[whole], whole
            index = at.to(self._device, non_blocking=True)
            ids = [None if t is None else t[at].to(self._device, non_blocking=True) for t in tables]
            yield Batch(
                x,
                y.to(self._device, non_blocking=True) if self._labelled else None,
                index,
                tuple(extra),
                origin=Origin(index, zip((x, *extra), ids, strict=True)),
            )

    def _table(self, epoch: int, view: str) -> Tensor | None:
        """Return the view ids of an epoch; None where a view has none."""
        if self._crop is None or view == "strong":
            return None
        return self._crop.table(self._seed, epoch, self._n, view)


class StreamingSplit:
    """Evaluation batches through worker processes: plain resize, or timm's resize and centre crop."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        info: DataInfo,
        *,
        batch_size: int,
        device: torch.device,
        centre_crop: bool,
        channels_last: bool = True,
        workers: int = 0,
        group: Group | None = None,
    ) -> None:
        spec = {
            "seed": 0,
            "flip": False,
            "views": (),
            "train": False,
            "crop": None if centre_crop else CropFlip(0, False),
            "padding_mode": "zeros",
        }
        self._plan, self._shared = _Plan(), Shared(group)
        self._batches = torch.arange(len(split)).split(batch_size)
        self._labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64))
        self._loader = _loader(_Images(dataset, split, info, spec), self._plan, workers, device)
        self._device, self._channels_last = device, channels_last

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        shared = self._shared.now()
        self._plan.batches = [[(0, i) for i in shared.mine(at)] for at in self._batches]
        for (made, y, _, _), at in zip(self._loader, self._batches, strict=True):
            (x,) = shared.whole([_to(made, self._device, self._channels_last)], len(at))
            labels = y if len(y) == len(at) else self._labels[at]
            yield Batch(x, labels.to(self._device, non_blocking=True))


def _loader(images: _Images, plan: _Plan, workers: int, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_sampler=plan,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # a generator of its own: the loader's base seed must not advance the run's global generator
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_quiet_worker if workers else None,
    )


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    np.random.seed(0)


def _to(x: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    x = x.to(device, non_blocking=True)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x
