"""Input of a teacher whose weights expect another normalisation than the data set's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.protocol.types import DataInfo, NotApplicable

#: Largest difference of two means or deviations that count as equal.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def same(self, other: Normalisation) -> bool:
        """Whether both are equal within :data:`TOLERANCE`."""
        mine, others = (*self.mean, *self.std), (*other.mean, *other.std)
        return len(mine) == len(others) and all(
            abs(a - b) <= TOLERANCE for a, b in zip(mine, others, strict=True)
        )


class Renormalise:
    """Forward pre-hook: (B, C, H, W) normalised one way -> normalised another way, differentiable.

    ``(x·std_from + mean_from - mean_to) / std_to`` as one product and one sum per channel, in float32 also under
    autocast. Being a hook of the network itself, it holds for whoever calls it: methods, evaluation, timing;
    a copy of the network keeps it, and its state dict knows nothing of it.
    """

    def __init__(self, source: Normalisation, target: Normalisation, device: torch.device) -> None:
        channels = list(zip(source.mean, source.std, target.mean, target.std, strict=True))
        scale = [s / t for _, s, _, t in channels]
        shift = [(m - n) / t for m, _, n, t in channels]
        self.scale = torch.tensor(scale, device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor(shift, device=device).view(1, -1, 1, 1)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args:
            raise TypeError("a teacher takes its images as the first positional argument")
        x: Tensor = args[0]
        return (x.float().mul(self.scale).add_(self.shift), *args[1:])


def of_weights(net: nn.Module) -> Normalisation | None:
    """Return what a network's hub weights expect (timm's ``pretrained_cfg``), or None where it is not said."""
    cfg = config(net)
    mean, std = cfg.get("mean"), cfg.get("std")
    return None if mean is None or std is None else Normalisation(_floats(mean), _floats(std))


def config(net: nn.Module) -> Mapping[str, Any]:
    """Return timm's facts about a network's published weights; empty for networks of others."""
    cfg = getattr(net, "pretrained_cfg", None)
    return cfg if isinstance(cfg, Mapping) else {}


def renormalise(
    net: nn.Module, info: DataInfo, expected: Normalisation | None, name: str, device: torch.device
) -> Normalisation | None:
    """Make `net` take images that are normalised as the data set's are.

    Returns `expected`, or None where nothing had to be done. Raises NotApplicable when the numbers of channels
    differ.
    """
    given = Normalisation(tuple(info.mean), tuple(info.std))
    if expected is None or expected.same(given):
        return None
    if len(expected.mean) != len(given.mean):
        raise NotApplicable(
            f"{name}: its weights expect images of {len(expected.mean)} channels, "
            f"the data set has {len(given.mean)}"
        )
    net.register_forward_pre_hook(Renormalise(given, expected, device))
    return expected


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
