"""What the engine offers a task in ``setup``: streams and splits of one data set under one recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.engine.data.blind import WithoutTest
from kdbench.engine.data.every_view import EveryView
from kdbench.engine.data.resident import ResidentSplit, ResidentStream
from kdbench.engine.data.splits import Split, make_splits
from kdbench.engine.data.streaming import StreamingSplit, StreamingStream
from kdbench.engine.data.views import CropFlip
from kdbench.engine.together.group import Group
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.storage import choose_storage
from kdbench.measure.cores import cores
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import Batch, DataInfo, Stream


class DataContext:
    """Implements :class:`kdbench.protocol.types.TaskContext`; without `test` there is no test split."""

    def __init__(
        self,
        dataset: Dataset,
        info: DataInfo,
        recipe: Recipe,
        *,
        storage: str,
        seed: int,
        device: torch.device,
        limit_train: int | None = None,
        limit_test: int | None = None,
        views: tuple[str, ...] = (),
        workers: int | None = None,
        test: bool = True,
        group: Group | None = None,
    ) -> None:
        self.info, self.device, self.batch_size = info, device, recipe.batch_size
        self.label_smoothing = recipe.label_smoothing
        dataset = dataset if test else WithoutTest(dataset)
        self._dataset, self._recipe, self._seed = dataset, recipe, seed
        self._storage = choose_storage(storage, info, recipe.augment.kind)
        self._views, self._group = views, group
        self._workers = min(4, cores() - 1) if workers is None else workers
        self.splits: dict[str, Split] = make_splits(
            dataset,
            info,
            val_fraction=recipe.val_fraction,
            limit_train=limit_train,
            limit_test=limit_test,
            test=test,
        )

    def image_streams(self) -> Mapping[str, Stream]:
        return {
            "train": self._stream(labelled=True),
            "train_unlabelled": self._stream(labelled=False),
        }

    def image_split(self, name: str) -> Iterable[Batch]:
        split = self.splits.get(name)
        if split is None:
            return ()
        common: dict[str, Any] = {
            "batch_size": self._recipe.eval_batch_size,
            "device": self.device,
            "channels_last": self._recipe.channels_last,
        }
        if self._storage == "stream":
            centre_crop = self._recipe.augment.kind == "rrc"
            return StreamingSplit(
                self._dataset,
                split,
                self.info,
                workers=self._workers,
                centre_crop=centre_crop,
                group=self._group,
                **common,
            )
        images = self._dataset.arrays(split.source, split.indices)
        return ResidentSplit(images, split.labels, self.info, **common)

    def train_labels(self) -> Tensor:
        return torch.from_numpy(self.splits["train"].labels.copy())

    def every_view(self) -> EveryView | None:
        """Return all views of all training images; None where they cannot be counted up."""
        crop = self._crop_flip()
        if crop is None:
            return None
        mode = self._recipe.augment.padding_mode if crop.padding else "zeros"
        return EveryView(
            self._dataset,
            self.splits["train"],
            self.info,
            crop,
            padding_mode=mode,
            device=self.device,
            channels_last=self._recipe.channels_last,
        )

    def _crop_flip(self) -> CropFlip | None:
        augment = self._recipe.augment
        if augment.kind == "rrc":
            return None
        flip = self.info.flip if augment.flip == "auto" else bool(augment.flip)
        return CropFlip(0, False) if augment.kind == "none" else CropFlip(augment.padding, flip)

    def _stream(self, *, labelled: bool) -> Stream:
        return _Lazy(lambda: self._make_stream(labelled))

    def _make_stream(self, labelled: bool) -> Stream:
        recipe, augment, split = self._recipe, self._recipe.augment, self.splits["train"]
        flip = self.info.flip if augment.flip == "auto" else bool(augment.flip)
        common: dict[str, Any] = {
            "seed": self._seed,
            "batch_size": recipe.batch_size,
            "device": self.device,
            "views": self._views,
            "drop_last": recipe.drop_last,
            "channels_last": recipe.channels_last,
            "labelled": labelled,
        }
        crop = self._crop_flip()
        if self._storage == "stream":
            return StreamingStream(
                self._dataset,
                split,
                self.info,
                flip=flip,
                workers=self._workers,
                augment=crop,
                padding_mode=augment.padding_mode,
                group=self._group,
                **common,
            )
        images = self._dataset.arrays(split.source, split.indices)
        return ResidentStream(
            images, split.labels, self.info, augment=crop, padding_mode=augment.padding_mode, **common
        )


class _Lazy:
    """A stream that is built when first used: a data-free method never loads the training set."""

    def __init__(self, make: Any) -> None:
        self._make, self._stream = make, None

    def _get(self) -> Any:
        if self._stream is None:
            self._stream = self._make()
        return self._stream

    def __len__(self) -> int:
        return len(self._get())

    def epoch(self, epoch: int, start: int = 0) -> Any:
        return self._get().epoch(epoch, start)
