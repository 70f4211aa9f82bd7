"""Views by number: a training batch is what its origin says, on both ways of storage."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from kdbench.engine.data.context import DataContext
from kdbench.matrix.recipe import Recipe
from kdbench_datasets.synthetic import Synthetic

CPU = torch.device("cpu")


def context(storage: str = "resident", *, views: tuple[str, ...] = (), size: int = 8, **options: Any) -> Any:
    recipe = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"name": "sgd", "lr": 0.1},
        **options.pop("recipe", {}),
    }
    dataset = Synthetic(Synthetic.Params(num_classes=4, image_size=size, n_train=60, n_test=23))
    return DataContext(
        dataset,
        dataset.describe(),
        Recipe.model_validate(recipe),
        storage=storage,
        seed=7,
        device=CPU,
        views=views,
        workers=0,
        **options,
    )


@pytest.mark.parametrize("storage", ["resident", "stream"])
@pytest.mark.parametrize(
    "augment", [{"padding": 2, "flip": True}, {"padding": 1, "padding_mode": "reflect"}, {"kind": "none"}]
)
def test_batches_are_the_views_that_they_say(storage: str, augment: dict[str, Any]) -> None:
    made = context(storage, views=("weak",), recipe={"augment": augment}, limit_train=50)
    every = made.every_view()
    assert every.images == len(made.splits["train"]) == 45
    pixels = torch.cat(list(every.batches(0, every.images))).unflatten(0, (every.images, every.views))
    seen = set()
    for epoch in range(2):
        for batch in made.image_streams()["train"].epoch(epoch):
            for x in (batch.x, *batch.views):
                index, view = batch.origin.find(x)
                assert torch.equal(index, batch.index)
                assert torch.equal(x, pixels[index, view])
                seen |= set(view.tolist())
    assert len(seen) > 1 or every.views == 1


def test_a_stretch_gives_the_same_pixels_as_the_whole() -> None:
    every = context(recipe={"augment": {"padding": 1}}).every_view()
    whole = torch.cat(list(every.batches(0, every.images)))
    assert torch.equal(torch.cat(list(every.batches(3, 7))), whole[3 * every.views : 7 * every.views])


def test_views_that_cannot_be_counted_have_no_origin() -> None:
    strong = context(views=("strong",), size=32)
    batch = next(iter(strong.image_streams()["train"].epoch(0)))
    assert batch.origin.find(batch.x) is not None
    assert batch.origin.find(batch.views[0]) is None
    crops = context("stream", recipe={"augment": {"kind": "rrc"}})
    assert crops.every_view() is None
    batch = next(iter(crops.image_streams()["train"].epoch(0)))
    assert batch.origin.find(batch.x) is None


def test_other_images_have_no_origin() -> None:
    batch = next(iter(context().image_streams()["train"].epoch(0)))
    assert batch.origin.find(batch.x.clone()) is None
    assert dataclasses.replace(batch, x=batch.x * 2).origin.find(batch.x) is not None
    batch.x.mul_(2)
    assert batch.origin.find(batch.x) is None


def test_facts_differ_with_what_changes_pixels() -> None:
    plain = {"augment": {"padding": 2, "flip": True}}
    base = context(recipe=plain).every_view().facts()
    assert base == context("stream", recipe=plain, limit_test=10).every_view().facts()
    others = [
        context(recipe={"augment": {"padding": 1, "flip": True}}),
        context(recipe={"augment": {"padding": 2, "flip": False}}),
        context(recipe={"augment": {"padding": 2, "flip": True, "padding_mode": "reflect"}}),
        context(recipe={**plain, "val_fraction": 0.2}),
        context(recipe={**plain, "channels_last": False}),
        context(recipe=plain, limit_train=50),
        context(recipe=plain, size=16),
    ]
    facts = [str(o.every_view().facts()) for o in others]
    assert len({str(base), *facts}) == 1 + len(others)


def test_copies_have_an_origin_of_their_own() -> None:
    batch = next(iter(context(views=("weak",)).image_streams()["train"].epoch(0)))
    copies = (batch.x.clone(), batch.views[0].clone())
    copied = batch.origin.of(copies)
    assert copied.find(batch.x) is None
    for copy, x in zip(copies, (batch.x, batch.views[0]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(copied.find(copy), batch.origin.find(x), strict=True))
