"""Frozen teachers: batch statistics without drift, and which gradients flow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.engine.batchnorm import batch_statistics
from kdbench_architectures.timm_provider import build


def trained() -> nn.Module:
    """A network whose running statistics are far from those of a batch."""
    torch.manual_seed(0)
    net = build(model="test_resnet", num_classes=5, in_chans=3, image_size=32, drop_rate=0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 1.0, 3.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.num_batches_tracked += 7
    return net.eval()


def by_hand(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Normalise every BatchNorm input by its own mean and biased variance."""

    def replace(module: nn.BatchNorm2d, args: Any, out: Any) -> torch.Tensor:
        (value,) = args
        mean = value.mean((0, 2, 3), keepdim=True)
        var = value.var((0, 2, 3), unbiased=False, keepdim=True)
        scaled = (value - mean) / torch.sqrt(var + module.eps)
        return scaled * module.weight[:, None, None] + module.bias[:, None, None]

    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(replace)  # type: ignore[arg-type]
    with torch.no_grad():
        return twin(x)


def test_output_is_that_of_batch_statistics_without_dropout() -> None:
    net, x = trained(), torch.randn(4, 3, 32, 32)
    with torch.no_grad(), batch_statistics(net):
        first, second = net(x), net(x)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, by_hand(net, x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(first, net(x), atol=1e-2)


def test_buffers_and_flags_are_as_before() -> None:
    net, x = trained(), torch.randn(4, 3, 32, 32)
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad(), batch_statistics(net):
        net(x)
    after = net.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in after.items())
    assert any("num_batches_tracked" in k for k in state)
    assert not any(m.training for m in net.modules())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_flags_come_back_after_an_error() -> None:
    net = trained()
    with pytest.raises(RuntimeError), batch_statistics(net):
        net(torch.zeros(1))
    assert not any(m.training for m in net.modules())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_teach_gives_no_gradient(run: Any) -> None:
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    out = run.teach(run.teacher, x)
    assert not out.logits.requires_grad
    assert not any(p.requires_grad for p in run.teacher.net.parameters())


@pytest.mark.parametrize("bn", ["eval", "batch"])
def test_teach_with_grad_reaches_the_input_only(run: Any, bn: str) -> None:
    before = copy.deepcopy(run.teacher.net.state_dict())
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    run.teach(run.teacher, x, grad=True, bn=bn).logits[:, 0].pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in run.teacher.net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in run.teacher.net.state_dict().items())


def test_teach_takes_the_statistics_that_are_asked_for(run: Any) -> None:
    x = torch.randn(4, 3, 8, 8)
    plain, batch = (run.teach(run.teacher, x, bn=bn).logits for bn in ("eval", "batch"))
    assert not torch.equal(plain, batch)
    assert torch.equal(run.teach(run.teacher, x).logits, plain)
    run.teacher_bn = "batch"
    assert torch.equal(run.teach(run.teacher, x).logits, batch)


def test_a_cell_without_teacher_says_so(start: Any) -> None:
    from kdbench.api import Method, Needs

    class Alone(Method):
        needs = Needs(teachers=0)

    run, _, _ = start(Alone, teachers=0)
    with pytest.raises(RuntimeError, match="this cell has no teacher"):
        run.teacher  # noqa: B018 - the property is what is tested
