"""Data sets: digits, image folders, CIFAR-10 and CIFAR-100 on disk, and synthetic images for timing."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hooks import DatasetEntry, hookimpl


@hookimpl
def kdbench_datasets() -> Sequence[DatasetEntry]:
    """Return the data sets of this package."""
    return [
        DatasetEntry(
            name="digits",
            target="kdbench_datasets.digits:Digits",
            version="1",
            summary="scikit-learn's 1,797 handwritten digits at 32x32; needs no download",
            tags=("offline", "small"),
        ),
        DatasetEntry(
            name="image-folder",
            target="kdbench_datasets.image_folder:ImageFolder",
            version="1",
            summary="folders train/<class>/ and test/<class>/ of image files",
            tags=("local",),
        ),
        DatasetEntry(
            name="cifar10",
            target="kdbench_datasets.cifar:Cifar10",
            version="1",
            summary="CIFAR-10, 60,000 images of 32x32 in 10 classes (Krizhevsky, 2009)",
            tags=("download",),
        ),
        DatasetEntry(
            name="cifar100",
            target="kdbench_datasets.cifar:Cifar100",
            version="1",
            summary="CIFAR-100, 60,000 images of 32x32 in 100 classes (Krizhevsky, 2009)",
            tags=("download",),
        ),
        DatasetEntry(
            name="synthetic",
            target="kdbench_datasets.synthetic:Synthetic",
            version="1",
            summary="noise with a class-dependent pattern, any size; for throughput",
            tags=("offline", "throughput"),
        ),
    ]
