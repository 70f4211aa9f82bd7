"""CIFAR ResNets of depth 6n+2 (He et al., arXiv 1512.03385, section 4.2) and their x4 variants.

Shortcuts that change shape are 1x1 convolutions with BatchNorm (option B), as in the nets whose accuracies
the CIFAR-100 distillation literature reports (contrastive representation distillation, arXiv 1910.10699,
table 1); option A of the ResNet paper would give fewer parameters. Each stage ends in the ``act2`` of its
last block.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, add, conv3x3, refuse_args

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (B, in_chs, H, W) -> (B, out_chs, H/stride, W/stride)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_chs, out_chs)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.drop_path = nn.Identity()
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_chs != out_chs:
            conv = nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after its last activation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.drop_path(self.bn2(self.conv2(x)))
        return self.act2(add(x, shortcut))


class ResNetCifar(CifarNet):
    """CIFAR ResNet.

    Args:
        depth: number of weighted layers, 6n+2.
        widths: channels of the stem and of the three stages.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        ValueError: when `depth` is not 6n+2 with n >= 1.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int = 100, in_chans: int = 3
    ) -> None:
        super().__init__(widths[-1], num_classes)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth}: a CIFAR ResNet has 6n+2 layers")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.feature_info = [
            {"num_chs": widths[0], "reduction": 1, "module": "act1"},
            {"num_chs": widths[1], "reduction": 1, "module": "layer1"},
            {"num_chs": widths[2], "reduction": 2, "module": "layer2"},
            {"num_chs": widths[3], "reduction": 4, "module": "layer3"},
        ]
        self._add_head()
        self._init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last stage, (B, num_features, H/4, W/4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


def _stage(in_chs: int, out_chs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_chs, out_chs, stride)
    return nn.Sequential(first, *(BasicBlock(out_chs, out_chs) for _ in range(blocks - 1)))


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, depth: int, widths: tuple[int, int, int, int]) -> None:
        self.name, self.depth, self.widths = name, depth, widths

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int, **args: Any) -> ResNetCifar:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return ResNetCifar(self.depth, self.widths, num_classes, in_chans)


resnet8 = _Builder("resnet8", 8, _NARROW)
resnet14 = _Builder("resnet14", 14, _NARROW)
resnet20 = _Builder("resnet20", 20, _NARROW)
resnet32 = _Builder("resnet32", 32, _NARROW)
resnet44 = _Builder("resnet44", 44, _NARROW)
resnet56 = _Builder("resnet56", 56, _NARROW)
resnet110 = _Builder("resnet110", 110, _NARROW)
resnet8x4 = _Builder("resnet8x4", 8, _WIDE)
resnet32x4 = _Builder("resnet32x4", 32, _WIDE)
