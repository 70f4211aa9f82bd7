"""VGG nets for CIFAR (Simonyan and Zisserman, arXiv 1409.1556) with BatchNorm and a single linear head.

The form whose accuracies the CIFAR-100 distillation literature reports: convolutions with bias, max-pooling
after each of the first three groups, global average pooling at the end. The first group, at full resolution,
counts as the stem; every group ends in a ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdbench_architectures.cifar_net import CifarNet, refuse_args

_WIDTHS = (64, 128, 256, 512, 512)


class VggCifar(CifarNet):
    """VGG with five groups of 3x3 convolutions, of 64, 128, 256, 512 and 512 channels.

    Args:
        convs: convolutions of each group, five numbers.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        ValueError: when `convs` is not five positive numbers.
    """

    def __init__(self, convs: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(_WIDTHS[-1], num_classes)
        if len(convs) != len(_WIDTHS) or min(convs) < 1:
            raise ValueError(f"{tuple(convs)}: a VGG has five groups of one convolution or more")
        self.stem = _group(in_chans, _WIDTHS[0], convs[0])
        self.layer1 = _group(_WIDTHS[0], _WIDTHS[1], convs[1], pool=True)
        self.layer2 = _group(_WIDTHS[1], _WIDTHS[2], convs[2], pool=True)
        self.layer3 = _group(_WIDTHS[2], _WIDTHS[3], convs[3], pool=True)
        self.layer4 = _group(_WIDTHS[3], _WIDTHS[4], convs[4])
        self.feature_info = [
            {"num_chs": _WIDTHS[0], "reduction": 1, "module": "stem"},
            {"num_chs": _WIDTHS[1], "reduction": 2, "module": "layer1"},
            {"num_chs": _WIDTHS[2], "reduction": 4, "module": "layer2"},
            {"num_chs": _WIDTHS[3], "reduction": 8, "module": "layer3"},
            {"num_chs": _WIDTHS[4], "reduction": 8, "module": "layer4"},
        ]
        self._add_head()
        self._init_weights()
        self._init_biases()

    def _init_biases(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last group, (B, 512, H/8, W/8)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))


def _group(in_chs: int, out_chs: int, convs: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    for i in range(convs):
        conv = nn.Conv2d(out_chs if i else in_chs, out_chs, kernel_size=3, padding=1)
        layers += [conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _Builder:
    """The registry target of one network."""

    def __init__(self, name: str, convs: Sequence[int]) -> None:
        self.name, self.convs = name, convs

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int, **args: Any) -> VggCifar:
        """Build the network; `image_size` does not change it. Raises KdbenchError for any argument."""
        refuse_args(self.name, args)
        return VggCifar(self.convs, num_classes, in_chans)


vgg8 = _Builder("vgg8", (1, 1, 1, 1, 1))
vgg13 = _Builder("vgg13", (2, 2, 2, 2, 2))
