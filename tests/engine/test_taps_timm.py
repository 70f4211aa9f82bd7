"""Taps on architectures of many families: the right tensor, unharmed networks, readable refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdbench.engine.handle import NetHandle
from kdbench.protocol.types import NotApplicable, Tap
from kdbench_architectures.resnet_cifar import resnet20, resnet56
from kdbench_architectures.timm_provider import build
from kdbench_architectures.wrn_cifar import wrn_16_2

#: Smallest convenient input of each family; vgg's head makes 128 M parameters at full width.
ARCHITECTURES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "resnet26d": (32, {}),
    "resnext50_32x4d": (32, {}),
    "seresnet18": (64, {}),
    "legacy_seresnet18": (32, {}),
    "skresnet18": (32, {}),
    "resnetv2_50": (32, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "vgg11": (32, {"mlp_ratio": 0.02}),
    "vgg11_bn": (32, {"mlp_ratio": 0.02}),
    "densenet121": (32, {}),
    "mobilenetv1_100": (32, {}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small_050": (32, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_lite0": (32, {}),
    "mnasnet_small": (32, {}),
    "semnasnet_075": (32, {}),
    "tinynet_e": (32, {}),
    "ghostnet_050": (32, {}),
    "lcnet_035": (32, {}),
    "hardcorenas_a": (32, {}),
    "rexnet_100": (32, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (32, {}),
    "inception_next_atto": (32, {}),
    "swin_tiny_patch4_window7_224": (32, {"embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "swinv2_tiny_window8_256": (32, {"embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "vit_tiny_patch16_224": (64, {}),
    "deit_tiny_patch16_224": (32, {}),
    "deit_tiny_distilled_patch16_224": (32, {}),
    "eva02_tiny_patch14_224": (28, {}),
    "cait_xxs24_224": (32, {}),
    "xcit_nano_12_p16_224": (32, {}),
    "mixer_s32_224": (64, {}),
    "resmlp_12_224": (32, {}),
    "repvgg_a0": (32, {}),
    "mobileone_s0": (32, {}),
    "cspresnet50": (32, {}),
    "cspdarknet53": (32, {}),
    "darknet53": (32, {}),
    "dla46_c": (32, {}),
    "res2net50_14w_8s": (32, {}),
    "gernet_s": (32, {}),
    "xception41": (32, {}),
    "inception_v3": (96, {}),
    "hgnetv2_b0": (32, {}),
    "levit_128s": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientvit_b0": (32, {}),
    "poolformer_s12": (32, {}),
    "pvt_v2_b0": (32, {}),
    "visformer_tiny": (32, {}),
    "tiny_vit_5m_224": (32, {}),
    "edgenext_xx_small": (32, {}),
    "mobilevit_xxs": (32, {}),
    "mambaout_femto": (32, {}),
    "fasternet_t0": (32, {}),
    "starnet_s1": (32, {}),
    "repvit_m0_9": (32, {}),
    **{name: (32, {}) for name in timm.list_models("test_*")},
}
NO_TENSOR = {
    "hrnet_w18_small": "stage1",
    "selecsls42b": "does not return a tensor",
    "pit_ti_224": "does not return a tensor",
}


def make(name: str, size: int, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    net = build(model=name, num_classes=5, in_chans=3, image_size=size, **args)
    for module in net.modules():  # zero-initialised gains would hide a wrong tap behind constant features
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
            if isinstance(getattr(module, "bias", None), Tensor):
                nn.init.normal_(module.bias)  # type: ignore[arg-type]
    return net


def handle_of(net: nn.Module, size: int) -> NetHandle:
    return NetHandle("student", net, image_size=size, in_chans=3, device=torch.device("cpu"))


def capture(module: nn.Module, into: list[Tensor]) -> Any:
    return module.register_forward_hook(lambda m, a, out: into.append(out.detach().clone()))


def folded(net: nn.Module, value: Tensor, channels: int) -> Tensor:
    """Bring a stage's raw output to NCHW without the code under test."""
    if value.dim() == 3:
        side = int((value.shape[1]) ** 0.5)
        if side * side != value.shape[1]:
            value = value[:, net.num_prefix_tokens :]  # type: ignore[index, misc]
            side = int(value.shape[1] ** 0.5)
        return value.transpose(1, 2).reshape(len(value), value.shape[2], side, side)
    nhwc = value.shape[3] == channels and (
        value.shape[1] != channels or getattr(net, "output_fmt", "") == "NHWC"
    )
    return value.permute(0, 3, 1, 2) if nhwc else value


def hooks_of(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in net.modules() for kind in kinds)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_taps_read_what_the_network_computes(name: str) -> None:
    size, args = ARCHITECTURES[name]
    net = make(name, size, **args).eval()
    handle = handle_of(net, size)
    first = next(net.children())
    first.train()  # a mixed state must come back as it was
    modes = [m.training for m in net.modules()]
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()

    assert handle.stages
    handle.want(*(Tap(stage, when) for stage in handle.stages for when in ("post", "pre")))

    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert hooks_of(net) == 0

    info = list(net.feature_info.info) if hasattr(net.feature_info, "info") else list(net.feature_info)
    net.eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    ends = {s: str(info[s]["module"]) for s in handle.stages}
    with torch.no_grad():
        plain = net(x.clone())
        stage_outs: dict[int, list[Tensor]] = {s: [] for s in ends}
        removable = [capture(net.get_submodule(path), stage_outs[s]) for s, path in ends.items()]
        try:
            net(x.clone())
        finally:
            for hook in removable:
                hook.remove()
        out = handle(x.clone())
    assert torch.equal(out.logits, plain)
    for stage in handle.stages:
        post, channels = out.feats[Tap(stage)], info[stage]["num_chs"]
        assert post.shape[:2] == (2, channels)
        assert post.dim() == 4
        assert tuple(post.shape) == handle.shape(Tap(stage))
        assert torch.equal(post, folded(net, stage_outs[stage][-1], channels))
    check_pre_values(net, handle, x)
    check_gradients(net, handle, x)
    assert hooks_of(net) == 0


def check_pre_values(net: nn.Module, handle: NetHandle, x: Tensor) -> None:
    """Where an activation follows, it turns the tapped value into what it returned in the network."""
    for stage in handle.stages:
        tap = Tap(stage, "pre", "raw")
        site = handle._site(tap)
        with torch.no_grad():
            if site.kind not in ("stage-end", "next-norm"):
                both = handle(x.clone(), [tap, Tap(stage, "post", "raw")]).feats
                assert torch.equal(both[tap], both[Tap(stage, "post", "raw")])
                assert not handle.has_activation(tap)
                continue
            activation = net.get_submodule(site.module)
            seen: list[Tensor] = []
            hook = capture(activation, seen)
            try:
                pre = handle(x.clone(), [tap]).feats[tap]
            finally:
                hook.remove()
            assert handle.has_activation(tap)
            assert torch.equal(copy.deepcopy(activation)(pre.clone()), seen[site.nth])
        if getattr(activation, "inplace", False) and isinstance(activation, nn.ReLU):
            # legacy SE blocks rectify before squeeze-and-excitation: their sum has no negative values
            sum_of_rectified = type(net).__name__ == "SENet" and stage > 0
            assert bool((pre < 0).any()) != sum_of_rectified


def check_gradients(net: nn.Module, handle: NetHandle, x: Tensor) -> None:
    for training in (False, True):
        net.train(training)
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        out = handle(leaf.clone())
        for tap, feat in out.feats.items():
            if training and feat.shape[2:] == (1, 1):
                # BatchNorm over two values returns their signs: nothing is left of the gradient but rounding
                continue
            weights = torch.randn(feat.shape, generator=torch.Generator().manual_seed(4))
            (grad,) = torch.autograd.grad((feat * weights).sum(), leaf, retain_graph=True)
            assert torch.isfinite(grad).all(), tap
            assert grad.abs().sum() > 0, tap
        with torch.no_grad():
            torch.manual_seed(3)
            again = net(x.clone())
        expected = out.logits.detach()
        torch.testing.assert_close(again if isinstance(again, Tensor) else again[0], expected)


@pytest.mark.parametrize("name", NO_TENSOR)
def test_feature_info_that_does_not_fit_is_not_applicable(name: str) -> None:
    handle = handle_of(make(name, 32).eval(), 32)
    with pytest.raises(NotApplicable, match=NO_TENSOR[name]) as e:
        handle.want(Tap(handle.stages[0]))
    message = str(e.value)
    assert message.startswith("student: tap ")
    assert "\n" not in message


def test_an_image_that_is_too_small_is_not_applicable() -> None:
    handle = handle_of(make("inception_v3", 32).eval(), 32)
    with pytest.raises(NotApplicable, match="student cannot take 32x32 images") as e:
        handle.shape(Tap(-1))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("at", [9, -9])
def test_stage_out_of_range(at: int) -> None:
    handle = handle_of(make("test_resnet", 32), 32)
    with pytest.raises(NotApplicable, match=rf"stage {at} does not exist: feature_info has 5 entries"):
        handle.want(Tap(at))


def test_unknown_path_suggests_the_nearest() -> None:
    handle = handle_of(make("test_resnet", 32), 32)
    with pytest.raises(
        NotApplicable, match=r"'layer1.0.conv9' is not a module .*did you mean 'layer1.0.conv"
    ):
        handle.want(Tap("layer1.0.conv9"))


def test_network_without_feature_info() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    handle = handle_of(net, 8)
    assert handle.stages == ()
    with pytest.raises(NotApplicable, match="no feature_info"):
        handle.want(Tap(0))
    handle.want(Tap("0"))
    assert handle.shape(Tap("0")) == (2, 4, 6, 6)


def test_token_formats_and_prefix_of_a_distilled_vit() -> None:
    net = make("deit_tiny_distilled_patch16_224", 32).eval()
    handle = handle_of(net, 32)
    raw, tokens, maps = (Tap(-1, fmt=fmt) for fmt in ("raw", "tokens", "nchw"))  # type: ignore[arg-type]
    handle.want(raw, tokens, maps)
    feats = handle(torch.randn(2, 3, 32, 32)).feats
    assert feats[raw].shape == (2, 6, 192)
    assert torch.equal(feats[tokens], feats[raw][:, 2:])
    assert torch.equal(feats[maps].flatten(2).transpose(1, 2), feats[tokens])


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_class_token_that_comes_after_the_blocks_costs_no_patch(name: str) -> None:
    net = make(name, 32).eval()
    handle = handle_of(net, 32)
    tap = Tap(3, fmt="tokens")
    handle.want(tap)
    assert handle(torch.randn(2, 3, 32, 32)).feats[tap].shape[1] == 4


def test_nhwc_network_as_tokens() -> None:
    net = make("swin_tiny_patch4_window7_224", 32, embed_dim=48, depths=(2, 2, 2, 2)).eval()
    handle = handle_of(net, 32)
    raw, tokens = Tap(0, fmt="raw"), Tap(0, fmt="tokens")
    handle.want(raw, tokens)
    feats = handle(torch.randn(2, 3, 32, 32)).feats
    assert feats[raw].shape == (2, 8, 8, 48)
    assert torch.equal(feats[tokens], feats[raw].reshape(2, 64, 48))


def cifar(factory: Any) -> NetHandle:
    torch.manual_seed(0)
    return handle_of(factory(num_classes=5, in_chans=3, image_size=32).eval(), 32)


@pytest.mark.parametrize("factory", [resnet20, resnet56])
def test_cifar_resnet_takes_the_batchnorm_of_the_main_branch(factory: Any) -> None:
    handle = cifar(factory)
    assert handle.stages == (1, 2, 3)
    for stage in handle.stages:
        blocks = handle.net.get_submodule(f"layer{stage}")
        assert handle.bn_before(Tap(stage, "pre")) is blocks[-1].bn2  # type: ignore[index]
    assert handle.bn_before(Tap(0, "pre")) is handle.net.bn1


def test_downsample_batchnorm_is_never_the_main_one() -> None:
    """In the first block of a stage the shortcut's BatchNorm runs last and has as many channels."""
    handle = handle_of(make("test_resnet", 32).eval(), 32)
    assert handle.net.layer2[0].downsample is not None  # type: ignore[index]
    assert handle.bn_before(Tap(2, "pre")) is handle.net.layer2[0].bn2  # type: ignore[index]


def test_wide_resnet_reads_the_next_norm() -> None:
    handle = cifar(wrn_16_2)
    net = handle.net
    assert handle.bn_before(Tap(1, "pre")) is net.layer2[0].bn1  # type: ignore[index]
    assert handle.bn_before(Tap(2, "pre")) is net.layer3[0].bn1  # type: ignore[index]
    assert handle.bn_before(Tap(3, "pre")) is net.bn1
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        feats = handle(x, [Tap(1), Tap(1, "pre")]).feats
        assert torch.equal(net.layer2[0].bn1(feats[Tap(1)]), feats[Tap(1, "pre")])  # type: ignore[index]
    assert (feats[Tap(1, "pre")] < 0).any()


def test_pooled_is_the_input_of_the_classifier() -> None:
    handle = cifar(resnet20)
    out = handle(torch.randn(3, 3, 32, 32))
    assert out.pooled is not None
    assert out.pooled.shape == (3, handle.num_features) == (3, 64)
    torch.testing.assert_close(handle.net.fc(out.pooled), out.logits)


def test_want_is_refused_after_setup() -> None:
    handle = cifar(resnet20)
    handle.locked = True
    with pytest.raises(RuntimeError, match="belongs in setup"):
        handle.want(Tap(1))


def test_aux_hooks_end_with_the_run() -> None:
    handle = cifar(resnet20)
    calls: list[int] = []
    handle.aux_hook(handle.net.conv1, lambda *a: calls.append(1))
    handle.aux_hook(handle.net.conv1, lambda *a: calls.append(2), pre=True)
    handle(torch.randn(2, 3, 32, 32))
    assert calls == [2, 1]
    handle.close()
    assert hooks_of(handle.net) == 0


def test_blocks_and_batchnorms_are_listed_in_order() -> None:
    handle = cifar(resnet20)
    assert [p for p, _ in handle.blocks()] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
    assert [p for p, _ in handle.batchnorms()][:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
