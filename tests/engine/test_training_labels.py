"""``run.labels()``: the label of every training image, found by ``batch.index``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.engine.context import CellRun
from kdbench.engine.data.context import DataContext
from kdbench.hooks import Needs
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.method import Method
from kdbench.protocol.types import TaskData
from kdbench.registry import Registry
from kdbench.testing.bench import Bench
from kdbench_datasets.synthetic import Synthetic
from kdbench_methods.kd import KD
from kdbench_tasks.classification import Classification

Start = Callable[..., Any]
SOURCES = ("train", "train_unlabelled")


class Unlabelled(Method):
    needs = Needs(teachers=0, labels=False)


class DataFree(Method):
    needs = Needs(teachers=0, data="none")


def task_data(storage: str, **options: Any) -> TaskData:
    dataset = Synthetic(Synthetic.Params(num_classes=4, image_size=8, n_train=90, n_test=23))
    plain = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}}
    recipe = Recipe.model_validate(plain | options.pop("recipe", {}))
    context = DataContext(
        dataset,
        dataset.describe(),
        recipe,
        storage=storage,
        seed=3,
        device=torch.device("cpu"),
        workers=0,
        **options,
    )
    return Classification().setup(context)


@pytest.mark.parametrize("storage", ["resident", "stream"])
@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"recipe": {"val_fraction": 0.0}}, 90),
        ({}, 81),
        ({"limit_train": 50}, 45),
    ],
)
def test_every_batch_has_the_labels_of_its_numbers(
    run: CellRun, storage: str, options: dict[str, Any], n: int
) -> None:
    run.task_data = task_data(storage, **options)
    labels = run.labels()
    assert labels is not None
    assert labels.shape == (n,)
    assert labels.dtype == torch.int64
    seen = []
    for batch in run.task_data.streams["train"].epoch(1):
        assert torch.equal(labels[batch.index], batch.y)
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(n))
    for batch, other in zip(*(run.task_data.streams[s].epoch(1) for s in SOURCES), strict=True):
        assert other.y is None
        assert torch.equal(batch.index, other.index)


def test_they_are_moved_once(run: CellRun) -> None:
    run.task_data = task_data("resident")
    assert run.labels() is run.labels()


def test_data_without_labels(run: CellRun) -> None:
    assert run.task_data.labels is None
    assert run.labels() is None


@pytest.mark.parametrize(("method", "declared"), [(Unlabelled, r"labels=False"), (DataFree, r'data="none"')])
def test_a_method_that_says_it_uses_none_gets_none(start: Start, method: type[Method], declared: str) -> None:
    run, _, _ = start(method, teachers=0)
    with pytest.raises(RuntimeError, match=rf"run\.labels\(\): the method declares Needs\({declared}\)"):
        run.labels()


def test_while_probing_nothing_is_read(run: CellRun) -> None:
    run.probing = True
    run.task_data = TaskData({}, {}, run.data)
    labels = run.labels()
    assert labels is not None
    assert labels.tolist() == [0]


def test_the_bench_has_them_too() -> None:
    bench = Bench(Registry.load(), KD, {}, teacher="timm:test_resnet", student="timm:test_resnet")
    run = bench.run(sizes=(5, 3))
    labels = run.labels()
    assert labels is not None
    for batch in run.task_data.streams["train"].epoch(0):
        assert torch.equal(labels[batch.index], batch.y)
