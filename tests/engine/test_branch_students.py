"""Students on a shared trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdbench.engine.branch import BranchHandle, branch
from kdbench.engine.handle import NetHandle
from kdbench.protocol.types import NotApplicable
from kdbench_architectures.resnet_cifar import resnet20
from kdbench_architectures.timm_provider import build

WHERE: dict[str, Any] = {"image_size": 32, "in_chans": 3, "device": torch.device("cpu")}
#: Modules that the branch owns: the last stage and what follows.
SPLIT = {
    "timm:resnet10t": ("layer4.", "fc."),
    "timm:test_efficientnet": ("blocks.4.", "conv_head.", "bn2.", "classifier."),
    "resnet20": ("layer3.", "fc."),
}


def net_of(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "resnet20":
        net: nn.Module = resnet20(num_classes=5, in_chans=3, image_size=32)
    else:
        net = build(model=name.removeprefix("timm:"), num_classes=5, in_chans=3, image_size=32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


def pair(name: str) -> tuple[NetHandle, BranchHandle]:
    student = NetHandle("student", net_of(name, 0), **WHERE)
    return student, branch("peer", net_of(name, 1), student, **WHERE)


@pytest.mark.parametrize("name", SPLIT)
def test_from_trunk_equals_the_whole_network(name: str) -> None:
    student, peer = pair(name)
    for handle in (student, peer):
        handle.net.eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        feat = student(x, [peer.trunk_tap]).feats[peer.trunk_tap]
        assert torch.equal(peer.from_trunk(feat).logits, peer.net(x))
        assert not torch.allclose(peer.net(x), student.net(x), atol=1e-3)


@pytest.mark.parametrize("name", SPLIT)
def test_train_mode_trains_the_branch_and_not_the_trunk_twice(name: str) -> None:
    student, peer = pair(name)
    student.net.train()
    peer.net.train()
    x = torch.randn(4, 3, 32, 32)
    counters = {k: v for k, v in peer.net.named_buffers() if k.endswith("num_batches_tracked")}
    assert counters
    before = {k: int(v) for k, v in counters.items()}
    feat = student(x, [peer.trunk_tap]).feats[peer.trunk_tap]
    peer.from_trunk(feat)
    after = {k: int(v) for k, v in peer.net.named_buffers() if k in counters}
    assert {after[k] - before[k] for k in before} == {1}


@pytest.mark.parametrize("name", SPLIT)
def test_trunk_parameters_are_shared_and_the_rest_is_not(name: str) -> None:
    student, peer = pair(name)
    mine, theirs = dict(peer.net.named_parameters()), dict(student.net.named_parameters())
    assert list(mine) == list(theirs)
    own = {k for k, p in mine.items() if p is not theirs[k]}
    assert own == {k for k in mine if k.startswith(SPLIT[name])}
    whole = sum(p.numel() for p in theirs.values())
    both = {id(p): p.numel() for net in (student.net, peer.net) for p in net.parameters()}
    assert sum(both.values()) == whole + sum(mine[k].numel() for k in own)


@pytest.mark.parametrize("name", SPLIT)
def test_gradient_goes_through_the_trunk_once(name: str) -> None:
    """The gradient of a sum of both losses is the sum of the gradients of two whole networks."""
    student, peer = pair(name)
    for handle in (student, peer):
        handle.net.eval()
    x = torch.randn(3, 3, 32, 32)
    calls: list[int] = []
    first = next(m for m in student.net.modules() if isinstance(m, nn.Conv2d))
    hook = first.register_forward_hook(lambda *a: calls.append(1))
    out = student(x, [peer.trunk_tap])
    (out.logits.square().sum() + peer.from_trunk(out.feats[peer.trunk_tap]).logits.square().sum()).backward()
    hook.remove()
    assert calls == [1]
    parameters = {id(p): p for net in (student.net, peer.net) for p in net.parameters()}.values()
    got = [p.grad.clone() for p in parameters]  # type: ignore[union-attr]
    for p in parameters:
        p.grad = None
    (student.net(x).square().sum() + peer.net(x).square().sum()).backward()
    for grad, p in zip(got, parameters, strict=True):
        scale = float(p.grad.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-4 * scale)
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0


def test_modes_are_left_alone() -> None:
    student = NetHandle("student", net_of("resnet20", 0).train(), **WHERE)
    peer = branch("peer", net_of("resnet20", 1).train(), student, **WHERE)
    assert all(m.training for m in student.net.modules())
    assert all(m.training for m in peer.net.modules())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_split_is_right_or_refused(name: str) -> None:
    """ViT: later blocks need what earlier ones do; ConvNeXt runs stage after stage."""
    student = NetHandle("student", net_of(f"timm:{name}", 0).eval(), **WHERE)
    own = net_of(f"timm:{name}", 1).eval()
    if name == "test_vit":
        with pytest.raises(NotApplicable, match="cannot be split before its last stage") as e:
            branch("peer", own, student, **WHERE)
        assert "\n" not in str(e.value)
        return
    peer = branch("peer", own, student, **WHERE)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        feat = student(x, [peer.trunk_tap]).feats[peer.trunk_tap]
        assert torch.equal(peer.from_trunk(feat).logits, peer.net(x))


def test_one_stage_cannot_be_split() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    student = NetHandle("student", net, **WHERE)
    with pytest.raises(NotApplicable, match="fewer than two stages"):
        branch("peer", net, student, **WHERE)


def test_new_student_of_a_run_has_its_own_seeded_weights(start: Any) -> None:
    from kdbench.api import Method, Needs

    class Peers(Method):
        needs = Needs(teachers=0)

        def setup(self, run: Any) -> None:
            self.peers = [run.new_student(n) for n in ("a", "b")] + [run.new_student("c", seed=1)]

    weights = []
    for seed in (0, 0, 1):
        run, _, _ = start(Peers, teachers=0, seed=seed)
        weights.append([run.students[n].net.fc.weight.detach() for n in ("a", "b", "c")])
    assert all(torch.equal(x, y) for x, y in zip(weights[0], weights[1], strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(weights[0], weights[2], strict=True))
    assert len({tuple(w.flatten().tolist()) for w in weights[0]}) == 3


def test_two_students_of_one_name_are_refused(start: Any) -> None:
    from kdbench.api import Method

    class Twice(Method):
        def setup(self, run: Any) -> None:
            run.new_student("a")
            run.new_student("a")

    with pytest.raises(ValueError, match="a student named 'a' exists already"):
        start(Twice)
