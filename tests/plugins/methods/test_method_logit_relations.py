"""dist, mlkd, kd-ls and the option `standardise`: relations between logits."""

from __future__ import annotations

import fake_run
import numpy as np
import pytest
import torch
from fake_run import FakeRun, batch, net, pair_of_logits, start, train_phase

from kdbench.api import Batch, NotApplicable, Out
from kdbench_methods._common import standardise
from kdbench_methods.dist import DIST, dist_loss, inter_class, intra_class, pearson
from kdbench_methods.dkd import DKD, dkd_loss
from kdbench_methods.kd import KD
from kdbench_methods.kd_ls import KDLS
from kdbench_methods.mlkd import (
    MLKD,
    batch_correlation,
    class_correlation,
    doubtful_shares,
    instance_divergence,
)


def three(dtype=torch.float64):
    """The golden logits with their third sample."""
    zs = torch.tensor([[1, 2, 0], [0, 1, 3], [2, 0, 1]], dtype=dtype)
    zt = torch.tensor([[2, 1, 0], [1, 0, 4], [3, 1, 0]], dtype=dtype)
    return zs, zt


def random_pair(rows=7, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(rows, classes)), 3 * rng.normal(size=(rows, classes))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture
def golden():
    z = pair_of_logits(torch.float32)
    return Out(z.s), [Out(z.t)], Batch(torch.zeros(2, 3, 4, 4), z.y), FakeRun(net(0), net(1))


class TestStandardise:
    def test_golden(self):
        z = pair_of_logits()
        kl = instance_divergence(z.s, z.t, 2.0, scale=True)
        assert float(kl) == pytest.approx(0.2367355, abs=1e-6)

    def test_against_numpy(self):
        z, _ = random_pair()
        want = (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7)
        np.testing.assert_allclose(standardise(torch.tensor(z)).numpy(), want, atol=1e-12)

    def test_scale_and_shift_do_not_matter(self):
        z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(standardise(5 * z - 3), standardise(z), atol=1e-6, rtol=0)

    def test_gradient(self):
        z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.autograd.gradcheck(standardise, (z.requires_grad_(),))

    def test_constant_rows_stay_finite(self):
        z = torch.full((2, 4), 3.0, requires_grad=True)
        out = standardise(z)
        out.square().sum().backward()
        assert torch.equal(out, torch.zeros(2, 4))
        assert torch.isfinite(z.grad).all()

    def test_half_precision_is_widened(self):
        assert standardise(torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16)).isfinite().all()

    def test_two_classes_leave_nothing_and_are_refused(self):
        z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(standardise(z).abs(), torch.full_like(z, 0.5**0.5), atol=1e-5, rtol=0)
        assert KDLS.needs.min_classes == 3
        for cls in (KD, MLKD):
            assert cls.requires(cls.Params(standardise=True)).min_classes == 3
            assert cls.requires(cls.Params()) == cls.needs

    def test_kd_ls_mix(self, golden):
        parts = KDLS(KDLS.Params()).loss(*golden)
        assert float(parts["task"]) == pytest.approx(0.1 * 0.7887260, abs=1e-6)
        assert float(parts["kd"]) == pytest.approx(9 * 0.2367355, abs=9e-6)

    def test_the_option_of_kd_is_kd_ls(self, golden):
        same = KD.Params(alpha=9.0, temperature=2.0, standardise=True)
        assert KD(same).loss(*golden)["kd"] == KDLS(KDLS.Params()).loss(*golden)["kd"]

    def test_the_options_of_dkd_and_dist(self, golden):
        S, T, b, run = golden
        zs, zt = standardise(S.logits), standardise(T[0].logits)
        run.phase_epochs = 1
        part = DKD(DKD.Params(standardise=True)).loss(*golden)["dkd"]
        torch.testing.assert_close(part, dkd_loss(zs, zt, b.y))
        part = DIST(DIST.Params(standardise=True)).loss(*golden)["dist"]
        torch.testing.assert_close(part, 2 * dist_loss(zs, zt))

    @pytest.mark.parametrize("cls", [KDLS, DIST, MLKD])
    def test_other_outputs_are_not_applicable(self, cls):
        run = FakeRun(net(0), net(1))
        run.task.kind = "embedding"
        with pytest.raises(NotApplicable):
            cls().setup(run)

    def test_plain_kd_takes_every_kind_of_output(self):
        run = FakeRun(net(0), net(1))
        run.task.kind = "embedding"
        KD().setup(run)


class TestDIST:
    def test_golden(self):
        zs, zt = three()
        ps, pt = zs.softmax(1), zt.softmax(1)
        assert float(inter_class(ps, pt)) == pytest.approx(0.3541894, abs=1e-6)
        assert float(intra_class(ps, pt)) == pytest.approx(0.0889040, abs=1e-6)
        assert float(dist_loss(zs, zt, gamma=0.0)) == pytest.approx(5.0297770, abs=1e-6)
        assert float(dist_loss(zs, zt, beta=0.0)) == pytest.approx(2.9922198, abs=1e-6)

    def test_against_numpy(self):
        zs, zt = random_pair()
        ps, pt = softmax(zs / 2.5), softmax(zt / 2.5)
        rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(ps, pt, strict=True)]
        cols = [np.corrcoef(a, b)[0, 1] for a, b in zip(ps.T, pt.T, strict=True)]
        want = 2.5**2 * (0.7 * (1 - np.mean(rows)) + 1.3 * (1 - np.mean(cols)))
        got = dist_loss(torch.tensor(zs), torch.tensor(zt), beta=0.7, gamma=1.3, temperature=2.5)
        assert float(got) == pytest.approx(want, abs=1e-6)

    def test_gradient(self):
        zs, zt = (torch.tensor(z[:4]) for z in random_pair())
        assert torch.autograd.gradcheck(lambda z: dist_loss(z, zt), (zs.requires_grad_(),))

    def test_equal_logits_cost_nothing(self):
        zs, _ = three()
        assert float(dist_loss(zs, zs, temperature=1.0)) == pytest.approx(0, abs=1e-6)

    def test_constant_rows_stay_finite(self):
        a = torch.ones(3, 4, requires_grad=True)
        rho = pearson(a, torch.randn(3, 4))
        rho.sum().backward()
        assert torch.equal(rho.detach(), torch.zeros(3))
        assert torch.isfinite(a.grad).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_sure_networks_stay_finite(self, dtype):
        rows = [[6e4, -6e4, 0.0], [-6e4, 6e4, 1.0], [0.0, 0.0, 0.0]]
        zs = torch.tensor(rows, dtype=dtype, requires_grad=True)
        loss = dist_loss(zs, -zs.detach())
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(zs.grad).all()

    def test_loss(self, golden):
        S, T, b, run = golden
        parts = DIST(DIST.Params(temperature=1.0, kd_weight=3.0)).loss(S, T, b, run)
        assert float(parts["task"]) == pytest.approx(0.7887260, abs=1e-6)
        torch.testing.assert_close(parts["dist"], 3 * dist_loss(S.logits, T[0].logits, temperature=1.0))


class TestMLKD:
    def views(self):
        (ws, wt), (ss, st) = ([torch.tensor(z) for z in random_pair(rows=6, seed=k)] for k in (0, 1))
        return (ws, wt), (ss, st)

    def test_golden(self):
        zs, zt = three()
        assert float(batch_correlation(zs, zt)) == pytest.approx(0.1233703, abs=1e-6)
        assert float(class_correlation(zs, zt)) == pytest.approx(0.2138490, abs=1e-6)

    def test_against_numpy(self):
        zs, zt = random_pair()
        ps, pt = softmax(zs / 3), softmax(zt / 3)
        a, b = torch.tensor(zs), torch.tensor(zt)
        want = ((ps.T @ ps - pt.T @ pt) ** 2).sum() / 5
        assert float(class_correlation(a, b, 3.0)) == pytest.approx(want, abs=1e-12)
        want = ((ps @ ps.T - pt @ pt.T) ** 2).sum() / 7
        assert float(batch_correlation(a, b, 3.0)) == pytest.approx(want, abs=1e-12)
        want = 9 * (pt * np.log(pt / ps)).sum() / 7
        assert float(instance_divergence(a, b, 3.0)) == pytest.approx(want, abs=1e-10)

    def test_gradient(self):
        zs, zt = (torch.tensor(z[:3]) for z in random_pair())
        zs.requires_grad_()
        for fn in (class_correlation, batch_correlation):
            assert torch.autograd.gradcheck(lambda z, fn=fn: fn(z, zt, 2.0), (zs,))

    def test_half_of_the_samples_and_classes_are_doubtful(self):
        _, zt = random_pair(rows=8, classes=6)
        samples, classes = doubtful_shares(torch.tensor(zt))
        assert (float(samples), float(classes)) == (0.5, 0.5)
        ties, _ = doubtful_shares(torch.zeros(3, 4))
        assert float(ties) == 1.0
        odd, _ = doubtful_shares(torch.tensor(random_pair(rows=7)[1]))
        assert float(odd) == pytest.approx(4 / 7)

    @pytest.mark.parametrize("variant", ["official", "paper"])
    def test_alignment_against_a_plain_sum(self, variant):
        (ws, wt), (ss, st) = self.views()
        got = MLKD(MLKD.Params(variant=variant)).alignment([ws, ss], [wt, st])
        official, temperatures = variant == "official", (2.0, 3.0, 4.0, 5.0, 6.0)
        share, class_share = (0.5, 3 / 5) if official else (1.0, 1.0)
        kl = 0.0
        for t in temperatures:
            kl += share * float(instance_divergence(ws, wt, t))
            second = (ws, wt) if official and t in (2.0, 6.0) else (ss, st)
            kl += float(instance_divergence(*second, t))
        want = {
            "kl": kl,
            "batch": share * sum(float(batch_correlation(ws, wt, t)) for t in temperatures),
            "class": class_share * sum(float(class_correlation(ws, wt, t)) for t in temperatures),
        }
        assert {k: float(v) for k, v in got.items()} == pytest.approx(want, rel=1e-6)

    def test_the_free_temperature_is_never_swapped(self):
        (ws, wt), (ss, st) = self.views()
        two, three_ = (
            MLKD(MLKD.Params(temperature=t)).alignment([ws, ss], [wt, st])["kl"] for t in (2.0, 3.0)
        )
        parts = [0.5 * instance_divergence(ws, wt, t) + instance_divergence(ss, st, t) for t in (2.0, 3.0)]
        torch.testing.assert_close(two - three_, parts[0] - parts[1])

    def test_standardisation_is_for_the_divergences_only(self):
        (ws, wt), (ss, st) = self.views()
        plain, scaled = (
            MLKD(MLKD.Params(standardise=on)).alignment([ws, ss], [wt, st]) for on in (False, True)
        )
        assert plain["kl"] != scaled["kl"]
        assert plain["batch"] == scaled["batch"]
        assert plain["class"] == scaled["class"]

    def test_trains_on_two_views(self, monkeypatch):
        def two_views(n=8, seed=0):
            b = batch(n, seed)
            b.views = (batch(n, seed + 50).x,)
            return b

        monkeypatch.setattr(fake_run, "batch", two_views)
        run, method = FakeRun(net(0), net(1, widths=(5, 7, 9))), MLKD()
        (phase,) = start(method, run)
        before = run.student.net.head.weight.detach().clone()
        for parts in train_phase(method, phase, run):
            assert set(parts) == {"task", "kl", "batch", "class"}
            assert all(np.isfinite(v) for v in parts.values())
        assert not torch.equal(run.student.net.head.weight, before)
