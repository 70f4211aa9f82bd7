"""A teacher's forward without gradient: the copy that runs, when it may not, and where it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdbench.engine.frozen import REMADE
from kdbench.hooks import Needs
from kdbench.protocol.types import NotAsked, Tap

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def handle(run):
    net = run.teacher.net
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2.0)
    return run.teacher


def frozen(handle, *taps, head=True):
    with torch.no_grad():
        sites = handle.sites(taps)
        return handle.assemble(handle.capture(X, sites.values(), frozen=True, head=head), sites)


TAPS = (Tap(0), Tap(1), Tap(1, when="pre"), Tap("bn2"), Tap("fc"))


def test_logits_features_and_pooled_are_those_of_the_network(handle):
    with torch.no_grad():
        expected = handle(X, TAPS)
    out = frozen(handle, *TAPS)
    assert handle.frozen.net() is not None
    torch.testing.assert_close(out.logits, expected.logits)
    torch.testing.assert_close(out.pooled, expected.pooled)
    for tap in TAPS:
        torch.testing.assert_close(out.feats[tap], expected.feats[tap])


def test_before_batchnorm_the_network_itself_is_read(handle):
    tap = Tap("conv2")
    with torch.no_grad():
        expected = handle(X, [tap])
    out = frozen(handle, tap)
    assert torch.equal(out.feats[tap], expected.feats[tap])
    assert torch.equal(out.logits, expected.logits)
    assert handle.frozen.net(handle.sites([tap]).values()) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.conv1.weight.mul_(2.0),
        lambda net: net.bn1.running_mean.add_(1.0),
        lambda net: setattr(net.fc, "weight", nn.Parameter(net.fc.weight.detach() * 2)),
        lambda net: net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}),
    ],
)
def test_a_teacher_that_is_written_into_is_seen_anew(handle, change):
    old = frozen(handle).logits
    with torch.no_grad():
        change(handle.net)
        expected = handle(X).logits
    assert not torch.allclose(old, expected)
    torch.testing.assert_close(frozen(handle).logits, expected)


def test_a_teacher_that_is_written_into_all_the_time_is_run_itself(handle):
    for _ in range(REMADE + 2):
        with torch.no_grad():
            handle.net.fc.bias.add_(1.0)
        frozen(handle)
    assert handle.frozen.net() is None
    with torch.no_grad():
        assert torch.equal(frozen(handle).logits, handle(X).logits)


def test_what_torch_does_not_count_is_seen_in_the_next_epoch(handle):
    frozen(handle)
    handle.net.fc.bias.data.add_(1.0)
    handle.frozen.forget()
    with torch.no_grad():
        torch.testing.assert_close(frozen(handle).logits, handle(X).logits)


@pytest.mark.parametrize("how", ["hook", "pre-hook", "train"])
def test_hooks_and_modes_of_the_method_count(handle, how):
    frozen(handle)
    seen = []
    if how == "hook":
        handle.net.bn1.register_forward_hook(lambda m, args, out: seen.append(1))
    elif how == "pre-hook":
        handle.net.bn1.register_forward_pre_hook(lambda m, args: seen.append(1))
    else:
        handle.net.bn1.train()
    assert handle.frozen.net() is None
    frozen(handle)
    assert len(seen) == (how != "train")


def test_autocast_gives_what_it_gives_on_weights_in_float32(handle):
    handle.net.bn1.eps = 0.1
    plain = frozen(handle).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = frozen(handle).logits
        copy = handle.frozen.net()
    assert low.dtype == torch.bfloat16
    assert copy.conv1.weight.dtype == torch.bfloat16
    assert handle.net.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(low.float(), plain, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        same = handle.frozen._copy(None)(X)
    assert torch.equal(low, same)


def test_a_network_that_cannot_be_copied_is_run_itself(handle):
    handle.net.__deepcopy__ = lambda memo: 1 / 0
    with torch.no_grad():
        assert torch.equal(frozen(handle).logits, handle(X).logits)
    assert handle.frozen.net() is None


def test_without_head_nothing_runs_after_the_last_tap(handle):
    ran = []
    handle.net.fc.register_forward_hook(lambda m, args, out: ran.append("fc"))
    handle.net.conv2.register_forward_hook(lambda m, args, out: ran.append("conv2"))
    with torch.no_grad():
        expected = handle(X, [Tap(0)]).feats[Tap(0)]
    ran.clear()
    out = frozen(handle, Tap(0), head=False)
    assert ran == []
    assert torch.equal(out.feats[Tap(0)], expected)
    assert out.pooled is None
    for use in (lambda z: z + 1, lambda z: z.mean(), lambda z: torch.softmax(z, 1), lambda z: z[0]):
        with pytest.raises(NotAsked, match="reads='taps'"):
            use(out.logits)
    assert frozen(handle, head=False).logits.shape == (4, 3)  # no tap to stop at


def test_a_run_forwards_as_the_method_needs(run):
    teacher = run.teacher
    teacher.want(Tap(0))
    run.needs = Needs(reads="taps")
    calls = []
    teacher.net.fc.register_forward_hook(lambda m, args, out: calls.append(1))
    assert run.teach(teacher, X).pooled is None
    assert not calls
    assert run.teach(teacher, X, head=True).logits.shape == (4, 3)
    assert len(calls) == 1
    assert run.teach(teacher, X, bn="batch").pooled is None
    run.needs = replace(run.needs, reads="all")
    assert run.teach(teacher, X).pooled is not None
    assert run.teach(teacher, X.clone().requires_grad_(), grad=True).logits.requires_grad
