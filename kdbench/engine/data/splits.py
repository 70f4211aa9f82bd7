"""Which samples are in which split: stratified, deterministic, the same for every method and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.errors import DataError
from kdbench.matrix.holdout import held_out
from kdbench.matrix.identity import derive_seed
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import DataInfo

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Split:
    """Samples of one split: `source` names the data set's own split that `indices` number."""

    source: str
    indices: Indices
    labels: Indices

    def __len__(self) -> int:
        return len(self.indices)


def stratified(labels: Indices, size: int, seed: int) -> Indices:
    """Return `size` sorted positions with each class's share kept (largest remainders), drawn by `seed`."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (size / len(labels))
    take = np.floor(exact).astype(int)
    for k in np.argsort(-(exact - take), kind="stable")[: size - take.sum()]:
        take[k] += 1
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def make_splits(
    dataset: Dataset,
    info: DataInfo,
    *,
    val_fraction: float,
    limit_train: int | None = None,
    limit_test: int | None = None,
    test: bool = True,
) -> dict[str, Split]:
    """Return ``train``, ``test`` (if `test`) and, unless `val_fraction` is 0 and the source has none, ``val``."""
    train = _limited(dataset, info, "train", limit_train)
    splits = {"test": _limited(dataset, info, "test", limit_test)} if test else {}
    if info.n_val:
        splits["val"] = _limited(dataset, info, "val", None)
    elif n_val := held_out(len(train), info, val_fraction):
        if n_val >= len(train):
            raise DataError(
                f"data set '{info.name}': {len(train)} training images are too few to hold out "
                f"{n_val} for validation; set recipe.val_fraction: 0"
            )
        held = stratified(train.labels, n_val, derive_seed(0, info.revision, "val"))
        keep = np.setdiff1d(np.arange(len(train)), held)
        splits["val"] = Split("train", train.indices[held], train.labels[held])
        train = Split("train", train.indices[keep], train.labels[keep])
    return {"train": train, **splits}


def _limited(dataset: Dataset, info: DataInfo, name: str, limit: int | None) -> Split:
    labels = np.asarray(dataset.labels(name), dtype=np.int64)
    _check_range(labels, info, name)
    indices = np.arange(len(labels), dtype=np.int64)
    if limit is not None and limit < len(labels):
        if limit < info.num_classes:
            raise DataError(
                f"data set '{info.name}': limit_{name}: {limit} is below the number of classes "
                f"({info.num_classes})"
            )
        indices = stratified(labels, limit, derive_seed(0, info.revision, "limit", name))
    return Split(name, indices, labels[indices])


def _check_range(labels: Indices, info: DataInfo, name: str) -> None:
    """Raise DataError for a label that is no class; as an index it would fail deep in a loss, if at all."""
    for label in (labels.min(), labels.max()) if labels.size else ():
        if not 0 <= label < info.num_classes:
            raise DataError(
                f"data set '{info.name}': {name} has label {label}, and num_classes is {info.num_classes}: "
                f"labels go from 0 to {info.num_classes - 1}"
            )
