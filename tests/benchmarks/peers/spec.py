"""What is trained: one cell, as every contender reads it; and the pairs of networks that there are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

#: Sizes of pairs: which goals hold for them.
Tier = Literal["digits", "cifar"]


class Spec(BaseModel):
    """A cell: networks and data set by kdbench's names, and a recipe that every contender can follow.

    SGD with classical momentum; `milestones` are epochs from which on the rate is multiplied by `gamma`, none
    for a constant rate. The loss is ``ce_weight CE + kd_weight T² KL(teacher || student)``. Incomplete batches
    are dropped, since timm's loader does so.

    Attributes:
        images: training images (a stratified part of the data set), None for all.
        padding: pixels for the random crop; 0 for no crop.
        workers: loader processes of those contenders that have some.
        threads: of the training process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: str
    teacher: str
    student: str
    dataset: str
    dataset_args: dict[str, Any] = {}
    images: int | None = None
    test_images: int | None = None
    batch_size: int = 64
    epochs: int = 2
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    padding: int = 4
    flip: bool = False
    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9
    seed: int = 0
    workers: int = 2
    threads: int = 1
    device: str = "cpu"


class Pair(BaseModel):
    """A teacher and a student, and how many images make an epoch of the benchmark."""

    teacher: str
    student: str
    tier: Tier
    images: int

    @property
    def name(self) -> str:
        """Name for options and tables, without the namespace."""
        return f"{self.teacher}->{self.student}".replace("timm:", "")


_PAIRS = (
    Pair(teacher="timm:resnet10t", student="timm:test_resnet", tier="digits", images=1408),
    Pair(teacher="timm:test_vit3", student="timm:test_vit", tier="digits", images=1408),
    Pair(teacher="wrn_40_2", student="wrn_16_2", tier="cifar", images=640),
    Pair(teacher="resnet32x4", student="resnet8x4", tier="cifar", images=384),
    Pair(teacher="resnet20", student="resnet8", tier="cifar", images=1280),
)
PAIRS = {pair.name: pair for pair in _PAIRS}


def spec_of(pair: Pair, *, images: int | None, folder: str | None = None, **more: Any) -> Spec:
    """Return the cell of a pair: on digits, or on 32-pixel images with 100 classes (or those of an image folder).

    Args:
        images: training images, None for the pair's own number.
        folder: root of an image folder, for pairs of CIFAR's size.
        more: further fields of the cell.
    """
    facts: dict[str, Any] = {"pair": pair.name, "teacher": pair.teacher, "student": pair.student}
    n = images or pair.images
    if pair.tier == "digits":
        facts |= {"dataset": "digits", "images": min(n, 1438)}
    elif folder is not None:
        facts |= {"dataset": "image-folder", "dataset_args": {"root": folder}, "images": n, "flip": True}
    else:
        args = {"num_classes": 100, "image_size": 32, "n_train": n, "n_test": 128}
        facts |= {"dataset": "synthetic", "dataset_args": args, "flip": True}
    return Spec(**{**facts, **more})
