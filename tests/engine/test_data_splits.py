"""Validation and limits: stratified, disjoint, the same for every seed and method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.engine.data.context import DataContext
from kdbench.engine.data.splits import make_splits, stratified
from kdbench.errors import DataError
from kdbench.matrix.recipe import Recipe
from kdbench_datasets.digits import Digits
from kdbench_datasets.synthetic import Synthetic


def splits(val_fraction: float = 0.1, **limits: Any) -> Any:
    dataset = Digits()
    return make_splits(dataset, dataset.describe(), val_fraction=val_fraction, **limits)


def test_validation_is_held_out_of_training() -> None:
    parts = splits()
    train, val, test = (parts[n] for n in ("train", "val", "test"))
    assert len(val) == 144
    assert len(train) + len(val) == 1438
    assert not set(train.indices) & set(val.indices)
    assert set(train.indices) | set(val.indices) == set(range(1438))
    assert val.source == train.source == "train"
    assert len(test) == 359
    labels = Digits().labels("train")
    for part in (train, val):
        assert np.array_equal(part.labels, labels[part.indices])
    counts = np.bincount(labels)
    assert np.abs(np.bincount(val.labels) - counts * 144 / 1438).max() < 1


def test_splits_are_deterministic() -> None:
    one, two = splits(limit_train=200, limit_test=50), splits(limit_train=200, limit_test=50)
    for name in ("train", "val", "test"):
        assert np.array_equal(one[name].indices, two[name].indices)


def test_no_validation_when_the_recipe_has_none() -> None:
    parts = splits(0.0)
    assert set(parts) == {"train", "test"}
    assert len(parts["train"]) == 1438


def test_limits_are_stratified_subsets() -> None:
    parts = splits(limit_train=100, limit_test=20)
    assert len(parts["train"]) + len(parts["val"]) == 100
    assert len(parts["val"]) == 10
    assert len(parts["test"]) == 20
    assert set(np.bincount(parts["test"].labels, minlength=10)) == {2}


def test_limits_above_the_size_change_nothing() -> None:
    assert len(splits(limit_test=10_000)["test"]) == 359


def test_a_small_set_still_validates_on_as_many_images_as_classes() -> None:
    assert len(splits(0.1, limit_train=40)["val"]) == 10


def test_limit_below_the_number_of_classes() -> None:
    with pytest.raises(DataError, match="limit_train: 9 is below the number of classes"):
        splits(limit_train=9)


def test_too_few_images_to_validate() -> None:
    with pytest.raises(DataError, match=r"set recipe.val_fraction: 0"):
        splits(limit_train=10)


def test_a_source_with_its_own_validation_keeps_it() -> None:
    class WithVal(Synthetic):
        def describe(self) -> Any:
            from dataclasses import replace

            return replace(super().describe(), n_val=8)

        def _count(self, split: str) -> int:
            return 8 if split == "val" else super()._count(split)

    dataset = WithVal(Synthetic.Params(num_classes=4, image_size=8, n_train=40, n_test=8))
    parts = make_splits(dataset, dataset.describe(), val_fraction=0.5)
    assert parts["val"].source == "val"
    assert len(parts["val"]) == 8
    assert len(parts["train"]) == 40


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.floats(0.05, 1.0), st.integers(0, 5))
def test_stratified_keeps_shares(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    size = max(1, round(share * len(labels)))
    chosen = stratified(labels, size, seed)
    assert len(chosen) == len(set(chosen.tolist())) == size
    assert np.array_equal(chosen, np.sort(chosen))
    got = np.bincount(labels[chosen], minlength=len(counts))
    assert np.abs(got - np.asarray(counts) * size / len(labels)).max() < 1
    assert np.array_equal(chosen, stratified(labels, size, seed))


@pytest.mark.parametrize("storage", ["resident", "stream"])
@pytest.mark.parametrize(("split", "labels", "bad"), [("train", (0, 1, 3), 3), ("test", (-1, 2, 0), -1)])
def test_a_label_that_is_no_class(storage: str, split: str, labels: tuple[int, ...], bad: int) -> None:
    class Wrong(Synthetic):
        def labels(self, name: str) -> Any:
            found = super().labels(name).copy()
            if name == split:
                found[: len(labels)] = labels
            return found

    dataset = Wrong(Synthetic.Params(num_classes=3, n_train=60, n_test=30, image_size=8))
    recipe = Recipe.model_validate({"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}})
    with pytest.raises(DataError) as e:
        DataContext(dataset, dataset.describe(), recipe, storage=storage, seed=0, device=torch.device("cpu"))
    assert str(e.value) == (
        f"data set '{dataset.describe().name}': {split} has label {bad}, and num_classes is 3: "
        "labels go from 0 to 2"
    )
