"""wsld, ctkd and the virtual teacher of tfkd: what is done to the soft labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import FakeRun, net, pair_of_logits, start, train_phase

from kdbench.api import Batch, NotApplicable, Out
from kdbench_methods.ctkd import CTKD, reversal, scale_gradient
from kdbench_methods.tfkd import TfKD, regulariser, virtual_teacher
from kdbench_methods.wsld import WSLD, soft_label_weights, wsl_loss


@pytest.fixture
def golden():
    z = pair_of_logits(torch.float32)
    return Out(z.s), [Out(z.t)], Batch(torch.zeros(2, 3, 4, 4), z.y), FakeRun(net(0), net(1))


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


class TestWSLD:
    def test_by_hand(self):
        # ce_s = (1.4076060, 0.1698460), ce_t = (0.4076060, 0.0658839)
        z = pair_of_logits()
        want = [1 - math.exp(-1.4076060 / 0.4076060), 1 - math.exp(-0.1698460 / 0.0658839)]
        np.testing.assert_allclose(soft_label_weights(z.s, z.t, z.y).numpy(), want, atol=1e-6)

    def test_against_numpy(self):
        rng = np.random.default_rng(2)
        zs, zt, y = 2 * rng.normal(size=(6, 4)), 2 * rng.normal(size=(6, 4)), rng.integers(4, size=6)
        total = 0.0
        for s, t, k in zip(zs, zt, y, strict=True):
            w = 1 - np.exp(-log_softmax(s)[k] / log_softmax(t)[k])
            total -= w * (np.exp(log_softmax(t / 3)) * log_softmax(s / 3)).sum()
        got = wsl_loss(torch.tensor(zs), torch.tensor(zt), torch.tensor(y), 3.0)
        assert float(got) == pytest.approx(9 * total / 6, abs=1e-5)

    def test_gradient_passes_the_weights_by(self):
        z = pair_of_logits()
        zs = z.s.clone().requires_grad_()
        wsl_loss(zs, z.t, z.y, 2.0).backward()
        weights = soft_label_weights(z.s, z.t, z.y)[:, None]
        want = 2.0 * weights * ((z.s / 2).softmax(1) - (z.t / 2).softmax(1)) / 2
        torch.testing.assert_close(zs.grad, want)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_sure_networks_stay_finite(self, dtype):
        zs = torch.tensor([[6e4, -6e4, 0.0], [-6e4, 6e4, 1.0]], dtype=dtype, requires_grad=True)
        zt = torch.tensor([[-6e4, 6e4, 0.0], [-6e4, 6e4, 1.0]], dtype=dtype)
        loss = wsl_loss(zs, zt, torch.tensor([0, 1]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(zs.grad).all()

    def test_loss(self, golden):
        S, T, b, run = golden
        parts = WSLD(WSLD.Params(alpha=3.0)).loss(S, T, b, run)
        assert float(parts["task"]) == pytest.approx(0.7887260, abs=1e-6)
        torch.testing.assert_close(parts["wsl"], 3 * wsl_loss(S.logits, T[0].logits, b.y))


class TestCTKD:
    def test_reversal_grows_as_a_cosine(self):
        assert [reversal(e, 10) for e in (0, 5, 10, 200)] == pytest.approx([0, -0.5, -1, -1])
        assert reversal(1, 10) == pytest.approx(-0.0244717, abs=1e-6)

    def test_the_gradient_is_scaled_and_the_value_is_not(self):
        x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        y = scale_gradient(x, -0.25)
        (y**3).sum().backward()
        assert y.item() == 2.0
        assert x.grad.item() == -0.25 * 3 * 4

    def test_first_temperature(self, golden):
        run = golden[-1]
        method = CTKD()
        start(method, run)
        assert method.temperature(0, 240).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)), abs=1e-5)

    def test_loss_against_numpy_and_the_reversed_gradient(self, golden):
        S, T, b, run = golden
        method = CTKD(CTKD.Params(loops=1))
        start(method, run)

        def kd(theta):
            t = 1 + 20 / (1 + np.exp(-theta))
            log_s, log_t = (log_softmax(z.logits.double().numpy() / t) for z in (S, T[0]))
            return 0.9 * t**2 * (np.exp(log_t) * (log_t - log_s)).sum() / 2

        parts = method.loss(S, T, b, run)
        assert parts["kd"].item() == pytest.approx(kd(1.0), abs=1e-5)
        parts["kd"].backward()
        slope = (kd(1 + 1e-5) - kd(1 - 1e-5)) / 2e-5
        assert method.theta.grad.item() == pytest.approx(-slope, rel=1e-2)
        assert "temperature" in run.logged[0]

    def test_the_divergence_pushes_the_temperature_up_its_own_slope(self):
        run, method = FakeRun(net(0), net(1)), CTKD(CTKD.Params(loops=1))
        (phase,) = start(method, run)
        train_phase(method, phase, run, steps=1, lr=0.1)
        assert method.theta.item() - 1 == pytest.approx(-0.1 * method.theta.grad.item(), rel=1e-2)

    def test_other_outputs_are_not_applicable(self):
        run = FakeRun(net(0), net(1))
        run.task.kind = "embedding"
        for cls in (CTKD, WSLD):
            with pytest.raises(NotApplicable):
                cls().setup(run)


class TestVirtualTeacher:
    def test_against_numpy(self):
        p = virtual_teacher(torch.tensor([1, 0]), 4, 0.97, 2.0).double().numpy()
        u = np.full((2, 4), 0.01)
        u[[0, 1], [1, 0]] = 0.97
        np.testing.assert_allclose(p, np.exp(log_softmax(u / 2.0)), atol=1e-7)

    def test_regulariser_against_numpy(self):
        z = pair_of_logits()
        target = np.exp(log_softmax(np.array([[0.99, 0.005, 0.005], [0.005, 0.005, 0.99]]) / 20))
        want = (target * (np.log(target) - log_softmax(z.s.numpy()))).sum() / 2
        got = regulariser(z.s, virtual_teacher(z.y, 3))
        assert float(got) == pytest.approx(want, abs=1e-6)

    def test_gradient(self):
        z = pair_of_logits()
        target = virtual_teacher(z.y, 3)
        assert torch.autograd.gradcheck(lambda s: regulariser(s, target), (z.s.requires_grad_(),))

    def test_the_multiplier_stands_for_the_mean_over_classes(self):
        losses = []
        for params in ({"reg_multiplier": 4.0}, {}, {"reg_multiplier": 8.0}):
            run, method = FakeRun(net(0)), TfKD(TfKD.Params(variant="reg", **params))
            (phase,) = start(method, run)
            losses.append(train_phase(method, phase, run, steps=1)[0])
        assert losses[0] == losses[1]
        assert losses[2]["kd"] == pytest.approx(2 * losses[0]["kd"], rel=1e-6)
        assert losses[2]["task"] == losses[0]["task"]
