"""Folders of image files, one folder a class, as torchvision's and timm's readers take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from kdbench.api import DataError, DataInfo, Dataset, DatasetParams, cache_dir
from kdbench_datasets.decode_cache import decoded
from kdbench_datasets.folder_scan import Scan, Split, scan

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
#: Largest image that is decoded, in pixels: a quarter of a GB as RGB. A file of 100 kB can say to be larger.
MAX_PIXELS = 1024**3 // 4 // 3
#: Largest side that is taken from an image, as for ``image_size``.
_MAX_SIDE = 4096

Triple = tuple[float, float, float]


class ImageFolder(Dataset):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/``; classes are the sorted folder names.

    ``val`` or ``valid`` is the validation split where there is also a ``test``, else the test split.
    Subfolders of a class belong to it.
    """

    class Params(DatasetParams):
        """Where the images are and how they are read."""

        root: Path = Field(description="folder with train/ and test/ (or val/); ~ is expanded")
        image_size: int | None = Field(
            default=None, ge=1, le=4096, description="side in pixels; null: shorter side of the first image"
        )
        flip: bool = Field(default=True, description="whether a horizontal flip keeps the class")
        mean: Triple | None = Field(
            default=None,
            description="per channel in [0, 1]; null: CIFAR-10's up to 64 pixels, else ImageNet's",
        )
        std: Triple | None = Field(default=None, description="per channel; null: as for mean")

        @field_validator("root")
        @classmethod
        def _expand(cls, value: Path) -> Path:
            return value.expanduser()

        @field_validator("std")
        @classmethod
        def _positive(cls, value: Triple | None) -> Triple | None:
            if value is not None and min(value) <= 0:
                raise ValueError("std must be above 0")
            return value

    location = frozenset({"root"})

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self._info: DataInfo | None = None

    def describe(self) -> DataInfo:
        """Return the facts after a scan of the folders (no image but the first one's header is read).

        Raises:
            DataError: as :func:`kdbench_datasets.folder_scan.scan`, or the first image is unreadable.
        """
        if self._info is None:
            found = self._scan()
            size = self.params.image_size or self._first_size()
            mean, std = _CIFAR10 if size <= 64 else _IMAGENET
            counts = {name: len(split.files) for name, split in found.splits.items()}
            self._info = DataInfo(
                name=self._root().name or "image-folder",
                num_classes=len(found.class_names),
                class_names=found.class_names,
                image_size=size,
                mean=self.params.mean or mean,
                std=self.params.std or std,
                n_train=counts["train"],
                n_test=counts["test"],
                n_val=counts.get("val", 0),
                revision=found.revision,
                flip=self.params.flip,
            )
        return self._info

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Labels of a split, int64 (N,). Raises DataError for an unknown split."""
        import numpy as np

        return np.asarray(self._split(split).labels, np.int64)

    def image(self, split: str, index: int) -> Image:
        """One image as the file has it, RGB. Raises DataError naming the file when it cannot be decoded."""
        return _read(self._split(split).path(index))

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Images of a split at `indices` as uint8 (N, S, S, 3), through a cache of decoded splits.

        An image of another size is resized (bilinear) until it covers the square, then cropped at the centre.

        Raises:
            DataError: naming the file that cannot be decoded.
        """
        import numpy as np
        from PIL import Image, ImageOps

        info = self.describe()
        files = self._split(split)
        size = info.image_size

        def decode(index: int) -> np.ndarray[Any, Any]:
            image = _read(files.path(index))
            if image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)

        path = cache_dir("decoded", info.revision, f"{split}-{size}.npy")
        return decoded(path, len(files.files), size, indices, decode)

    def _root(self) -> Path:
        return Path(self.params.root).absolute()

    def _scan(self) -> Scan:
        return scan(self._root())

    def _split(self, name: str) -> Split:
        splits = self._scan().splits
        if name not in splits:
            raise DataError(f"image folder {self._root()}: no split '{name}'; it has {', '.join(splits)}")
        return splits[name]

    def _first_size(self) -> int:
        from PIL import Image

        path = self._split("train").path(0)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                side = min(image.size)
        except Exception as e:  # a damaged header can raise nearly anything
            raise _unreadable(path, e) from e
        if side > _MAX_SIDE:
            raise DataError(
                f"{path}: {side} pixels on its shorter side; give an image_size (at most {_MAX_SIDE})"
            )
        return side


def _read(path: str) -> Image:
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(
                    f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read"
                )
            return image.convert("RGB")
    except Exception as e:  # a damaged image can raise nearly anything
        raise _unreadable(path, e) from e


def _unreadable(path: str, error: Exception) -> DataError:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{path}: image too large: {' '.join(str(error).split())}")
    return DataError(f"{path}: not a readable image ({type(error).__name__}: {' '.join(str(error).split())})")
