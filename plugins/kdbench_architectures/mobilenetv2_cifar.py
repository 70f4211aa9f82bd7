"""MobileNetV2 for CIFAR (Sandler et al., arXiv 1801.04381) in the form of the distillation literature.

It differs from the ImageNet net: the stem has stride 2 and the second group stride 1, so 32 pixels become 2
at the end; activations are ReLU, not ReLU6; there is no dropout; channels are multiplied by the width and cut
to whole numbers, not rounded to eight. Stages are what that literature takes features from: the ends of the
groups with 24, 32, 96 and 320 channels (times the width). They end in a linear layer, without activation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, add, refuse_args

#: expansion, channels at width 1, blocks, stride of the first block
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection; (B, in_chs, H, W) -> out_chs, H/stride.

    Blocks of stride 1 and equal channels add their input, and only those have a ``drop_path``.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = in_chs * expansion
        self.expand = nn.Conv2d(in_chs, mid, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.act1 = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(mid, mid, kernel_size=3, stride=stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.act2 = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(mid, out_chs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.residual = stride == 1 and in_chs == out_chs
        if self.residual:
            self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, which no activation has passed."""
        branch = self.act1(self.bn1(self.expand(x)))
        branch = self.act2(self.bn2(self.depthwise(branch)))
        branch = self.bn3(self.project(branch))
        return add(self.drop_path(branch), x) if self.residual else branch


class MobileNetV2Cifar(CifarNet):
    """MobileNetV2 with expansion 6.

    Args:
        width: factor of the channels; the last convolution keeps 1280 at widths up to 1.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        ValueError: when `width` leaves a group without channels.
    """

    def __init__(self, width: float, num_classes: int = 100, in_chans: int = 3) -> None:
        last = int(_LAST * max(width, 1.0))
        super().__init__(last, num_classes)
        channels = [int(c * width) for _, c, _, _ in _GROUPS]
        if min(channels) < 1:
            raise ValueError(f"width {width}: it leaves a group without channels")
        stem = int(_STEM * width)
        self.stem = _conv_bn(in_chans, stem, kernel=3, stride=2)
        groups: list[nn.Module] = []
        before = stem
        for (expansion, _, blocks, stride), after in zip(_GROUPS, channels, strict=True):
            groups.append(_group(before, after, blocks, stride, expansion))
            before = after
        self.blocks = nn.Sequential(*groups)
        self.conv_head = _conv_bn(before, last, kernel=1, stride=1)
        self.feature_info = [
            {"num_chs": stem, "reduction": 2, "module": "stem"},
            {"num_chs": channels[1], "reduction": 2, "module": "blocks.1"},
            {"num_chs": channels[2], "reduction": 4, "module": "blocks.2"},
            {"num_chs": channels[4], "reduction": 8, "module": "blocks.4"},
            {"num_chs": channels[6], "reduction": 16, "module": "blocks.6"},
        ]
        self._add_head()
        self._init_weights()
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, 0.0, 0.01)
            nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last 1x1 convolution and its ReLU, (B, num_features, H/16, W/16)."""
        return self.conv_head(self.blocks(self.stem(x)))


def _conv_bn(in_chs: int, out_chs: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True))


def _group(in_chs: int, out_chs: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(in_chs, out_chs, stride, expansion)
    rest = (InvertedResidual(out_chs, out_chs, 1, expansion) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, width: float) -> None:
        self.name, self.width = name, width

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int, **args: Any) -> MobileNetV2Cifar:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return MobileNetV2Cifar(self.width, num_classes, in_chans)


mobilenetv2_half = _Builder("mobilenetv2_half", 0.5)
