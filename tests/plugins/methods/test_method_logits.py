"""vanilla, kd, dkd, rco: losses on logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun, copy_state, net, pair_of_logits, same_state, start

from kdbench.api import Batch, NotApplicable, Out, Phase
from kdbench_methods.dkd import DKD, dkd_loss, non_target_class_kd, target_class_kd
from kdbench_methods.kd import KD
from kdbench_methods.rco import RCO, anchor_at
from kdbench_methods.vanilla import Vanilla


@pytest.fixture
def golden():
    z = pair_of_logits(torch.float32)
    return Out(z.s), [Out(z.t)], Batch(torch.zeros(2, 3, 4, 4), z.y), FakeRun(net(0), net(1))


def test_vanilla_is_the_task_loss(golden):
    S, _, batch, run = golden
    assert {k: float(v) for k, v in Vanilla().loss(S, [], batch, run).items()} == pytest.approx(
        {"task": 0.7887260}, abs=1e-6
    )


def test_kd_mix(golden):
    parts = KD(KD.Params()).loss(*golden)
    assert float(parts["task"]) == pytest.approx(0.1 * 0.7887260, abs=1e-6)
    assert float(parts["kd"]) == pytest.approx(0.9 * 0.3613417, abs=1e-6)
    assert float(sum(parts.values())) == pytest.approx(0.4040801, abs=1e-6)


def test_kd_imagenet_preset(golden):
    parts = KD(KD.Params(**KD.presets["imagenet"])).loss(*golden)
    assert float(sum(parts.values())) == pytest.approx(0.5 * 0.7887260 + 0.5 * 0.2450895, abs=1e-6)


class TestDKD:
    def test_golden(self):
        z = pair_of_logits()
        # the published parts carry T²
        assert float(16 * target_class_kd(z.s, z.t, z.y, 4.0)) == pytest.approx(0.2125036, abs=1e-6)
        assert float(16 * non_target_class_kd(z.s, z.t, z.y, 4.0)) == pytest.approx(0.3094535, abs=1e-6)
        total = dkd_loss(z.s, z.t, z.y, alpha=1, beta=8, temperature=4)
        assert float(total) == pytest.approx(2.6881317, abs=1e-6)

    def test_identity_at_temperature_one(self):
        torch.manual_seed(0)
        zs, zt = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
        y = torch.randint(5, (6,))
        for s, t, label in zip(zs, zt, y, strict=True):
            s, t, label = s[None], t[None], label[None]
            kd = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
            rest = 1 - t.softmax(1)[0, label]
            parts = target_class_kd(s, t, label) + rest * non_target_class_kd(s, t, label)
            torch.testing.assert_close(parts.squeeze(), kd, atol=1e-12, rtol=0)

    def test_against_numpy(self):
        rng = np.random.default_rng(1)
        zs, zt, y = rng.normal(size=(9, 6)) * 3, rng.normal(size=(9, 6)) * 3, rng.integers(6, size=9)
        temperature, alpha, beta, total = 2.5, 0.7, 3.0, 0.0
        for s, t, k in zip(zs, zt, y, strict=True):
            ps, pt = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (s, t))
            bs, bt = np.array([ps[k], 1 - ps[k]]), np.array([pt[k], 1 - pt[k]])
            qs, qt = (np.delete(p, k) / np.delete(p, k).sum() for p in (ps, pt))
            total += alpha * (bt * np.log(bt / bs)).sum() + beta * (qt * np.log(qt / qs)).sum()
        got = dkd_loss(
            torch.tensor(zs),
            torch.tensor(zt),
            torch.tensor(y),
            alpha=alpha,
            beta=beta,
            temperature=temperature,
        )
        assert float(got) == pytest.approx(temperature**2 * total / 9, abs=1e-10)

    def test_gradient(self):
        torch.manual_seed(0)
        zs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        zt, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
        assert torch.autograd.gradcheck(lambda z: dkd_loss(z, zt, y), (zs,))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_sure_networks_stay_finite(self, dtype):
        zs = torch.tensor([[6e4, -6e4, 0.0], [-6e4, 6e4, 1.0]], dtype=dtype, requires_grad=True)
        zt = torch.tensor([[-6e4, 6e4, 0.0], [6e4, -6e4, 1.0]], dtype=dtype)
        loss = dkd_loss(zs, zt, torch.tensor([0, 1]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(zs.grad).all()

    def test_ramp(self):
        method = DKD(DKD.Params(warmup=20))
        assert [method.ramp(e, 240) for e in (0, 9, 19, 200)] == [0.05, 0.5, 1.0, 1.0]
        scaled = DKD(DKD.Params())
        assert scaled.ramp(0, 240) == 0.05
        assert scaled.ramp(0, 10) == 1.0

    def test_two_classes_are_excluded_by_needs(self):
        assert DKD.needs.min_classes == 3

    def test_other_outputs_are_not_applicable(self):
        run = FakeRun(net(0), net(1))
        run.task.kind = "embedding"
        with pytest.raises(NotApplicable):
            DKD().setup(run)

    def test_loss_is_weighted_by_the_ramp(self, golden):
        S, T, batch, run = golden
        run.epoch, run.phase_epochs = 4, 240
        parts = DKD(DKD.Params()).loss(S, T, batch, run)
        assert float(parts["task"]) == pytest.approx(0.7887260, abs=1e-6)
        assert float(parts["dkd"]) == pytest.approx(2.6881317 * 5 / 20, abs=1e-6)


class TestRCO:
    def test_anchors_share_the_epochs_equally(self):
        assert [anchor_at(e / 8, 4) for e in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
        for epochs in (100, 240, 7):
            seen = [anchor_at(e / epochs, epochs) for e in range(epochs)]
            assert seen == list(range(epochs))
        assert anchor_at(1.0, 4) == 3

    def test_loads_an_anchor_only_when_it_changes(self):
        run = FakeRun(net(0), net(1))
        states, loads = [copy_state(net(10 + i)) for i in range(2)], []
        run.route = [lambda i=i: loads.append(i) or states[i] for i in range(2)]
        method = RCO(RCO.Params(anchors=2))
        (phase,) = start(method, run)
        method.on_phase_start(phase, run)
        run.phase_epochs = 4
        for run.epoch in range(4):
            run.frac = run.epoch / 4 + 0.24  # what a run says that resumes at the end of a cut epoch
            method.on_epoch_start(run)
            assert same_state(copy_state(run.teacher.net), states[int(run.epoch >= 2)])
        assert loads == [0, 1]

    def test_a_resumed_run_gets_its_anchor_back(self):
        run = FakeRun(net(0), net(1))
        states = [copy_state(net(10 + i)) for i in range(4)]
        run.route = [lambda i=i: states[i] for i in range(4)]
        before = RCO(RCO.Params())
        run.epoch, run.phase_epochs = 3, 5
        before.on_epoch_start(run)
        resumed = RCO(RCO.Params())
        resumed.load_state_dict(before.state_dict())
        run.teacher.net.load_state_dict(copy_state(net(1)))
        resumed.on_phase_start(Phase(), run)
        resumed.on_epoch_start(run)
        assert same_state(copy_state(run.teacher.net), states[2])

    def test_loss(self, golden):
        S, T, batch, run = golden
        parts = RCO(RCO.Params(temperature=2.0, kd_weight=3.0)).loss(S, T, batch, run)
        assert float(parts["task"]) == pytest.approx(0.7887260, abs=1e-6)
        assert float(parts["rco"]) == pytest.approx(3 * 0.3160634, abs=1e-6)
