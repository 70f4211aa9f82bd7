"""fitnet, ab, ofd: losses on stage features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import FakeRun, batch, copy_state, net, start, train_phase
from scipy import stats
from torch import nn

from kdbench.api import NotApplicable, Tap
from kdbench_methods.ab import AB, boundary_loss, boundary_mismatch, stagewise_boundary_loss
from kdbench_methods.fitnet import FitNet, hint_loss, never_negative
from kdbench_methods.ofd import OFD, NegativeMean, margins_from_bn, overhaul_loss, partial_l2


def maps(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


class TestFitNet:
    def test_hint_is_the_mean_square(self):
        f = torch.tensor([[1.0, 2], [0, 1], [1, 1]])
        g = torch.tensor([[1.0, 1], [1, 1], [0, 1]])
        assert float(hint_loss(f, g)) == pytest.approx(0.5, abs=1e-7)
        a, b = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
        assert float(hint_loss(torch.tensor(a), torch.tensor(b))) == pytest.approx(((a - b) ** 2).mean())

    def test_half_precision_does_not_overflow(self):
        a = torch.full((1, 1, 2, 2), 6e4, dtype=torch.float16)
        assert float(hint_loss(a, -a)) == pytest.approx((2 * float(a[0, 0, 0, 0])) ** 2)

    def test_only_the_chosen_stage_is_read(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        start(FitNet(FitNet.Params()), run)
        assert (run.student.wanted, run.teacher.wanted) == ([Tap(2)], [Tap(2)])

    def test_joint_weights(self):
        run = FakeRun(net(0), net(1))
        method = FitNet(FitNet.Params(hint_weight=100.0))
        start(method, run)
        b = batch()
        S, T = run.student(b.x), run.teach(run.teacher, b.x)
        parts = method.loss(S, [T], b, run)
        assert set(parts) == {"task", "hint"}
        expected = (method.regressor(S.feats[Tap(2)]) - T.feats[Tap(2)]).square().mean()
        assert float(parts["hint"].detach()) == pytest.approx(100 * float(expected.detach()), rel=1e-4)

    def test_two_phases(self):
        run = FakeRun(net(0), net(1))
        method = FitNet(FitNet.Params(**FitNet.presets["two-phase"]))
        hint, train = start(method, run)
        assert (hint.name, hint.evaluate, train.name) == ("hint", False, "train")
        assert hint.budget + train.budget == pytest.approx(1)
        head, last = copy_state(run.student.net.head), copy_state(run.student.net.stages[2][0])
        assert set(train_phase(method, hint, run)[0]) == {"hint"}
        # what lies above the hint gets no gradient from it
        torch.testing.assert_close(copy_state(run.student.net.head), head, rtol=0, atol=0)
        torch.testing.assert_close(copy_state(run.student.net.stages[2][0]), last, rtol=0, atol=0)
        regressor = copy_state(method.regressor)
        assert set(train_phase(method, train, run)[0]) == {"task", "kd"}
        torch.testing.assert_close(copy_state(method.regressor), regressor, rtol=0, atol=0)
        assert not torch.equal(run.student.net.head.weight, head["weight"])

    @pytest.mark.parametrize(("stages", "middle"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
    def test_the_hint_is_the_middle_stage(self, stages, middle):
        shape = {"widths": (4,) * stages, "strides": (2,) + (1,) * (stages - 1)}
        run, method = FakeRun(net(0, **shape), net(1, **shape)), FitNet()
        start(method, run)
        assert method.student_tap == method.teacher_tap == Tap(middle)

    def test_the_regressor_ends_like_the_teachers_stage(self):
        run, method = FakeRun(net(0), net(1)), FitNet()
        start(method, run)
        assert isinstance(method.regressor[-1], nn.ReLU)
        assert never_negative(run, Tap(2))
        assert not never_negative(run, Tap(2, "pre"))

    @pytest.mark.parametrize("hint", [3, -4])
    def test_hint_out_of_range(self, hint):
        with pytest.raises(NotApplicable, match="3 stage"):
            start(FitNet(FitNet.Params(hint=hint)), FakeRun(net(0), net(1)))


class TestAB:
    S = torch.tensor([-2, 0.5, 0.5, 2, -0.5, 1], dtype=torch.float64)
    T = torch.tensor([-1, -1, 1, 1, 1, 0], dtype=torch.float64)

    def test_golden(self):
        each = [float(boundary_loss(s[None], t[None])) for s, t in zip(self.S, self.T, strict=True)]
        assert each == pytest.approx([0, 2.25, 0.25, 0, 2.25, 4], abs=1e-12)
        assert float(boundary_loss(self.S, self.T)) == pytest.approx(8.75, abs=1e-12)
        assert float(boundary_mismatch(self.S, self.T)) == pytest.approx(0.5)

    def test_against_numpy(self):
        s, t = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
        on = t > 0
        expected = (on * np.maximum(0, 1.5 - s) ** 2 + (~on) * np.maximum(0, 1.5 + s) ** 2).sum()
        got = boundary_loss(torch.tensor(s), torch.tensor(t), margin=1.5)
        assert float(got) == pytest.approx(expected, rel=1e-12)

    def test_gradient(self):
        s = torch.tensor(maps(2, 3, 2, 2), requires_grad=True)
        t = torch.tensor(maps(2, 3, 2, 2, seed=1))
        assert torch.autograd.gradcheck(lambda x: boundary_loss(x, t), (s,))

    def test_stage_weights(self):
        s = [torch.tensor(maps(2, 3, 4, 4, seed=i)) for i in range(3)]
        t = [torch.tensor(maps(2, 3, 4, 4, seed=9 + i)) for i in range(3)]
        each = [float(boundary_loss(a, b)) for a, b in zip(s, t, strict=True)]
        expected = 3e-3 * (each[0] / 4 + each[1] / 2 + each[2]) / 2
        assert float(stagewise_boundary_loss(s, t)) == pytest.approx(expected, rel=1e-12)

    def test_half_precision_does_not_overflow(self):
        s = torch.full((4, 8, 8, 8), 30.0, dtype=torch.float16)
        loss = boundary_loss(s, -s)
        assert float(loss) == pytest.approx(31.0**2 * s.numel())
        assert float(loss) > 65504

    def test_phases_and_their_options(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = AB(AB.Params(teacher_bn="batch"))
        init, classify = start(method, run)
        assert (init.teacher_bn, init.evaluate, classify.teacher_bn) == ("batch", False, "eval")
        assert init.budget == 0.3
        assert init.budget + classify.budget == pytest.approx(1)
        assert {t.when for t in (*run.student.wanted, *run.teacher.wanted)} == {"pre"}

    def test_init_trains_no_head_and_classify_no_connector(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = AB(AB.Params())
        init, classify = start(method, run)
        head, connectors = copy_state(run.student.net.head), copy_state(method.connectors)
        assert set(train_phase(method, init, run)[0]) == {"ab"}
        torch.testing.assert_close(copy_state(run.student.net.head), head, rtol=0, atol=0)
        assert not torch.equal(method.connectors[0][0].weight, connectors["0.0.weight"])
        assert 0 <= float(run.logged[0]["boundary_mismatch"]) <= 1
        connectors = copy_state(method.connectors)
        assert set(train_phase(method, classify, run)[0]) == {"kd"}
        torch.testing.assert_close(copy_state(method.connectors), connectors, rtol=0, atol=0)

    @pytest.mark.parametrize(("weights", "parts"), [((1.0, 0.0), {"task"}), ((1.0, 1.0), {"task", "kd"})])
    def test_terms_without_weight_are_left_out(self, weights, parts):
        run = FakeRun(net(0), net(1))
        method = AB(AB.Params(ce_weight=weights[0], kd_weight=weights[1]))
        _, classify = start(method, run)
        assert set(train_phase(method, classify, run)[0]) == parts

    def test_the_defaults_are_the_official_script(self):
        assert AB.Params() == AB.Params(**AB.presets["official"])

    def test_no_connector_where_the_channels_are_equal(self):
        for identity, kinds in (
            (True, [nn.Identity, nn.Identity, nn.Sequential]),
            (False, [nn.Sequential] * 3),
        ):
            run, method = FakeRun(net(0), net(1, widths=(4, 6, 9))), AB(AB.Params(identity=identity))
            start(method, run)
            assert [type(c) for c in method.connectors] == kinds

    def test_the_official_preset_is_kl_without_t_squared(self):
        run = FakeRun(net(0), net(1))
        method = AB(AB.Params(**AB.presets["official"]))
        init, classify = start(method, run)
        assert all(isinstance(c, nn.Identity) for c in method.connectors)
        train_phase(method, init, run)
        b = batch(8, seed=0)
        run.student.net.train()
        with torch.no_grad():
            expected = run.task.divergence(run.student(b.x), run.teacher(b.x), 3.0) / 9
        parts = train_phase(method, classify, run, steps=1)[0]
        assert parts == pytest.approx({"kd": float(expected)}, rel=1e-5)

    def test_maps_of_different_size(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9), strides=(1, 2, 2)))
        method = AB(AB.Params())
        init, _ = start(method, run)
        assert math.isfinite(train_phase(method, init, run)[0]["ab"])


class TestOFD:
    @pytest.mark.parametrize(
        ("beta", "gamma", "golden"),
        [
            (0, 1, -0.7978846),
            (0.5, 1, -0.6410778),
            (1, 1, -0.5251353),
            (-1, 2, -2.0183209),
            (2, 0.5, -1.5),
            (3.2, 1, -3.0),
            (0, -1, -0.7978846),
        ],
    )
    def test_margin_golden(self, beta, gamma, golden):
        m = margins_from_bn(torch.tensor([float(beta)]), torch.tensor([float(gamma)]))
        assert float(m) == pytest.approx(golden, abs=1e-6)

    def test_margin_is_the_mean_of_a_truncated_normal(self):
        rng = np.random.default_rng(0)
        beta, gamma = rng.normal(size=20), rng.uniform(0.5, 2, size=20)
        expected = [stats.truncnorm.mean(-np.inf, -b / g, b, g) for b, g in zip(beta, gamma, strict=True)]
        got = margins_from_bn(torch.tensor(beta), torch.tensor(gamma))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)

    @pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
    def test_zero_gamma_is_finite(self, beta):
        m = float(margins_from_bn(torch.tensor([beta]), torch.zeros(1)))
        assert m == pytest.approx(min(beta, 0.0), abs=1e-7)

    def test_distance_golden(self):
        s = torch.tensor([-2, -0.5, -0.9, 0.3, 0.3, 1.5], dtype=torch.float64)
        t = torch.tensor([-1, -1, -0.2, -0.2, 1, 1], dtype=torch.float64).clamp_min(-0.8)
        each = [float(partial_l2(a[None], b[None])) for a, b in zip(s, t, strict=True)]
        assert each == pytest.approx([0, 0.09, 0, 0.25, 0.49, 0.25], abs=1e-12)
        assert float(partial_l2(s, t)) == pytest.approx(1.08, abs=1e-12)

    def test_against_numpy(self):
        s = [maps(2, 3, 4, 4, seed=i) for i in range(2)]
        t = [maps(2, 3, 4, 4, seed=5 + i) for i in range(2)]
        m = [-np.abs(maps(1, 3, 1, 1, seed=8 + i)) for i in range(2)]
        expected = 0.0
        for a, b, c, divisor in zip(s, t, m, (2, 1), strict=True):
            b = np.maximum(b, c)
            expected += np.where((a <= b) & (b <= 0), 0.0, (a - b) ** 2).sum() / divisor / 2
        got = overhaul_loss(*([torch.tensor(x) for x in xs] for xs in (s, t, m)))
        assert float(got) == pytest.approx(expected, rel=1e-12)

    def test_gradient(self):
        s = torch.tensor(maps(2, 3, 2, 2), requires_grad=True)
        t = torch.tensor(maps(2, 3, 2, 2, seed=1))
        assert torch.autograd.gradcheck(lambda x: partial_l2(x, t), (s,))

    def test_half_precision_does_not_overflow(self):
        s = torch.full((4, 8, 8, 8), 40.0, dtype=torch.float16)
        assert float(partial_l2(s, -s)) == pytest.approx(80.0**2 * s.numel())

    def test_margins_come_from_the_batch_norm_of_the_tap(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = OFD(OFD.Params())
        (phase,) = start(method, run)
        assert phase.teacher_bn == "batch"
        assert bool(method.calibrated)
        for i, stage in enumerate(run.teacher.net.stages):
            expected = margins_from_bn(stage[1].bias, stage[1].weight).float()
            torch.testing.assert_close(method.get_buffer(f"margin{i}").flatten(), expected)
        assert {"margin0", "margin2", "calibrated"} <= set(method.state_dict())

    def test_calibration_without_batch_norm(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9), bn=False))
        run.teacher.batches = [batch(seed=i).x for i in range(3)]
        method = OFD(OFD.Params(calibration_batches=2))
        (phase,) = start(method, run)
        assert not bool(method.calibrated)
        method.on_phase_start(phase, run)
        x = torch.cat(run.teacher.batches[:2])
        with torch.no_grad():
            last = run.teacher(x).feats[Tap(3, "pre")]
        expected = torch.stack(
            [c[c < 0].mean() if (c < 0).any() else c.new_zeros(()) for c in last.unbind(1)]
        )
        torch.testing.assert_close(method.margin2.flatten(), expected, rtol=1e-5, atol=1e-6)
        # a resumed run keeps the margins it started with
        before = copy_state(method)
        run.teacher.batches = [batch(seed=9).x]
        method.on_phase_start(phase, run)
        torch.testing.assert_close(copy_state(method), before, rtol=0, atol=0)

    def test_channels_that_are_never_negative_get_margin_zero(self):
        mean = NegativeMean()
        mean.add(torch.tensor([[-1.0, 2.0], [-3.0, 4.0]])[:, :, None, None])
        mean.add(torch.tensor([[-5.0, 0.0]])[:, :, None, None])
        torch.testing.assert_close(mean.value(), torch.tensor([-3.0, 0.0], dtype=torch.float64))
