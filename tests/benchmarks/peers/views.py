"""The usual CIFAR transforms, of PIL images one by one."""

from __future__ import annotations

from typing import Any

from torchvision import transforms

from kdbench.protocol.types import DataInfo

from .spec import Spec


def crop_and_flip(spec: Spec, size: int) -> list[Any]:
    """Return the random part."""
    out: list[Any] = []
    if spec.padding:
        out.append(transforms.RandomCrop(size, padding=spec.padding))
    if spec.flip:
        out.append(transforms.RandomHorizontalFlip())
    return out


def to_normalised(spec: Spec, info: DataInfo) -> Any:
    """Return crop, flip, ToTensor and Normalize."""
    last = [transforms.ToTensor(), transforms.Normalize(info.mean, info.std)]
    return transforms.Compose([*crop_and_flip(spec, info.image_size), *last])
