"""What the CIFAR networks share: a stem, three or four stages, global pooling, one linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.api import KdbenchError


def conv3x3(in_chs: int, out_chs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_chs, out_chs, kernel_size=3, stride=stride, padding=1, bias=False)


def refuse_args(name: str, args: dict[str, Any]) -> None:
    """Raise KdbenchError when a matrix gives constructor arguments to a network that has none."""
    if args:
        keys = ", ".join(sorted(args))
        raise KdbenchError(f"architecture '{name}': unknown argument {keys}; it takes no arguments")


class CifarNet(nn.Module):
    """Base of the CIFAR networks, with the parts of timm's model interface that heads and taps rely on.

    Subclasses set the body and `feature_info` and implement :meth:`forward_features`. Input (B, in_chans, H,
    W) with H and W no smaller than the last stage's reduction.

    Attributes:
        feature_info: one mapping a stage, the stem first: ``num_chs``, ``reduction`` and ``module`` (path).
        num_classes: outputs of the head, 0 for none.
        num_features: width of the pooled feature.
    """

    feature_info: list[dict[str, Any]]

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes

    def _add_head(self) -> None:
        self.global_pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.fc: nn.Module = self._make_fc(self.num_classes)

    def _make_fc(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """Return the linear head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one for `num_classes`; 0 removes it, `global_pool=""` also the pooling.

        Raises:
            ValueError: for a pooling other than ``"avg"``, ``""`` and None (keep).
        """
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"global_pool {global_pool!r}: expected 'avg' or ''")
        if global_pool == "":
            self.global_pool = nn.Identity()
        elif global_pool == "avg":
            self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.num_classes = num_classes
        device = next(self.parameters()).device
        self.fc = self._make_fc(num_classes).to(device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (B, num_features, H/r, W/r), after the network's last activation."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the pooled feature (B, num_features)."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def add(branch: Tensor, shortcut: Tensor) -> Tensor:
    """Return the sum out of place: a tap may still hold the branch's last value."""
    return torch.add(branch, shortcut)
