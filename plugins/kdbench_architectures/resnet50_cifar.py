"""ResNet-50 for CIFAR: the bottleneck net of ImageNet (He et al., arXiv 1512.03385) with a stem for 32 pixels.

The stem is a 3x3 convolution at full resolution without pooling, so 32 pixels become 4. The stride of a block
is in its 3x3 convolution. Each of the four stages ends in the ``act3`` of its last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, add, conv3x3, refuse_args

_STEM = 64
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; (B, in_chs, H, W) -> (B, 4·mid, H/stride, W/stride)."""

    def __init__(self, in_chs: int, mid: int, stride: int = 1) -> None:
        super().__init__()
        out_chs = _EXPANSION * mid
        self.conv1 = nn.Conv2d(in_chs, mid, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(mid, mid, stride)
        self.bn2 = nn.BatchNorm2d(mid)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(mid, out_chs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.drop_path = nn.Identity()
        self.act3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_chs != out_chs:
            conv = nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after its last activation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.drop_path(self.bn3(self.conv3(x)))
        return self.act3(add(x, shortcut))


class BottleneckResNetCifar(CifarNet):
    """Bottleneck ResNet with four stages.

    Args:
        blocks: blocks of each stage, four numbers.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        ValueError: when `blocks` is not four positive numbers.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> None:
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"{tuple(blocks)}: this ResNet has four stages of one block or more")
        mids = (64, 128, 256, 512)
        widths = [_EXPANSION * m for m in mids]
        super().__init__(widths[-1], num_classes)
        self.conv1 = conv3x3(in_chans, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(_STEM, mids[0], blocks[0], stride=1)
        self.layer2 = _stage(widths[0], mids[1], blocks[1], stride=2)
        self.layer3 = _stage(widths[1], mids[2], blocks[2], stride=2)
        self.layer4 = _stage(widths[2], mids[3], blocks[3], stride=2)
        self.feature_info = [
            {"num_chs": _STEM, "reduction": 1, "module": "act1"},
            {"num_chs": widths[0], "reduction": 1, "module": "layer1"},
            {"num_chs": widths[1], "reduction": 2, "module": "layer2"},
            {"num_chs": widths[2], "reduction": 4, "module": "layer3"},
            {"num_chs": widths[3], "reduction": 8, "module": "layer4"},
        ]
        self._add_head()
        self._init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last stage, (B, 2048, H/8, W/8)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _stage(in_chs: int, mid: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_chs, mid, stride)
    return nn.Sequential(first, *(Bottleneck(_EXPANSION * mid, mid) for _ in range(blocks - 1)))


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, blocks: Sequence[int]) -> None:
        self.name, self.blocks = name, blocks

    def __call__(
        self, *, num_classes: int, in_chans: int, image_size: int, **args: Any
    ) -> BottleneckResNetCifar:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return BottleneckResNetCifar(self.blocks, num_classes, in_chans)


resnet50_cifar = _Builder("resnet50_cifar", (3, 4, 6, 3))
