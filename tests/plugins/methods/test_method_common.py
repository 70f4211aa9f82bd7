"""Shared helpers: divergence, pooling to one size, connectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun, net, pair_of_logits

from kdbench.api import NotApplicable, Tap
from kdbench_methods._common import (
    connector,
    full,
    kl_divergence,
    match_size,
    require_categorical,
    want_pairs,
)


@pytest.mark.parametrize(("t", "golden"), [(1, 0.2450895), (2, 0.3160634), (4, 0.3613417)])
def test_kl_golden(t, golden):
    z = pair_of_logits()
    assert float(t**2 * kl_divergence(z.s, z.t, t)) == pytest.approx(golden, abs=1e-6)


def test_kl_against_numpy():
    rng = np.random.default_rng(0)
    zs, zt = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    ps, pt = (np.exp(z / 3) / np.exp(z / 3).sum(1, keepdims=True) for z in (zs, zt))
    expected = (pt * np.log(pt / ps)).sum() / 5
    assert float(kl_divergence(torch.tensor(zs), torch.tensor(zt), 3.0)) == pytest.approx(expected, abs=1e-12)


def test_kl_is_zero_for_equal_and_finite_for_extreme_logits():
    z = torch.randn(4, 5)
    assert float(kl_divergence(z, z, 2.0)) == pytest.approx(0, abs=1e-7)
    big = torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16)
    assert torch.isfinite(kl_divergence(big, -big))


def test_full_keeps_float64():
    assert full(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert full(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize(("a", "b"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 7), (4, 4)), ((8, 2), (4, 4))])
def test_match_size_pools_the_larger(a, b):
    x, y = torch.randn(2, 3, *a), torch.randn(2, 5, *b)
    p, q = match_size(x, y)
    size = (min(a[0], b[0]), min(a[1], b[1]))
    torch.testing.assert_close(p, F.adaptive_avg_pool2d(x, size))
    torch.testing.assert_close(q, F.adaptive_avg_pool2d(y, size))


def test_match_size_leaves_equal_maps_alone():
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    assert match_size(x, y)[0] is x
    assert match_size(x, y)[1] is y


def test_connector_initialisation():
    torch.manual_seed(0)
    conv, bn = connector(200, 128)
    assert conv.bias is None
    assert bn.num_features == 128
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.02)


def test_want_pairs_asks_from_the_last_stage_backwards():
    run = FakeRun(net(0, widths=(4, 6), strides=(2, 2)), net(1))
    assert want_pairs(run, "pre") == [(Tap(1, "pre"), Tap(2, "pre")), (Tap(2, "pre"), Tap(3, "pre"))]
    assert run.teacher.wanted == [Tap(2, "pre"), Tap(3, "pre")]


def test_networks_without_stages_are_not_applicable():
    run = FakeRun(net(0), net(1))
    run.student.stages = ()
    with pytest.raises(NotApplicable, match="student has no stages"):
        want_pairs(run, "post")


def test_other_kinds_of_output_are_not_applicable():
    run = FakeRun(net(0))
    run.task.kind = "continuous"
    with pytest.raises(NotApplicable, match="continuous"):
        require_categorical(run, "x")
