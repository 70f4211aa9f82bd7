"""Views, order, resident and streaming batches: all pure functions of (data set, seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from kdbench.engine.data.context import DataContext
from kdbench.engine.data.resident import ResidentStream, pad_images
from kdbench.engine.data.strong import OPERATIONS, strong_table, strong_view
from kdbench.engine.data.views import CropFlip, epoch_order
from kdbench.matrix.identity import derive_seed
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.types import Batch, DataInfo, Stream
from kdbench_datasets.synthetic import Synthetic

CPU = torch.device("cpu")


def recipe(**changes: Any) -> Recipe:
    plain = {"epochs": 2, "batch_size": 16, "eval_batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.1}}
    return Recipe.model_validate(plain | changes)


def context(storage: str = "resident", *, seed: int = 7, **options: Any) -> DataContext:
    changes = options.pop("recipe", {})
    size = options.pop("image_size", 8)
    dataset = Synthetic(Synthetic.Params(num_classes=4, image_size=size, n_train=60, n_test=23))
    return DataContext(
        dataset, dataset.describe(), recipe(**changes), storage=storage, seed=seed, device=CPU, **options
    )


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.x, b.x), (a.index, b.index), *zip(a.views, b.views, strict=True)]
    labels = (a.y is None) == (b.y is None) and (a.y is None or torch.equal(a.y, b.y))
    return labels and all(torch.equal(u, v) for u, v in pairs)


def all_same(a: Iterator[Batch], b: Iterator[Batch]) -> bool:
    return all(same(u, v) for u, v in zip(a, b, strict=True))


def test_every_view_equals_torchvisions() -> None:
    """All 162 views: pad with black, crop at the decoded offsets, flip, to_tensor, normalize."""
    crop = CropFlip(4, True)
    assert crop.count == 162
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    info = DataInfo("one", 2, ("a", "b"), 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 162, 1, "r")
    stream = ResidentStream(
        image.repeat(162, 0),
        np.zeros(162, np.int64),
        info,
        seed=0,
        batch_size=162,
        device=CPU,
        augment=crop,
    )
    got = stream.images(torch.arange(162), torch.arange(162))
    padded = TF.pad(torch.from_numpy(image[0]).permute(2, 0, 1), [4, 4, 4, 4], fill=0)
    seen = set()
    for view in range(162):
        top, left, flip = (int(v) for v in crop.decode(torch.tensor(view)))
        seen.add((top, left, flip))
        expected = TF.crop(padded, top, left, 32, 32)
        expected = TF.hflip(expected) if flip else expected
        expected = TF.to_tensor(expected.permute(1, 2, 0).numpy())
        expected = TF.normalize(expected, list(info.mean), list(info.std))
        assert torch.equal(got[view], expected), view
    assert len(seen) == 162


def test_reflected_padding_equals_numpys() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    assert np.array_equal(pad_images(images, 3, "reflect").numpy(), expected)


def test_order_and_views_are_pure_functions() -> None:
    order = epoch_order(5, 3, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(123)
    assert torch.equal(order, epoch_order(5, 3, 1000))
    assert not torch.equal(order, epoch_order(5, 4, 1000))
    assert not torch.equal(order, epoch_order(6, 3, 1000))
    crop = CropFlip(4, True)
    table = crop.table(5, 3, 1000)
    assert torch.equal(table, crop.table(5, 3, 1000))
    assert not torch.equal(table, crop.table(5, 4, 1000))
    assert not torch.equal(table, crop.table(6, 3, 1000))
    assert not torch.equal(table, crop.table(5, 3, 1000, "weak"))
    assert int(table.min()) >= 0
    assert 155 < int(table.max()) < 162


def test_no_flip_halves_the_views() -> None:
    assert CropFlip(4, False).count == 81
    assert not CropFlip(4, False).decode(CropFlip(4, False).table(0, 0, 500))[2].any()
    assert CropFlip(0, False).count == 1


def test_further_views_leave_the_main_one_as_it_was() -> None:
    """A method that asks for views sees the same images and order as one that does not."""
    alone = context().image_streams()["train"]
    more = context(views=("weak", "strong")).image_streams()["train"]
    for a, b in zip(alone.epoch(1), more.epoch(1), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.index, b.index)
        assert len(b.views) == 2
        assert not torch.equal(b.views[0], b.x)
        assert not torch.equal(b.views[1], b.x)


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_seed_and_epoch_choose_the_batches(storage: str) -> None:
    stream = context(storage, workers=0).image_streams()["train"]
    assert all_same(stream.epoch(0), context(storage, workers=0).image_streams()["train"].epoch(0))
    assert not same(next(stream.epoch(0)), next(stream.epoch(1)))
    other = context(storage, workers=0, seed=8).image_streams()["train"]
    assert not same(next(stream.epoch(0)), next(other.epoch(0)))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_resident_batches(workers: int, padding_mode: str) -> None:
    augment = {"kind": "crop", "padding": 2, "padding_mode": padding_mode, "flip": True}
    changes = {"augment": augment}
    resident = context(recipe=changes, views=("weak",)).image_streams()["train"]
    streaming = context("stream", recipe=changes, views=("weak",), workers=workers).image_streams()["train"]
    assert len(resident) == len(streaming) == 4
    for epoch in (0, 2):
        assert all_same(resident.epoch(epoch), streaming.epoch(epoch))
    assert all_same(resident.epoch(1, 2), streaming.epoch(1, 2))


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_start_skips_whole_batches(storage: str) -> None:
    stream = context(storage, workers=0, views=("strong",)).image_streams()["train"]
    whole = list(stream.epoch(3))
    for start in range(len(whole) + 1):
        assert all_same(iter(whole[start:]), stream.epoch(3, start))


def test_evaluation_splits_agree_and_keep_their_order() -> None:
    resident, streaming = (context(s, workers=0).image_split("test") for s in ("resident", "stream"))
    sizes = [len(b.x) for b in resident]
    assert sizes == [10, 10, 3]
    for a, b in zip(resident, streaming, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)  # type: ignore[arg-type]
    labels = torch.cat([b.y for b in resident])  # type: ignore[misc]
    assert labels.tolist() == [i % 4 for i in range(23)]


def rrc(workers: int, **options: Any) -> Stream:
    changes = {"augment": {"kind": "rrc", "flip": True}}
    made = context("stream", recipe=changes, image_size=16, workers=workers, **options)
    return made.image_streams()["train"]


def test_random_resized_crop_is_deterministic_for_any_number_of_workers() -> None:
    base = list(rrc(0, views=("strong",)).epoch(1))
    assert all_same(iter(base), rrc(0, views=("strong",)).epoch(1))
    assert all_same(iter(base), rrc(2, views=("strong",)).epoch(1))
    assert all_same(iter(base[2:]), rrc(0, views=("strong",)).epoch(1, 2))
    assert not torch.equal(base[0].x, next(rrc(0).epoch(2)).x)
    assert not torch.equal(base[0].views[0], base[0].x)


@pytest.mark.parametrize("kind", ["crop", "rrc"])
def test_reading_leaves_the_global_generators_alone(kind: str) -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    changes = {"augment": {"kind": kind}}
    made = context("auto", recipe=changes, image_size=16, views=("strong",), workers=0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    list(made.image_streams()["train"].epoch(0))
    list(made.image_split("test"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]


def test_strong_view_is_a_function_of_seed_epoch_and_sample() -> None:
    pixels = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    rng = torch.get_rng_state()
    codes = strong_table(11, 2, 40)
    first = strong_view(pixels, codes)
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(codes, strong_table(11, 2, 40))
    assert not torch.equal(codes, strong_table(11, 3, 40))
    assert not torch.equal(codes, strong_table(12, 2, 40))
    assert first.shape == pixels.shape
    assert first.dtype == torch.uint8
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(strong_view(pixels[order], codes[order]), first[order])


def test_every_operation_is_torchvisions_pixel_by_pixel() -> None:
    from torchvision.transforms import v2

    theirs = v2.RandAugment(num_ops=1, magnitude=10)
    images = torch.randint(
        0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    space = list(v2.RandAugment._AUGMENTATION_SPACE.items())
    assert len(space) == len(OPERATIONS)
    for number, (name, (magnitudes, signed)) in enumerate(space):
        values = magnitudes(31, 32, 32)
        for negative in (0, 1):
            magnitude = 0.0 if values is None else float(values[10])
            if signed and negative:
                magnitude = -magnitude
            codes = torch.tensor([[2 * number + negative, 0]] * 3)
            ours = strong_view(images, codes)
            for image, got in zip(images, ours, strict=True):
                expected = theirs._apply_image_or_video_transform(
                    image.permute(2, 0, 1),
                    name,
                    magnitude,
                    interpolation=theirs.interpolation,
                    fill=theirs._fill,
                )
                assert torch.equal(expected.permute(1, 2, 0), got), (name, negative)


def test_operations_of_the_strong_view_come_equally_often() -> None:
    counts = torch.bincount(strong_table(0, 0, 28_000).flatten(), minlength=2 * len(OPERATIONS))
    # 56,000 draws of 28: mean 2,000, standard deviation 43.9
    assert ((counts - 2000).abs() < 5 * 44).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_resident_strong_views(workers: int) -> None:
    resident = context(views=("strong",)).image_streams()["train"]
    streaming = context("stream", views=("strong",), workers=workers).image_streams()["train"]
    for a, b in zip(resident.epoch(1), streaming.epoch(1), strict=True):
        assert torch.equal(a.views[0], b.views[0])
        assert not torch.equal(a.views[0], a.x)


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_unlabelled_stream_hides_the_labels_only(storage: str) -> None:
    streams = context(storage, workers=0).image_streams()
    for a, b in zip(streams["train"].epoch(0), streams["train_unlabelled"].epoch(0), strict=True):
        assert b.y is None
        assert a.y is not None
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.index, b.index)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_last_batch_and_drop_last(storage: str) -> None:
    whole = context(storage, workers=0).image_streams()["train"]
    assert [len(b.x) for b in whole.epoch(0)] == [16, 16, 16, 6]
    assert len(whole) == 4
    cut = context(storage, workers=0, recipe={"drop_last": True}).image_streams()["train"]
    assert [len(b.x) for b in cut.epoch(0)] == [16, 16, 16]
    assert len(cut) == 3


def test_index_names_the_sample_in_the_training_split() -> None:
    made = context(recipe={"augment": {"kind": "none"}})
    split = made.splits["train"]
    images = made._dataset.arrays("train", split.indices)
    mean, std = torch.tensor(made.info.mean), torch.tensor(made.info.std)
    for batch in made.image_streams()["train"].epoch(0):
        expected = (torch.from_numpy(images[batch.index.numpy()]).float() / 255 - mean) / std  # type: ignore[union-attr]
        assert torch.equal(batch.x, expected.permute(0, 3, 1, 2))
        assert batch.y.tolist() == split.labels[batch.index.numpy()].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(("channels_last", "stride"), [(True, 1), (False, 64)])
def test_memory_format_follows_the_recipe(channels_last: bool, stride: int) -> None:
    changes = {"channels_last": channels_last}
    for storage in ("resident", "stream"):
        batch = next(context(storage, workers=0, recipe=changes).image_streams()["train"].epoch(0))
        assert batch.x.stride(1) == stride


def test_auto_flip_asks_the_data_set() -> None:
    """Synthetic classes do not survive a mirror, so 'auto' never flips; 'true' does."""
    auto = context(recipe={"augment": {"kind": "crop", "padding": 0, "flip": "auto"}})
    never = context(recipe={"augment": {"kind": "none"}})
    always = context(recipe={"augment": {"kind": "crop", "padding": 0, "flip": True}})
    streams = [c.image_streams()["train"] for c in (auto, never, always)]
    assert all_same(streams[0].epoch(0), streams[1].epoch(0))
    assert not same(next(streams[0].epoch(0)), next(streams[2].epoch(0)))


def test_a_stream_reads_nothing_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = Synthetic.arrays

    def spy(self: Synthetic, split: str, indices: Any) -> Any:
        calls.append(split)
        return original(self, split, indices)

    monkeypatch.setattr(Synthetic, "arrays", spy)
    streams = context().image_streams()
    assert calls == []
    next(streams["train"].epoch(0))
    assert calls == ["train"]


def test_data_seed_depends_on_the_cells_seed_alone() -> None:
    assert derive_seed(0, "data") == derive_seed(0, "data")
    assert len({derive_seed(s, axis) for s in range(5) for axis in ("data", "train", "run")}) == 15


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_that_were_normalised_before_are_the_same(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    from kdbench.engine.data import resident

    changes = {"channels_last": channels_last}
    ready = context(recipe=changes, views=("weak", "strong")).image_streams()["train"]
    early = list(ready.epoch(1))
    monkeypatch.setattr(resident, "READY_BYTES", {})
    late = list(context(recipe=changes, views=("weak", "strong")).image_streams()["train"].epoch(1))
    for a, b in zip(early, late, strict=True):
        assert same(a, b)
        assert a.x.stride() == b.x.stride()
