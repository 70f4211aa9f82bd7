"""What all contenders share: networks with their first weights, images, and top-1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from kdbench.engine.build import builder
from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cellspec import Arch
from kdbench.engine.data.splits import make_splits
from kdbench.engine.seeds import seeded
from kdbench.matrix.identity import derive_seed
from kdbench.protocol.types import DataInfo
from kdbench.registry import Registry

from .spec import Spec

TEACHER, STUDENT, SPEC = "teacher.safetensors", "student.safetensors", "spec.json"


@dataclass
class Outcome:
    """What a contender tells after training.

    Attributes:
        losses: mean training loss of each epoch.
        top1: test accuracy after the last epoch, in percent.
        weights: state dict of the trained student.
    """

    losses: list[float]
    top1: float
    weights: dict[str, Tensor]


class Pictures(Dataset[Any]):
    """Images in memory, made PIL images when asked for, as in torchvision's CIFAR10."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], transform: Any) -> None:
        self.data, self.targets, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class Material:
    """Networks and images of a cell; the images of both splits are read when first asked for."""

    def __init__(self, spec: Spec, folder: Path, registry: Registry | None = None) -> None:
        self.spec, self.folder = spec, folder
        self._registry = registry or Registry.load()
        self._dataset = make_dataset(self._registry, spec.dataset, spec.dataset_args)
        self.info: DataInfo = self._dataset.describe()
        self._splits = make_splits(
            self._dataset,
            self.info,
            val_fraction=0.0,
            limit_train=spec.images,
            limit_test=spec.test_images,
        )

    def pictures(self, split: str, transform: Any) -> Pictures:
        """Return the images of a split."""
        found = self._splits[split]
        return Pictures(self._dataset.arrays(found.source, found.indices), found.labels, transform)

    def nets(self) -> tuple[nn.Module, nn.Module]:
        """Return teacher (evaluation mode, no gradients) and student, with their first weights."""
        teacher, student = self._build(self.spec.teacher), self._build(self.spec.student)
        teacher.load_state_dict(load_file(self.folder / TEACHER))
        student.load_state_dict(load_file(self.folder / STUDENT))
        device = torch.device(self.spec.device)
        return teacher.eval().requires_grad_(False).to(device), student.to(device)

    def write_student(self) -> None:
        """Write the weights that kdbench's student of this seed starts from."""
        with seeded(derive_seed(self.spec.seed, "init", "student")):
            student = self._build(self.spec.student)
        save_file(_contiguous(student), self.folder / STUDENT)

    def write_teacher(self) -> None:
        """Write a teacher of random weights whose BatchNorm statistics are those of some images.

        Speed does not depend on what a teacher says; without the statistics its logits could overflow.
        """
        with seeded(derive_seed(self.spec.seed, "peers", "teacher")):
            teacher = self._build(self.spec.teacher).train()
        split = self._splits["train"]
        images = torch.from_numpy(self._dataset.arrays(split.source, split.indices[:64]))
        for module in teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain average: one pass is enough
        with torch.no_grad():
            teacher(self._normalised(images))
        save_file(_contiguous(teacher), self.folder / TEACHER)

    @torch.inference_mode()
    def top1(self, net: nn.Module) -> float:
        """Return the accuracy on the test split, in percent; leaves the network in evaluation mode."""
        split, right, device = self._splits["test"], 0, torch.device(self.spec.device)
        images = torch.from_numpy(self._dataset.arrays(split.source, split.indices))
        labels = torch.from_numpy(np.asarray(split.labels))
        net.eval()
        for x, y in zip(images.split(256), labels.split(256), strict=True):
            right += int((net(self._normalised(x).to(device)).argmax(1).cpu() == y).sum())
        return 100 * right / len(labels)

    def _build(self, name: str) -> nn.Module:
        info = self.info
        build = builder(self._registry, Arch(name=name))
        return build(num_classes=info.num_classes, in_chans=info.in_chans, image_size=info.image_size)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values) for values in (self.info.mean, self.info.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in net.state_dict().items()}


def _contiguous(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in weights_of(net).items()}
