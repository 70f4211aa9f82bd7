"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from kdbench.api import DataError, DataInfo, Dataset, DatasetParams, cache_dir
from kdbench_datasets.cifar_files import CifarFiles, fetch, read_split

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class _Params(DatasetParams):
    """Where the files are."""

    root: Path | None = Field(default=None, description="folder with the unpacked archive; null: the cache")

    @field_validator("root")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()


class _Cifar(Dataset):
    """Reader of both; a subclass gives the facts and the files."""

    Params = _Params
    location = frozenset({"root"})
    info: ClassVar[DataInfo]
    files: ClassVar[CifarFiles]

    @property
    def root(self) -> Path:
        """The folder that holds (or will hold) the unpacked archive's folder."""
        return Path(self.params.root or cache_dir(self.info.name)).absolute()

    def describe(self) -> DataInfo:
        """Return the facts. Raises DataError when a file is missing."""
        missing = self.files.missing(self.root)
        if missing:
            raise DataError(
                f"{self.info.name}: {missing[0]} not found under {self.root / self.files.folder}; run "
                f"`kdbench prepare` on the matrix, or unpack {self.files.archive} in {self.root}"
            )
        return self.info

    def prepare(self) -> None:
        """Download and unpack what is missing.

        An archive that already lies in the root is used. Raises DataError.
        """
        if self.files.missing(self.root):
            fetch(self.files, self.root)

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Labels of a split, int64 (N,). Raises DataError."""
        return self._load(split)[1].copy()

    def image(self, split: str, index: int) -> Image:
        """One image, RGB, 32x32. Raises DataError."""
        from PIL import Image

        return Image.fromarray(self._load(split)[0][index])

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Images of a split at `indices` as uint8 (N, 32, 32, 3). Raises DataError."""
        return self._load(split)[0][indices]

    def _load(self, split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        self.describe()
        return _cached_split(self.files, self.root, split)


@functools.lru_cache(maxsize=4)
def _cached_split(
    files: CifarFiles, root: Path, split: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return read_split(files, root, split)


_LABELS = "airplane automobile bird cat deer dog frog horse ship truck"


class Cifar10(_Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes."""

    files = CifarFiles(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        label_key=b"labels",
        num_classes=10,
        n_train=50_000,
        n_test=10_000,
    )
    info = DataInfo(
        name="cifar10",
        num_classes=10,
        class_names=tuple(_LABELS.split()),
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        n_train=files.n_train,
        n_test=files.n_test,
        revision="cifar10-v1",
    )


_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
"""


class Cifar100(_Cifar):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in 100 (fine) classes."""

    files = CifarFiles(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        label_key=b"fine_labels",
        num_classes=100,
        n_train=50_000,
        n_test=10_000,
    )
    info = DataInfo(
        name="cifar100",
        num_classes=100,
        class_names=tuple(_FINE_LABELS.split()),
        image_size=32,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        n_train=files.n_train,
        n_test=files.n_test,
        revision="cifar100-v1",
    )
