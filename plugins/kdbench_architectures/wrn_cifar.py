"""Wide residual networks WRN-d-k for CIFAR (Zagoruyko and Komodakis, arXiv 1605.07146), without dropout.

Blocks are pre-activation: BatchNorm and ReLU precede each convolution, so no stage ends in an activation.
The ``bn1``/``act1`` that follows is in the next block; after the last stage it is the network's own
``bn1``/``relu``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, add, conv3x3, refuse_args


class WideBlock(nn.Module):
    """Pre-activation block; (B, in_chs, H, W) -> (B, out_chs, H/stride, W/stride).

    Where the shape changes, the 1x1 shortcut convolution reads the activated input.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_chs, out_chs)
        self.drop_path = nn.Identity()
        self.shortcut: nn.Module | None = None
        if in_chs != out_chs or stride != 1:
            self.shortcut = nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, which no activation has passed."""
        active = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return add(self.drop_path(branch), shortcut)


class WideResNetCifar(CifarNet):
    """WRN-`depth`-`widen`.

    Args:
        depth: number of weighted layers, 6n+4.
        widen: width factor k: the stages have 16k, 32k and 64k channels.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        ValueError: when `depth` is not 6n+4 with n >= 1, or `widen` is below 1.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(64 * widen, num_classes)
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise ValueError(f"WRN-{depth}-{widen}: a wide ResNet has 6n+4 layers and a factor of 1 or more")
        blocks = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = conv3x3(in_chans, widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.feature_info = [
            {"num_chs": widths[0], "reduction": 1, "module": "conv1"},
            {"num_chs": widths[1], "reduction": 1, "module": "layer1"},
            {"num_chs": widths[2], "reduction": 2, "module": "layer2"},
            {"num_chs": widths[3], "reduction": 4, "module": "layer3"},
        ]
        self._add_head()
        self._init_weights()
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage after the final BatchNorm and ReLU, (B, num_features, H/4, W/4)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.relu(self.bn1(x))


def _stage(in_chs: int, out_chs: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_chs, out_chs, stride)
    return nn.Sequential(first, *(WideBlock(out_chs, out_chs) for _ in range(blocks - 1)))


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, depth: int, widen: int) -> None:
        self.name, self.depth, self.widen = name, depth, widen

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int, **args: Any) -> WideResNetCifar:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return WideResNetCifar(self.depth, self.widen, num_classes, in_chans)


wrn_16_1 = _Builder("wrn_16_1", 16, 1)
wrn_16_2 = _Builder("wrn_16_2", 16, 2)
wrn_40_1 = _Builder("wrn_40_1", 40, 1)
wrn_40_2 = _Builder("wrn_40_2", 40, 2)
