"""Parameters and multiply-accumulates of networks small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdbench.measure.operations import macs, parameters
from kdbench_architectures.resnet_cifar import resnet20


def x(size: int = 8) -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, size, size),)


def test_macs_of_convolutions_and_a_linear() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8·8·8 outputs, 27 each
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 8·4·4 outputs, 9 each
        nn.Conv2d(8, 16, 1),  # 16·4·4 outputs, 8 each
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    assert macs(net, x()) == 8 * 64 * 27 + 8 * 16 * 9 + 16 * 16 * 8 + 160


def test_macs_of_attention_products() -> None:
    class Products(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            q = t.flatten(2)  # (1, 3, 64)
            return (q @ q.transpose(1, 2)) @ q

    assert macs(Products(), x()) == 3 * 3 * 64 + 3 * 64 * 3


def test_macs_of_the_published_resnet20() -> None:
    """He et al., arXiv 1512.03385: 41 M multiply-adds at 32 px (option A); option B adds 0.26 M."""
    count = macs(resnet20(num_classes=10, in_chans=3, image_size=32), x(32))
    assert count == pytest.approx(40.55e6 + 0.262e6, rel=0.01)


def test_counting_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    state = {k: v.clone() for k, v in net.state_dict().items()}
    assert macs(net, x())
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_network_that_cannot_be_counted_gives_none() -> None:
    class Exotic(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            raise NotImplementedError

    assert macs(Exotic(), x()) is None


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = shared.weight
    net = nn.ModuleDict({"a": shared, "b": shared, "c": tied, "d": nn.Linear(4, 2)})
    assert parameters(net) == 20 + 10


def test_frozen_parameters_count_and_buffers_do_not() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    assert parameters(net) == 9 + 6
