"""VGG, MobileNetV2, ShuffleNets and ResNet-50 for CIFAR: counts, stages, taps through a handle, heads."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import kdbench_architectures
from kdbench.api import KdbenchError, Tap, pair_stages
from kdbench.engine.handle import NetHandle
from kdbench_architectures.mobilenetv2_cifar import InvertedResidual, MobileNetV2Cifar, mobilenetv2_half
from kdbench_architectures.resnet50_cifar import Bottleneck, BottleneckResNetCifar, resnet50_cifar
from kdbench_architectures.resnet_cifar import resnet8x4
from kdbench_architectures.shufflenet_cifar import ShuffleUnit, shuffle, shufflenetv1, shufflenetv2
from kdbench_architectures.vgg_cifar import VggCifar, vgg8, vgg13

#: parameters at 100 classes as the CIFAR-100 distillation literature gives them
PUBLISHED = {
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "resnet50_cifar": 23_705_252,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
#: channels and reductions of the stem and the stages
STAGES = {
    "vgg8": [(64, 1), (128, 2), (256, 4), (512, 8), (512, 8)],
    "vgg13": [(64, 1), (128, 2), (256, 4), (512, 8), (512, 8)],
    "resnet50_cifar": [(64, 1), (256, 1), (512, 2), (1024, 4), (2048, 8)],
    "mobilenetv2_half": [(16, 2), (12, 2), (16, 4), (48, 8), (160, 16)],
    "shufflenetv1": [(24, 1), (240, 2), (480, 4), (960, 8)],
    "shufflenetv2": [(24, 1), (116, 2), (232, 4), (464, 8)],
}
FEATURES = {
    "vgg8": (512, 8),
    "vgg13": (512, 8),
    "resnet50_cifar": (2048, 8),
    "mobilenetv2_half": (1280, 16),
    "shufflenetv1": (960, 8),
    "shufflenetv2": (1024, 8),
}
BUILDERS = [vgg8, vgg13, resnet50_cifar, mobilenetv2_half, shufflenetv1, shufflenetv2]
by_name = pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.name)


def make(builder, **kw: int) -> nn.Module:
    torch.manual_seed(0)
    return builder(**({"num_classes": 10, "in_chans": 3, "image_size": 32} | kw))


def handle(builder) -> NetHandle:
    return NetHandle("net", make(builder).eval(), image_size=32, in_chans=3, device=torch.device("cpu"))


@by_name
def test_parameter_counts_are_the_published_ones(builder):
    entries = {e.name: e for e in kdbench_architectures.kdbench_architectures()}
    entry = entries[builder.name]
    module, attribute = entry.target.split(":")
    assert getattr(importlib.import_module(module), attribute) is builder
    counted = sum(p.numel() for p in make(builder, num_classes=100).parameters())
    assert counted == entry.params_count == PUBLISHED[builder.name]
    assert f"{counted:,}" in entry.summary


@by_name
@pytest.mark.parametrize(("size", "chans"), [(32, 3), (48, 1)])
def test_feature_info_matches_the_forward_pass(builder, size, chans):
    net = make(builder, in_chans=chans, image_size=size).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for info in net.feature_info:
        path = info["module"]
        net.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: shapes.__setitem__(path, tuple(out.shape))
        )
    with torch.no_grad():
        assert net(torch.randn(2, chans, size, size)).shape == (2, 10)
    assert [(i["num_chs"], i["reduction"]) for i in net.feature_info] == STAGES[builder.name]
    for info in net.feature_info:
        side = size // info["reduction"]
        assert shapes[info["module"]] == (2, info["num_chs"], side, side)


@by_name
def test_heads(builder):
    net = make(builder).eval()
    width, reduction = FEATURES[builder.name]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (2, width, 32 // reduction, 32 // reduction)
        pooled = net.forward_head(features, pre_logits=True)
        assert net.num_features == net.get_classifier().in_features == width
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        torch.testing.assert_close(net.get_classifier()(pooled), net(x))
        net.reset_classifier(7)
        assert net(x).shape == (2, 7)
        net.reset_classifier(0)
        assert torch.equal(net(x), pooled)


@by_name
def test_every_parameter_gets_a_gradient(builder):
    net = make(builder)
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


@by_name
def test_a_seed_fixes_the_weights(builder):
    a, b = make(builder).state_dict(), make(builder).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


@by_name
def test_every_activation_is_a_module_and_the_last_one_ends_the_features(builder):
    net = make(builder).eval()
    calls = []
    for m in net.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda *a: calls.append(1))
    with torch.no_grad():
        features = net.forward_features(torch.randn(1, 3, 32, 32))
    assert len(calls) == sum(isinstance(m, nn.ReLU) for m in net.modules())
    assert features.min() >= 0


class TestTaps:
    @by_name
    def test_stages_and_shapes(self, builder):
        h = handle(builder)
        expected = STAGES[builder.name]
        assert h.stages == tuple(range(1, len(expected)))
        assert h.num_features == FEATURES[builder.name][0]
        for stage in h.stages:
            c, r = expected[stage]
            assert h.shape(Tap(stage)) == h.shape(Tap(stage, when="pre")) == (2, c, 32 // r, 32 // r)

    @pytest.mark.parametrize("builder", [vgg8, resnet50_cifar, shufflenetv1], ids=lambda b: b.name)
    def test_stages_that_end_in_an_activation(self, builder):
        h = handle(builder)
        taps = [Tap(s, when=w) for s in h.stages for w in ("pre", "post")]
        with torch.no_grad():
            feats = h(torch.randn(2, 3, 32, 32), taps).feats
        for stage in h.stages:
            pre, post = feats[Tap(stage, when="pre")], feats[Tap(stage)]
            assert h.has_activation(Tap(stage))
            assert pre.min() < 0
            assert torch.equal(pre.relu(), post)
            module = h.net.get_submodule(f"layer{stage}")
            assert h.bn_before(Tap(stage)) is (module[-2] if builder is vgg8 else module[-1].bn3)

    @pytest.mark.parametrize("builder", [mobilenetv2_half, shufflenetv2], ids=lambda b: b.name)
    def test_stages_without_an_activation(self, builder):
        h = handle(builder)
        with torch.no_grad():
            feats = h(torch.randn(2, 3, 32, 32), [Tap(2), Tap(2, when="pre")]).feats
        assert not any(h.has_activation(Tap(s)) for s in h.stages)
        assert torch.equal(feats[Tap(2)], feats[Tap(2, when="pre")])
        assert feats[Tap(2)].min() < 0 or builder is shufflenetv2

    def test_pairs_of_three_and_four_stages(self):
        pairs = pair_stages(handle(shufflenetv1), handle(vgg8))
        assert [(s.at, t.at) for s, t in pairs] == [(1, 2), (2, 3), (3, 4)]
        assert len(pair_stages(handle(resnet8x4), handle(shufflenetv2))) == 3

    def test_blocks_with_a_slot(self):
        assert len(handle(resnet50_cifar).blocks()) == 16
        assert len(handle(mobilenetv2_half).blocks()) == 10
        assert len(handle(shufflenetv1).blocks()) == 13
        assert handle(shufflenetv2).blocks() == handle(vgg8).blocks() == []


@pytest.mark.parametrize(
    ("block", "channels"),
    [(Bottleneck(16, 4), 16), (InvertedResidual(8, 8, 1, 6), 8), (ShuffleUnit(24, 24, 1, 3, 3), 24)],
    ids=["bottleneck", "inverted", "shuffle"],
)
def test_a_closed_drop_path_leaves_the_shortcut(block, channels):
    class Closed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    block.eval().drop_path = Closed()
    x = torch.randn(2, channels, 4, 4)
    torch.testing.assert_close(block(x), x if isinstance(block, InvertedResidual) else x.relu())


def test_shuffle_by_hand():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffle(x, 1), x)


def test_half_of_the_channels_pass_a_unit_of_shufflenetv2_unchanged():
    unit = make(shufflenetv2).eval().layer1[1]
    x = torch.randn(2, 116, 8, 8)
    out = unit(x)
    assert torch.equal(out[:, 0::2], x[:, :58])
    torch.testing.assert_close(out[:, 1::2], unit.branch(x[:, 58:]))


@by_name
def test_arguments_are_refused_in_one_line(builder):
    with pytest.raises(KdbenchError, match=f"'{builder.name}'.*width") as e:
        make(builder, width=3)
    assert "\n" not in str(e.value)


def test_impossible_shapes():
    with pytest.raises(ValueError, match="five groups"):
        VggCifar((1, 1, 1))
    with pytest.raises(ValueError, match="four stages"):
        BottleneckResNetCifar((1, 0, 1, 1))
    with pytest.raises(ValueError, match="without channels"):
        MobileNetV2Cifar(0.01)


def test_channels_last_gives_the_same_logits():
    for builder in (shufflenetv1, shufflenetv2, mobilenetv2_half):
        net, x = make(builder).eval(), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            plain = net(x)
            last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)
