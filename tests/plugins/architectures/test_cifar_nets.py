"""The CIFAR networks: parameter counts, feature_info against real forward passes, heads, determinism."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import kdbench_architectures
from kdbench.api import KdbenchError
from kdbench_architectures.resnet_cifar import BasicBlock, ResNetCifar, resnet8, resnet8x4
from kdbench_architectures.wrn_cifar import WideBlock, WideResNetCifar, wrn_16_1, wrn_16_2

PUBLISHED = {
    "resnet20": 278_324,
    "resnet56": 861_620,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_40_2": 2_255_156,
    "wrn_16_2": 703_284,
}
NETS = {e.name: e for e in kdbench_architectures.kdbench_architectures() if not e.namespace}
SMALL = [resnet8, resnet8x4, wrn_16_1, wrn_16_2]


def build(name: str, **kw: int) -> nn.Module:
    module, attribute = NETS[name].target.split(":")
    args = {"num_classes": 100, "in_chans": 3, "image_size": 32} | kw
    return getattr(importlib.import_module(module), attribute)(**args)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(builder, **kw: int) -> nn.Module:
    torch.manual_seed(0)
    return builder(**({"num_classes": 10, "in_chans": 3, "image_size": 32} | kw))


def test_the_promised_networks_are_registered():
    expected = {"resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"}
    expected |= {"resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"}
    expected |= {"vgg8", "vgg13", "resnet50_cifar", "mobilenetv2_half", "shufflenetv1", "shufflenetv2"}
    assert set(NETS) == expected


@pytest.mark.parametrize("name", sorted(NETS))
def test_parameter_counts(name):
    entry = NETS[name]
    assert count(build(name)) == entry.params_count == PUBLISHED.get(name, entry.params_count)
    assert f"{entry.params_count:,}" in entry.summary


@pytest.mark.parametrize("builder", SMALL, ids=lambda b: b.name)
@pytest.mark.parametrize(("size", "chans"), [(32, 3), (16, 1), (20, 3)])
def test_feature_info_matches_the_forward_pass(builder, size, chans):
    net = small(builder, in_chans=chans, image_size=size).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for info in net.feature_info:
        path = info["module"]
        net.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: shapes.__setitem__(path, tuple(out.shape))
        )
    logits = net(torch.randn(2, chans, size, size))
    assert logits.shape == (2, 10)
    assert [i["reduction"] for i in net.feature_info] == [1, 1, 2, 4]
    for info in net.feature_info:
        side = size // info["reduction"]
        assert shapes[info["module"]] == (2, info["num_chs"], side, side)


@pytest.mark.parametrize("builder", SMALL, ids=lambda b: b.name)
def test_every_parameter_gets_a_gradient(builder):
    net = small(builder)
    net(torch.randn(4, 3, 32, 32)).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("builder", SMALL, ids=lambda b: b.name)
def test_a_seed_fixes_the_weights(builder):
    a, b = small(builder), small(builder)
    torch.manual_seed(1)
    c = builder(num_classes=10, in_chans=3, image_size=32)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_resnet_stages_end_in_the_last_act2():
    net = small(resnet8).eval()
    for layer in (net.layer1, net.layer2, net.layer3):
        seen: dict[str, torch.Tensor] = {}
        layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.__setitem__("stage", out))
        layer[-1].act2.register_forward_hook(lambda _m, _i, out, seen=seen: seen.__setitem__("act", out))
        net(torch.randn(2, 3, 32, 32))
        assert seen["stage"].data_ptr() == seen["act"].data_ptr()
        assert seen["stage"].min() >= 0


def test_wrn_stages_end_without_activation_and_the_net_with_one():
    net = small(wrn_16_2).eval()
    stage: list[torch.Tensor] = []
    net.layer3.register_forward_hook(lambda _m, _i, out: stage.append(out.clone()))
    x = torch.randn(2, 3, 32, 32)
    final = net.forward_features(x)
    assert stage[0].min() < 0 <= final.min()
    torch.testing.assert_close(net.bn1(stage[0]).relu(), final)


@pytest.mark.parametrize("block", [BasicBlock(8, 8), WideBlock(8, 8)], ids=["basic", "wide"])
def test_a_closed_drop_path_leaves_the_shortcut(block):
    class Closed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    block.eval().drop_path = Closed()
    x = torch.randn(2, 8, 4, 4)
    expected = x.relu() if isinstance(block, BasicBlock) else x
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("builder", SMALL, ids=lambda b: b.name)
def test_heads(builder):
    net = small(builder).eval()
    x = torch.randn(2, 3, 32, 32)
    features = net.forward_features(x)
    pooled = net.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, net.num_features) == (2, net.get_classifier().in_features)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(net.get_classifier()(pooled), net(x))
    net.reset_classifier(7)
    assert net(x).shape == (2, 7)
    assert net.num_classes == 7
    net.reset_classifier(0)
    assert torch.equal(net(x), pooled)
    net.reset_classifier(0, "")
    assert net(x).shape == features.shape
    with pytest.raises(ValueError, match="global_pool"):
        net.reset_classifier(3, "max")


def test_a_resnet8_fits_random_labels():
    net = small(resnet8)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize("builder", [resnet8, wrn_16_1], ids=lambda b: b.name)
def test_arguments_are_refused_in_one_line(builder):
    with pytest.raises(KdbenchError, match=f"'{builder.name}'.*block_size") as e:
        small(builder, block_size=3)
    assert "\n" not in str(e.value)


def test_impossible_depths():
    with pytest.raises(ValueError, match="6n\\+2"):
        ResNetCifar(21, (16, 16, 32, 64))
    with pytest.raises(ValueError, match="6n\\+4"):
        WideResNetCifar(15, 2)
