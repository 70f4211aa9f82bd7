"""Synthetic images of any size and number of classes, for throughput and for trying a setup out."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdbench.api import DataError, DataInfo, Dataset, DatasetParams

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_GRID = 8


class Synthetic(Dataset):
    """Half uniform noise, half a coarse pattern that all images of a class share.

    Every image is a function of (seed, split, index) alone, by raw PCG64 output, which NumPy keeps stable; so
    nothing is stored and any subset costs only itself. Labels go round the classes.
    """

    class Params(DatasetParams):
        """Size of the set."""

        num_classes: int = Field(default=1000, ge=2, le=100_000, description="classes")
        image_size: int = Field(default=224, ge=1, le=4096, description="side in pixels")
        n_train: int = Field(default=1024, ge=1, description="training images")
        n_test: int = Field(default=256, ge=1, description="test images")
        seed: int = Field(default=0, ge=0, description="another seed gives other images")

    def describe(self) -> DataInfo:
        """Return the facts; nothing is made."""
        p = self.params
        return DataInfo(
            name="synthetic",
            num_classes=p.num_classes,
            class_names=tuple(f"class{k}" for k in range(p.num_classes)),
            image_size=p.image_size,
            # the mean of two independent uniform values: mean 1/2, sd sqrt(2/12)/2
            mean=(0.5, 0.5, 0.5),
            std=(0.2041, 0.2041, 0.2041),
            n_train=p.n_train,
            n_test=p.n_test,
            revision=f"synthetic-v1-k{p.num_classes}-s{p.image_size}-n{p.n_train}-t{p.n_test}-r{p.seed}",
            flip=False,
        )

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Labels of a split, int64 (N,). Raises DataError for an unknown split."""
        import numpy as np

        return np.arange(self._count(split), dtype=np.int64) % self.params.num_classes

    def image(self, split: str, index: int) -> Image:
        """One image, RGB."""
        from PIL import Image

        return Image.fromarray(self._pixels(split, index))

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Images of a split at `indices` as uint8 (N, S, S, 3)."""
        import numpy as np

        size = self.params.image_size
        out = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(indices):
            out[row] = self._pixels(split, int(index))
        return out

    def _count(self, split: str) -> int:
        if split not in ("train", "test"):
            raise DataError(f"synthetic: no split '{split}'; it has train and test")
        return int(self.params.n_train if split == "train" else self.params.n_test)

    def _pixels(self, split: str, index: int) -> np.ndarray[Any, Any]:
        import numpy as np

        if not 0 <= index < self._count(split):
            raise IndexError(f"synthetic: {split} has no image {index}")
        size = self.params.image_size
        noise = _bytes(f"{self.params.seed}:{split}:{index}", size * size * 3).reshape(size, size, 3)
        pattern = _pattern(self.params.seed, index % self.params.num_classes, size)
        return (noise // 2 + pattern // 2).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _pattern(seed: int, label: int, size: int) -> np.ndarray[Any, Any]:
    """Return the class's pattern, (size, size, 3) uint8: an 8x8 grid of colours."""
    import numpy as np

    grid = _bytes(f"{seed}:class:{label}", _GRID * _GRID * 3).reshape(_GRID, _GRID, 3)
    at = np.arange(size) * _GRID // size
    return grid[at][:, at]


def _bytes(key: str, count: int) -> np.ndarray[Any, Any]:
    import numpy as np

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")
    words = np.random.PCG64(seed).random_raw((count + 7) // 8)
    return words.astype("<u8").view(np.uint8)[:count]
