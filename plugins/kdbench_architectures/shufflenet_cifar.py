"""ShuffleNets for CIFAR: V1 (Zhang et al., arXiv 1707.01083) and V2 (Ma et al., arXiv 1807.11164).

The form whose accuracies the CIFAR-100 distillation literature reports: the stem is a 1x1 convolution at full
resolution without pooling, and each of the three stages starts with stride 2, so 32 pixels become 4. V1 has
three groups and ends each stage in a ReLU. A stage of V2 ends in a shuffle of two halves of which one has
passed a ReLU, so it has no activation of its own; its blocks add nothing, so they have no ``drop_path``.
Weights start as torch's layers do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, add, refuse_args

_STEM = 24
_BLOCKS = (4, 8, 4)
_V1_WIDTHS = (240, 480, 960)
_V1_GROUPS = 3
_V2_WIDTHS = (116, 232, 464)
_V2_LAST = 1024


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave `groups` equal parts of the channels of (B, C, H, W): out[i·g + j] = in[j·C/g + i]."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pointwise(in_chs: int, out_chs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size=1, groups=groups, bias=False)


def _depthwise(chs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(chs, chs, kernel_size=3, stride=stride, padding=1, groups=chs, bias=False)


class ShuffleUnit(nn.Module):
    """Unit of V1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    (B, in_chs, H, W) -> (B, out_chs, H/stride, W/stride). With stride 1 the input is added; with stride 2 its
    average-pooled channels are appended, and the branch gives only the others.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        branch = out_chs - in_chs if stride == 2 else out_chs
        mid = branch // 4
        self.first_groups = first_groups
        self.conv1 = _pointwise(in_chs, mid, first_groups)
        self.bn1 = nn.BatchNorm2d(mid)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = _depthwise(mid, stride)
        self.bn2 = nn.BatchNorm2d(mid)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = _pointwise(mid, branch, groups)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool: nn.Module | None = None
        if stride == 2:
            self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        else:
            self.drop_path = nn.Identity()
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, after its last activation."""
        branch = shuffle(self.act1(self.bn1(self.conv1(x))), self.first_groups)
        branch = self.act2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.pool is not None:
            return self.act3(torch.cat([branch, self.pool(x)], 1))
        return self.act3(add(self.drop_path(branch), x))


class SplitUnit(nn.Module):
    """Unit of V2 at stride 1: one half of the channels passes three convolutions, then the halves are mixed."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.half = chs // 2
        self.branch = _branch(self.half, self.half, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, chs, H, W) -> the same shape."""
        kept, changed = x[:, : self.half], x[:, self.half :]
        return shuffle(torch.cat([kept, self.branch(changed)], 1), 2)


class DownUnit(nn.Module):
    """Unit of V2 at stride 2: two branches read the whole input; (B, in_chs, H, W) -> (B, out_chs, H/2, W/2)."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        half = out_chs // 2
        self.left = nn.Sequential(
            _depthwise(in_chs, 2),
            nn.BatchNorm2d(in_chs),
            _pointwise(in_chs, half),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.right = _branch(in_chs, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def _branch(in_chs: int, out_chs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _pointwise(in_chs, out_chs),
        nn.BatchNorm2d(out_chs),
        nn.ReLU(inplace=True),
        _depthwise(out_chs, stride),
        nn.BatchNorm2d(out_chs),
        _pointwise(out_chs, out_chs),
        nn.BatchNorm2d(out_chs),
        nn.ReLU(inplace=True),
    )


class _ShuffleNetCifar(CifarNet):
    """Stem, three stages of 4, 8 and 4 units, head."""

    def __init__(self, widths: tuple[int, int, int], features: int, num_classes: int, in_chans: int) -> None:
        super().__init__(features, num_classes)
        self.conv1 = _pointwise(in_chans, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = self._stage(_STEM, widths[0], _BLOCKS[0])
        self.layer2 = self._stage(widths[0], widths[1], _BLOCKS[1])
        self.layer3 = self._stage(widths[1], widths[2], _BLOCKS[2])
        self.feature_info = [
            {"num_chs": _STEM, "reduction": 1, "module": "act1"},
            {"num_chs": widths[0], "reduction": 2, "module": "layer1"},
            {"num_chs": widths[1], "reduction": 4, "module": "layer2"},
            {"num_chs": widths[2], "reduction": 8, "module": "layer3"},
        ]

    def _stage(self, in_chs: int, out_chs: int, blocks: int) -> nn.Sequential:
        raise NotImplementedError

    def _stages(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


class ShuffleNetV1Cifar(_ShuffleNetCifar):
    """ShuffleNet V1 with three groups and 240, 480 and 960 channels."""

    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(_V1_WIDTHS, _V1_WIDTHS[-1], num_classes, in_chans)
        self._add_head()

    def _stage(self, in_chs: int, out_chs: int, blocks: int) -> nn.Sequential:
        # the stem's 24 channels are too few to be grouped
        first_groups = 1 if in_chs == _STEM else _V1_GROUPS
        units = [ShuffleUnit(in_chs, out_chs, 2, _V1_GROUPS, first_groups)]
        units += [ShuffleUnit(out_chs, out_chs, 1, _V1_GROUPS, _V1_GROUPS) for _ in range(blocks - 1)]
        return nn.Sequential(*units)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last stage, (B, 960, H/8, W/8)."""
        return self._stages(x)


class ShuffleNetV2Cifar(_ShuffleNetCifar):
    """ShuffleNet V2 at width 1: 116, 232 and 464 channels, then a 1x1 convolution to 1024."""

    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(_V2_WIDTHS, _V2_LAST, num_classes, in_chans)
        self.conv2 = _pointwise(_V2_WIDTHS[-1], _V2_LAST)
        self.bn2 = nn.BatchNorm2d(_V2_LAST)
        self.act2 = nn.ReLU(inplace=True)
        self._add_head()

    def _stage(self, in_chs: int, out_chs: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(in_chs, out_chs), *(SplitUnit(out_chs) for _ in range(blocks - 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last 1x1 convolution and its ReLU, (B, 1024, H/8, W/8)."""
        return self.act2(self.bn2(self.conv2(self._stages(x))))


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, cls: type[ShuffleNetV1Cifar] | type[ShuffleNetV2Cifar]) -> None:
        self.name, self.cls = name, cls

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int, **args: Any) -> CifarNet:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return self.cls(num_classes, in_chans)


shufflenetv1 = _Builder("shufflenetv1", ShuffleNetV1Cifar)
shufflenetv2 = _Builder("shufflenetv2", ShuffleNetV2Cifar)
