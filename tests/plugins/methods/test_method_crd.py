"""crd: contrast with banks of all training images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import batch, copy_state, net, start
from pooled_run import PooledRun, indexed
from torch import nn

from kdbench.api import NotApplicable
from kdbench_methods.crd import CRD, Others, bank_scores, nce_loss


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class TestCRDLoss:
    def test_against_numpy(self):
        log_p, n, k = draws(4, 6), 50, 5
        p, c = np.exp(log_p), k / n
        positive = np.log(p[:, 0] / (p[:, 0] + c + 1e-7)).sum()
        negative = np.log(c / (p[:, 1:] + c + 1e-7))
        got = float(nce_loss(torch.tensor(log_p), n))
        assert got == pytest.approx(-(positive + negative.sum()) / 4, rel=1e-12)

    def test_gradient_and_extremes(self):
        x = torch.tensor(draws(3, 4), requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: nce_loss(v, 20), (x,))
        wild = torch.tensor([[-300.0, 300.0, -300.0], [300.0, -300.0, 300.0]], requires_grad=True)
        nce_loss(wild, 20).backward()
        assert torch.isfinite(wild.grad).all()

    def test_both_ways_of_scoring_agree(self):
        bank, e = torch.tensor(draws(9, 4)), torch.tensor(draws(3, 4, seed=1))
        rows = torch.tensor([[0, 8, 8], [1, 2, 3], [4, 0, 7]])
        expected = (bank[rows] * e[:, None]).sum(2)
        torch.testing.assert_close(bank_scores(bank, e, rows), expected)
        large = torch.cat([bank, torch.tensor(draws(100, 4, seed=2))])
        torch.testing.assert_close(bank_scores(large, e, rows), expected)


class TestOthers:
    def rng(self):
        return torch.Generator().manual_seed(0)

    def test_negatives_are_all_of_other_classes_and_equally_likely(self):
        classes = torch.tensor([2, 0, 0, 1, 2, 2, 0, 2, 1])
        index = torch.arange(9)
        drawn = Others(classes)(index, 20_000, self.rng())
        assert drawn.dtype == torch.int64
        for i in range(9):
            allowed = (classes != classes[i]).double()
            seen = torch.bincount(drawn[i], minlength=9).double() / 20_000
            # five standard deviations of a share of at most 1/5
            assert torch.allclose(seen, allowed / allowed.sum(), atol=5 * (0.16 / 20_000) ** 0.5)
            assert (seen[allowed == 0] == 0).all()

    def test_classes_of_their_own_make_every_other_image_a_negative(self):
        made = Others(torch.arange(4))
        assert made.fewest == 3
        drawn = made(torch.tensor([3, 0]), 200, self.rng())
        assert set(drawn[0].tolist()) == {0, 1, 2}
        assert set(drawn[1].tolist()) == {1, 2, 3}

    def test_classes_without_images(self):
        made = Others(torch.tensor([5, 1, 5]))
        assert made.fewest == 1
        assert set(made(torch.tensor([0, 1]), 50, self.rng())[1].tolist()) == {0, 2}


class TestCRD:
    def made(self, n_train=32, **params):
        run = PooledRun(net(0), net(1, widths=(5, 7, 9)), n_train=n_train)
        method = CRD(CRD.Params(**params))
        (phase,) = start(method, run)
        return run, method, phase

    def step(self, run, method, **kw):
        b = indexed(**kw)
        run.optimizers = {"main": torch.optim.SGD([*run.student.net.parameters(), *method.parameters()], 0.1)}
        return b, method.step(b, run)

    def test_negatives_are_bounded_by_the_data(self):
        assert self.made()[1].k == 24  # 32 images, 8 of each class
        assert self.made(negatives="other-image")[1].k == 31
        assert self.made(k=7)[1].k == 7
        with pytest.raises(NotApplicable, match="two classes"):
            self.made(n_train=1)
        run = PooledRun(net(0), net(1))
        run.labels = lambda: torch.zeros(32, dtype=torch.int64)
        with pytest.raises(NotApplicable, match="two classes"):
            start(CRD(CRD.Params()), run)
        start(CRD(CRD.Params(negatives="other-image")), run)

    def test_data_without_labels(self):
        run = PooledRun(net(0), net(1))
        run.labels = lambda: None
        with pytest.raises(NotApplicable, match="labels of the training images"):
            start(CRD(CRD.Params()), run)
        start(method := CRD(CRD.Params(negatives="other-image")), run)
        assert method.n_data == 32

    def test_the_banks_have_the_images_that_are_trained_on(self):
        run = PooledRun(net(0), net(1), n_train=32)
        run.labels = lambda: torch.arange(20) % 3
        start(method := CRD(CRD.Params()), run)
        assert (method.n_data, len(method.bank_student), method.k) == (20, 20, 13)

    def test_banks_are_buffers_within_the_official_bounds(self):
        _, method, _ = self.made(embed_dim=12)
        names = dict(method.named_buffers())
        assert {"bank_student", "bank_teacher", "log_z", "ready"} <= set(names)
        assert names["bank_student"].shape == (32, 12)
        assert float(names["bank_student"].abs().max()) <= 1 / math.sqrt(12 / 3)
        assert not torch.equal(names["bank_student"], names["bank_teacher"])

    def test_a_probe_allocates_no_banks(self):
        run = PooledRun(net(0), net(1), n_train=10**9)
        run.probing = True
        start(method := CRD(CRD.Params()), run)
        assert len(method.bank_student) == 1

    def test_labels_are_no_part_of_the_checkpoint(self):
        _, method, _ = self.made()
        assert set(method.state_dict()) == {
            *(f"embed_{side}.linear.{p}" for side in ("student", "teacher") for p in ("weight", "bias")),
            *("bank_student", "bank_teacher", "log_z", "ready"),
        }

    def test_a_resumed_run_goes_on_as_it_was(self):
        run, method, _ = self.made()
        self.step(run, method)
        run2, again, _ = self.made()
        again.load_state_dict(method.state_dict())
        run2.student.net.load_state_dict(run.student.net.state_dict())
        run2.rng.set_state(run.rng.get_state())
        first, second = (self.step(r, m, seed=1, first=8)[1] for r, m in ((run, method), (run2, again)))
        assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}

    def test_the_first_batch_fixes_z(self):
        run, method, _ = self.made()
        self.step(run, method)
        assert bool(method.ready)
        z = method.log_z.clone()
        assert not torch.equal(z, torch.zeros(2))
        self.step(run, method, seed=1, first=8)
        assert torch.equal(method.log_z, z)

    def test_z_is_the_mean_score_times_n(self):
        _, method, _ = self.made()
        raw = torch.tensor(draws(4, 6), dtype=torch.float32)
        log_p = method.log_probabilities(raw, 0)
        torch.testing.assert_close(raw - log_p, (raw.exp().mean() * 32).log().expand(4, 6))

    def test_the_first_loss_by_hand(self):
        run, method, _ = self.made(negatives="other-image", k=5)
        bank_s, bank_t = method.bank_student.clone(), method.bank_teacher.clone()
        b = indexed()
        run.student.net.eval()
        with torch.no_grad():
            S, T = run.student(b.x), run.teach(run.teacher, b.x)
            state = run.rng.get_state()
            parts = method.loss(S, [T], b, run)
            run.rng.set_state(state)
            drawn = method.others(b.index, method.k, run.rng)
            rows = torch.cat([b.index[:, None], drawn], 1)
            for name, bank, embed, out in (
                ("nce_student", bank_t, method.embed_student, S),
                ("nce_teacher", bank_s, method.embed_teacher, T),
            ):
                e = nn.functional.normalize(embed.linear(out.pooled), dim=1).double()
                p = ((bank.double()[rows] * e[:, None]).sum(2) / 0.07).exp()
                p = p / (p.mean() * 32)
                c = 5 / 32
                expected = -(p[:, 0] / (p[:, 0] + c + 1e-7)).log().sum()
                expected -= (c / (p[:, 1:] + c + 1e-7)).log().sum()
                assert float(parts[name]) == pytest.approx(0.8 * float(expected) / 8, rel=1e-4)

    def test_banks_take_in_the_batch_after_the_step(self):
        run, method, _ = self.made()
        old_s, old_t = method.bank_student.clone(), method.bank_teacher.clone()
        run.student.net.train()
        with torch.no_grad():
            et = method.embed_teacher(run.teach(run.teacher, indexed().x).pooled)
        self.step(run, method)
        mixed = nn.functional.normalize((old_t[:8] + et) / 2, dim=1)
        torch.testing.assert_close(method.bank_teacher[:8], mixed)
        torch.testing.assert_close(method.bank_student[:8].norm(dim=1), torch.ones(8))
        assert torch.equal(method.bank_student[8:], old_s[8:])
        assert torch.equal(method.bank_teacher[8:], old_t[8:])

    def test_embeddings_learn(self):
        run, method, _ = self.made()
        before = copy_state(method.embed_student), copy_state(method.embed_teacher)
        self.step(run, method)
        for module, old in zip((method.embed_student, method.embed_teacher), before, strict=True):
            assert all(not torch.equal(v, old[k]) for k, v in module.state_dict().items())

    def test_no_index(self):
        run, method, _ = self.made()
        b = batch()
        with pytest.raises(AssertionError, match=r"batch\.index"):
            method.loss(run.student(b.x), [run.teacher(b.x)], b, run)
