"""What the facts of a cell tell of its run before any network is built."""

from __future__ import annotations

from kdbench.matrix import CellSpec, TeacherSpec
from kdbench.matrix.holdout import held_out
from kdbench.protocol.types import DataInfo


def too_few(teacher: TeacherSpec, wanted: int) -> str | None:
    """Return why a cell with this teacher cannot have `wanted` different ones, or None.

    A teacher that kdbench trains gives one for each seed; loaded weights are there once.
    """
    if wanted < 2 or (teacher.checkpoint is None and not teacher.pretrained):
        return None
    source = "a checkpoint is" if teacher.checkpoint is not None else "pretrained weights are"
    return f"needs {wanted} different teachers, and {source} only one; teachers trained here differ by seed"


def single_image(spec: CellSpec, info: DataInfo) -> str | None:
    """Return a warning where the last training batch of every epoch has one image, or None."""
    recipe, images = spec.recipe, training_images(spec, info)
    if recipe.drop_last or images < recipe.batch_size or images % recipe.batch_size != 1:
        return None
    return (
        f"the last batch of an epoch has 1 image ('{spec.dataset.label}': {images} images to train on, recipe "
        f"'{recipe.name}': batch_size {recipe.batch_size}), with which BatchNorm may fail: "
        f"set drop_last: true in the recipe, or another batch_size"
    )


def training_images(spec: CellSpec, info: DataInfo) -> int:
    """Return how many images a cell trains on, after the limit and without those held out."""
    images = min(spec.dataset.limit_train or info.n_train, info.n_train)
    return images - held_out(images, info, spec.recipe.val_fraction)
