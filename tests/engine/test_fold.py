"""Which BatchNorm layers are folded, and that nothing but rounding comes of it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from kdbench.engine.fold import agrees, foldable, folded
from kdbench_architectures.resnet_cifar import resnet8
from kdbench_architectures.wrn_cifar import wrn_16_1

FACTS = {"num_classes": 5, "in_chans": 3, "image_size": 32}


def trained(net: nn.Module) -> nn.Module:
    """Return the network with statistics that are far from those of a new one."""
    generator = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.weight, 0.5, 1.5), (m.running_var, 0.3, 3.0)):
                t.data.uniform_(low, high, generator=generator)
            for t in (m.bias, m.running_mean):
                t.data.normal_(0.0, 0.5, generator=generator)
    return net.eval()


def images(n: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


class Spied(nn.Module):
    """A convolution whose output is read by BatchNorm and by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.bn(y) + y.mean()).mean((2, 3))


class Twice(nn.Module):
    """One BatchNorm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn(self.a(x)) + self.bn(self.b(x))).mean((2, 3))


class Written(Spied):
    """A convolution whose output is written into before BatchNorm reads it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += 1
        return self.bn(y).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: resnet8(**FACTS), "all"),
        (lambda: timm.create_model("test_resnet", num_classes=5), "all"),
        (lambda: timm.create_model("test_byobnet", num_classes=5), "all"),
        (lambda: timm.create_model("test_efficientnet", num_classes=5), "all"),  # BatchNorm with activation
        (lambda: wrn_16_1(**FACTS), "some"),  # pre-activation: the first of a block follows a sum
        (lambda: timm.create_model("test_vit", img_size=32, num_classes=5), "none"),
        (Spied, "none"),
        (Twice, "none"),
        (Written, "none"),
    ],
)
def test_only_what_feeds_batchnorm_alone_is_folded(build, expected):
    net = trained(build())
    x = images()
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    pairs = foldable(net, x)
    assert {"all": len(pairs) == norms, "some": 0 < len(pairs) < norms, "none": not pairs}[expected]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = folded(net, pairs)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in other.modules()) == norms - len(pairs)
    with torch.no_grad():
        torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-4)
    assert agrees(net, other, x)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_other_weights_are_shared_and_the_memory_format_is_kept():
    net = trained(resnet8(**FACTS)).to(memory_format=torch.channels_last)
    other = folded(net, foldable(net, images()))
    assert other.get_classifier().weight is net.get_classifier().weight
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last)
        for m in other.modules()
        if isinstance(m, nn.Conv2d)
    )


def test_networks_that_differ_do_not_agree():
    net = trained(resnet8(**FACTS))
    other = trained(resnet8(**FACTS))
    assert agrees(net, net, images())
    assert not agrees(net, other, images())
