"""Training batches of a resident data set against those of a loader that crops images one by one. Goal: 10 x."""

import statistics
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

from kdbench.engine.data.resident import ResidentStream
from kdbench.engine.data.strong import strong_table, strong_view
from kdbench.engine.data.views import CropFlip
from kdbench.protocol.types import DataInfo

IMAGES, BATCH, ROUNDS = 4096, 64, 5
INFO = DataInfo(
    "random", 10, tuple("abcdefghij"), 32, (0.5,) * 3, (0.25,) * 3, IMAGES, 1, revision="1", flip=True
)


def _interleaved(benchmark, ours, theirs, images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {"ours": [], "theirs": []}

    def rounds():
        for _ in range(ROUNDS):
            for name, fn in (("ours", ours), ("theirs", theirs)):
                began = time.thread_time()
                fn()
                seconds[name].append(time.thread_time() - began)

    try:
        benchmark.pedantic(rounds, rounds=1)
    finally:
        torch.set_num_threads(threads)
    mine, other = (statistics.median(seconds[k]) for k in ("ours", "theirs"))
    speedup = statistics.median(t / o for o, t in zip(*seconds.values(), strict=True))
    benchmark.extra_info |= {
        "speedup": speedup,
        "images_per_s": images / mine,
        "one_by_one_images_per_s": images / other,
    }
    print(f"\n{images / mine:,.0f} images/s, one by one {images / other:,.0f}: {speedup:.1f} x")
    return speedup


def test_crop_and_flip(benchmark):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, IMAGES)
    stream = ResidentStream(
        pixels, labels, INFO, seed=0, batch_size=BATCH, device=torch.device("cpu"), augment=CropFlip(4, True)
    )
    one = T.Compose(
        [
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(INFO.mean, INFO.std),
        ]
    )

    def loader():
        for k in range(0, IMAGES, BATCH):
            torch.stack([one(Image.fromarray(image)) for image in pixels[k : k + BATCH]])

    assert _interleaved(benchmark, lambda: list(stream.epoch(0)), loader, IMAGES) > 10


def test_strong_view(benchmark):
    """RandAugment per operation for a batch, against torchvision's image by image. Goal: faster."""
    from torchvision.transforms import v2

    images = 512
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8)
    codes = strong_table(0, 0, images)
    augment = v2.RandAugment(num_ops=2, magnitude=10)

    def ours():
        for part, code in zip(pixels.split(BATCH), codes.split(BATCH), strict=True):
            strong_view(part, code)

    def theirs():
        for image in pixels.permute(0, 3, 1, 2):
            augment(image)

    assert _interleaved(benchmark, ours, theirs, images) > 1
