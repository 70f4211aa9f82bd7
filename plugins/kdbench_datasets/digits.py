"""scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.api import DataError, DataInfo, Dataset

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_SIZE = 32
#: Fixes which images are in the test split; a change is a new revision.
_SPLIT_KEY = "digits-v1"
_TEST_SHARE = 0.2
_INFO = DataInfo(
    name="digits",
    num_classes=10,
    class_names=tuple("0123456789"),
    image_size=_SIZE,
    mean=(0.3061, 0.3061, 0.3061),
    std=(0.3239, 0.3239, 0.3239),
    n_train=1438,
    n_test=359,
    revision="digits-v1",
    flip=False,
)


class Digits(Dataset):
    """1,797 grey 8x8 digits, scaled to 0-255, resized to 32x32 (bilinear) and given three equal channels.

    A fifth of each class is the test split, chosen by a hash of the image's number, so that the split is the
    same with every version of every library.
    """

    def describe(self) -> DataInfo:
        """Return the facts; constants, nothing is imported."""
        return _INFO

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Labels of a split, int64 (N,). Raises DataError for an unknown split."""
        return _split(split)[1].copy()

    def image(self, split: str, index: int) -> Image:
        """One image, RGB, 32x32."""
        from PIL import Image

        return Image.fromarray(_split(split)[0][index])

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Images of a split at `indices` as uint8 (N, 32, 32, 3)."""
        return _split(split)[0][indices]


def _split(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    splits = _load()
    if name not in splits:
        raise DataError(f"digits: no split '{name}'; it has train and test")
    return splits[name]


@functools.cache
def _load() -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return images (N, 32, 32, 3) uint8 and labels (N,) int64 of both splits."""
    import numpy as np
    from PIL import Image

    pixels, target = _read()
    small = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = (_SIZE, _SIZE)
    grey = [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR)) for x in small]
    images = np.repeat(np.stack(grey)[..., None], 3, axis=-1)
    labels = target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for k in range(10):
        members = sorted(np.flatnonzero(labels == k).tolist(), key=_rank)
        test[members[: round(_TEST_SHARE * len(members))]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _read() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return pixels (N, 64), 0 to 16, and labels (N,), as scikit-learn's ``load_digits`` does.

    Its file is read without it: to import scikit-learn takes over a second, the file some milliseconds.
    """
    import numpy as np

    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
            return table[:, :64].astype(np.float64), table[:, 64]
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return pixels, target


def _rank(index: int) -> bytes:
    return hashlib.sha256(f"{_SPLIT_KEY}:{index}".encode()).digest()
