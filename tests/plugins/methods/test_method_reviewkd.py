"""reviewkd: fusions of the student's levels and the hierarchical context loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import FakeRun, copy_state, net, start, train_phase
from pooled_run import PooledRun

from kdbench_methods.reviewkd import Fusion, ReviewKD, hierarchical_loss


def maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class TestReviewKD:
    def test_golden(self):
        f = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
        assert float(hierarchical_loss(f, torch.ones_like(f))) == pytest.approx(59.25, abs=1e-6)

    @pytest.mark.parametrize("side", [1, 2, 4, 8])
    def test_against_numpy(self, side):
        s, t = maps(2, 3, side, side), maps(2, 3, side, side, seed=1)
        value, total, weight = ((s - t) ** 2).mean(), 1.0, 1.0
        for small in (4, 2, 1):
            if small >= side:
                continue
            k = side // small
            d = (s - t).reshape(2, 3, small, k, small, k).mean((3, 5))
            weight /= 2
            value, total = value + weight * (d**2).mean(), total + weight
        got = hierarchical_loss(torch.tensor(s), torch.tensor(t))
        assert float(got) == pytest.approx(value / total, rel=1e-12)

    def test_odd_sizes(self):
        s, t = torch.tensor(maps(2, 3, 7, 5)), torch.tensor(maps(2, 3, 7, 5, seed=1))
        assert torch.isfinite(hierarchical_loss(s, t))

    def test_fusion_by_hand(self):
        torch.manual_seed(0)
        fusion = Fusion(3, 4, 5, (2, 2), fuse=True).eval()
        x, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 1, 1)
        out, kept = fusion(x, deeper)
        assert (out.shape, kept.shape) == ((2, 5, 2, 2), (2, 4, 2, 2))
        own, wide = fusion.reduce(x), deeper.expand(2, 4, 4, 4)
        w = fusion.attention(torch.cat([own, wide], 1))
        mixed = own * w[:, :1] + wide * w[:, 1:]
        torch.testing.assert_close(kept, mixed[:, :, ::2, ::2])
        torch.testing.assert_close(out, fusion.expand(kept))

    @pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2), (4, 2, 2)])
    @pytest.mark.parametrize("student_pre", [False, True])
    def test_sizes_come_from_the_taps(self, strides, student_pre):
        run = PooledRun(net(0), net(1, widths=(5, 7, 9), strides=strides))
        method = ReviewKD(ReviewKD.Params(student_pre=student_pre))
        (phase,) = start(method, run)
        assert len(method.fusions) == 4  # three stages and the pooled feature
        assert {t.when for t in run.teacher.wanted} == {"pre"}
        assert {t.when for t in run.student.wanted} == {"pre" if student_pre else "post"}
        before = copy_state(method)
        train_phase(method, phase, run)
        moved = [k for k, v in method.state_dict().items() if not torch.equal(v, before[k])]
        assert {k.split(".")[1] for k in moved} == {"0", "1", "2", "3"}

    def test_without_pooled_features(self):
        run = FakeRun(net(0), net(1))
        run.teacher.num_features = 0
        method = ReviewKD(ReviewKD.Params())
        (phase,) = start(method, run)
        assert len(method.fusions) == 3
        assert method.fusions[-1].attention is None
        assert math.isfinite(train_phase(method, phase, run)[0]["review"])

    @pytest.mark.parametrize(
        ("warmup", "epoch", "epochs", "expected"),
        [(None, 0, 240, 0.05), (None, 0, 3, 1.0), (4, 1, 9, 0.5), (4, 8, 9, 1)],
    )
    def test_ramp(self, warmup, epoch, epochs, expected):
        assert ReviewKD(ReviewKD.Params(warmup=warmup)).ramp(epoch, epochs) == pytest.approx(expected)

    def test_presets_are_those_of_the_official_scripts(self):
        weights = {name: ReviewKD.Params(**preset).weight for name, preset in ReviewKD.presets.items()}
        assert weights["resnet56-resnet20"] == 0.6
        assert weights["resnet110-resnet32"] == 1.0
        assert weights["resnet32x4-shufflenetv2"] == 8.0
        assert weights["wrn_40_2-wrn_16_2"] == weights["cifar100"] == 5.0
        mobile = ReviewKD.Params(**ReviewKD.presets["imagenet-resnet50-mobilenetv1"])
        assert (mobile.weight, mobile.warmup, mobile.student_pre, mobile.mid_channels) == (8.0, 1, True, 256)
