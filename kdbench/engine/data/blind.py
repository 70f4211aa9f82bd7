"""A data set without its test split, for trials of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdbench.errors import DataError
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import DataInfo

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class WithoutTest(Dataset):
    """The same data set, whose test split cannot be had: every way to it raises DataError."""

    def __init__(self, whole: Dataset) -> None:
        super().__init__(whole.params)
        self._whole = whole

    def describe(self) -> DataInfo:
        return self._whole.describe()

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        return self._whole.labels(self._seen(split))

    def image(self, split: str, index: int) -> Image:
        return self._whole.image(self._seen(split), index)

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._whole.arrays(self._seen(split), indices)

    def _seen(self, split: str) -> str:
        if split == "test":
            raise DataError(
                f"data set '{self.describe().name}': a trial of a search never reads the test split"
            )
        return split
