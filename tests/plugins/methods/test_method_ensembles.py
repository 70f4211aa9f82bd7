"""feed and ffl: several teachers, several students."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_run import CLASSES, FakeRun, batch, copy_state, net, pair_of_logits, same_state, start, train_phase

from kdbench.api import NotApplicable, Out
from kdbench_methods.feed import FEED, LAST, Paraphraser, nonlinear_transform, unit_l1
from kdbench_methods.ffl import FFL, Fusion, mutual_losses, ramp_up


class TestFeedLoss:
    def test_golden(self):
        s, t = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[2.0, 2, 1, 0]])
        assert float(unit_l1(s, t)) == pytest.approx(0.4325742, abs=1e-6)

    def test_against_numpy(self):
        rng = np.random.default_rng(0)
        s, t = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4))
        a, b = (x.reshape(3, -1) / np.linalg.norm(x.reshape(3, -1), axis=1, keepdims=True) for x in (s, t))
        assert float(unit_l1(torch.tensor(s), torch.tensor(t))) == pytest.approx(
            np.abs(a - b).mean(), rel=1e-12
        )

    def test_gradient(self):
        torch.manual_seed(0)
        s = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        t = torch.randn(2, 3, 2, 2, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: unit_l1(x, t), (s,))

    def test_scale_does_not_matter_and_zero_maps_are_finite(self):
        s, t = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
        assert float(unit_l1(7 * s, t)) == pytest.approx(float(unit_l1(s, t)), rel=1e-5)
        zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
        loss = unit_l1(zero, t)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(zero.grad).all()

    def test_half_precision_does_not_overflow(self):
        s = torch.full((1, 4, 8, 8), 6e4, dtype=torch.float16)
        assert float(unit_l1(s, s)) == 0
        assert float(unit_l1(s, -s)) == pytest.approx(2 / math.sqrt(s.numel()), rel=1e-3)

    def test_shapes_of_the_modules(self):
        x = torch.randn(2, 6, 4, 4)
        assert nonlinear_transform(6, 10)(x).shape == (2, 10, 4, 4)
        paraphraser = Paraphraser(6, 0.5)
        assert paraphraser.encoder(x).shape == (2, 3, 4, 4)
        assert paraphraser(x).shape == x.shape


class TestParallelFeed:
    def test_one_term_per_teacher(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)), net(2, widths=(5, 7, 12)))
        method = FEED(FEED.Params(beta=10.0))
        (phase,) = start(method, run)
        assert [t[0].out_channels for t in method.transforms] == [9, 12]
        assert set(train_phase(method, phase, run)[0]) == {"task", "feed0", "feed1"}
        assert list(method.deploy(run)) == ["student"]

    def test_beta_is_a_factor(self):
        values = []
        for beta in (1.0, 4.0):
            run = FakeRun(net(0), net(1), net(2))
            method = FEED(FEED.Params(beta=beta))
            start(method, run)
            b = batch()
            T = [run.teach(t, b.x) for t in run.teachers]
            values.append(method.loss(run.student(b.x), T, b, run)["feed1"].item())
        assert values[1] == pytest.approx(4 * values[0], rel=1e-5)

    def test_equal_teachers_are_refused_unless_probing(self):
        run = FakeRun(net(0), net(1), net(1))
        with pytest.raises(NotApplicable, match="teacher0 and teacher1"):
            start(FEED(FEED.Params()), run)
        run = FakeRun(net(0), net(1), net(1))
        run.probing = True
        assert len(start(FEED(FEED.Params()), run)) == 1

    def test_paraphrasers_are_trained_first_and_then_frozen(self):
        run = FakeRun(net(0), net(1), net(2))
        method = FEED(FEED.Params(paraphrase=True))
        first, second = start(method, run)
        assert (first.name, first.evaluate) == ("paraphrase", False)
        student, before = copy_state(run.student.net), copy_state(method.paraphrasers)
        losses = train_phase(method, first, run, steps=2, lr=0.1)
        assert set(losses[0]) == {"paraphrase0", "paraphrase1"}
        assert same_state(copy_state(run.student.net), student)
        after = copy_state(method.paraphrasers)
        assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
        train_phase(method, second, run)
        assert same_state(copy_state(method.paraphrasers), after)


class TestSequentialFeed:
    def make(self, **kw):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = FEED(FEED.Params(variant="sequential", **kw))
        return run, method, start(method, run)

    def test_generations(self):
        run, method, phases = self.make(generations=3)
        assert [p.name for p in phases] == ["gen1", "gen2", "gen3"]
        assert [p.evaluate for p in phases] == [False, False, True]
        assert sum(p.budget for p in phases) == pytest.approx(1)
        assert [t[0].out_channels for t in method.transforms] == [9, 8, 8]
        nets = list(method.deploy(run).values())
        assert list(method.deploy(run)) == ["student", "gen1", "gen2"]
        assert nets[0] is run.student.net
        weights = [n.stem.weight for n in nets]
        assert not any(torch.equal(a, b) for a, b in pairwise(weights))

    def test_each_phase_trains_one_generation_on_the_finished_one_before(self):
        run, method, phases = self.make(generations=3)
        nets = [h.net for h in method.students]
        for g, phase in enumerate(phases):
            before = [copy_state(n) for n in nets]
            train_phase(method, phase, run)
            changed = [not same_state(copy_state(n), b) for n, b in zip(nets, before, strict=True)]
            assert changed == [i == g for i in range(3)]

    def test_the_target_is_the_predecessor_in_eval_mode(self):
        run, method, phases = self.make(generations=2)
        train_phase(method, phases[0], run)
        b = batch(8, seed=0)
        first, last = method.students
        first.net.eval()
        run.student.net.train()
        method.train()
        with torch.no_grad():
            target = first(b.x).feats[LAST]
            copies = copy_state(method), copy_state(last.net)
            mapped = method.transforms[1](last(b.x).feats[LAST])
        expected = 200 * float(unit_l1(mapped, target))
        method.load_state_dict(copies[0])
        last.net.load_state_dict(copies[1])
        assert train_phase(method, phases[1], run, steps=1)[0]["feed"] == pytest.approx(expected, rel=1e-5)

    def test_full_epochs_per_generation(self):
        _, _, phases = self.make(generations=2, generation_share=1.0)
        assert [p.budget for p in phases] == [1.0, 1.0]

    def test_one_generation_is_the_student_itself(self):
        run, method, phases = self.make(generations=1)
        assert len(phases) == 1
        assert phases[0].evaluate
        assert set(train_phase(method, phases[0], run)[0]) == {"task", "feed"}


class TestFFLLoss:
    def test_ramp_golden(self):
        assert ramp_up(0, 80) == pytest.approx(0.0067379, abs=1e-6)
        assert ramp_up(40, 80) == pytest.approx(0.2865048, abs=1e-6)
        assert ramp_up(80, 80) == ramp_up(300, 80) == 1

    def test_divergence_golden(self):
        z = pair_of_logits()
        to_fused, to_subs = mutual_losses([z.t, z.t], z.s)
        assert float(to_fused) == pytest.approx(0.3471101, abs=1e-6)
        _, to_subs = mutual_losses([z.s, z.s], z.t)
        assert float(to_subs) == pytest.approx(2 * 0.3471101, abs=1e-6)

    def test_against_numpy(self):
        rng = np.random.default_rng(0)
        z1, z2, zf = (rng.normal(size=(4, 5)) for _ in range(3))

        def kl(target, learner):
            p, q = (np.exp(z / 3) / np.exp(z / 3).sum(1, keepdims=True) for z in (target, learner))
            return 9 * (p * np.log(p / q)).sum() / 4

        to_fused, to_subs = mutual_losses([torch.tensor(z1), torch.tensor(z2)], torch.tensor(zf))
        assert float(to_fused) == pytest.approx(kl((z1 + z2) / 2, zf), rel=1e-12)
        assert float(to_subs) == pytest.approx(kl(zf, z1) + kl(zf, z2), rel=1e-12)

    def test_targets_carry_no_gradient(self):
        z = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
        to_fused, _ = mutual_losses(z[:2], z[2])
        grads = torch.autograd.grad(to_fused, z, allow_unused=True)
        assert [g is None for g in grads] == [True, True, False]
        _, to_subs = mutual_losses(z[:2], z[2])
        grads = torch.autograd.grad(to_subs, z, allow_unused=True)
        assert [g is None for g in grads] == [False, False, True]

    def test_gradient(self):
        torch.manual_seed(0)
        subs = [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
        fused = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z: mutual_losses(subs, z)[0], (fused,))

    def test_half_precision_does_not_overflow(self):
        big = torch.full((2, 3), 6e4, dtype=torch.float16)
        big[:, 0] = -6e4
        assert all(torch.isfinite(x) for x in mutual_losses([big, -big], -big))

    def test_fusion_is_drawn_as_in_the_official_code(self):
        torch.manual_seed(0)
        fusion = Fusion(256, 128, 5)
        assert float(fusion.mix[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.05)
        assert float(fusion.mix[3].weight.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)

    def test_fusion_shape(self):
        assert Fusion(12, 6, 5)(torch.randn(2, 12, 4, 4)).shape == (2, 5)


class TestFFL:
    @pytest.mark.parametrize(
        ("share", "can_share"), [("all_but_last", True), ("all_but_last", False), ("none", True)]
    )
    def test_training_and_deployables(self, share, can_share):
        run = FakeRun(net(0), can_share=can_share)
        method = FFL(FFL.Params(share=share))
        (phase,) = start(method, run)
        shared = share == "all_but_last" and can_share
        assert (method.pair.trunk_tap is not None) == shared
        peer = method.pair.peer.net
        assert (peer.stem is run.student.net.stem) == shared
        assert peer.head is not run.student.net.head
        assert phase.optimizers["fuse"].kw == {"weight_decay": 1e-5}
        before = {k: copy_state(m) for k, m in (("s", run.student.net), ("p", peer), ("f", method.fusion))}
        losses = train_phase(method, phase, run)[0]
        assert set(losses) == {"task", "task_sub2", "task_fused", "to_fused", "to_subs"}
        assert set(run.stepped) == {("sub", "fuse")}
        for key, module in (("s", run.student.net), ("p", peer), ("f", method.fusion)):
            after = copy_state(module)
            assert not any(torch.equal(before[key][k], after[k]) for k in after if k.endswith("weight"))

        nets = method.deploy(run)
        assert list(nets) == ["student", "sub2", "fused", "ensemble"]
        x = batch().x
        with torch.no_grad():
            logits = {name: n.eval()(x) for name, n in nets.items()}
        assert {tuple(z.shape) for z in logits.values()} == {(8, CLASSES)}
        torch.testing.assert_close(logits["ensemble"], (logits["student"] + logits["sub2"]) / 2)
        assert not torch.allclose(logits["fused"], logits["ensemble"])
        owned = {id(p) for p in nets["fused"].parameters()}
        assert owned == {id(p) for m in (run.student.net, peer, method.fusion) for p in m.parameters()}

    def test_the_shared_trunk_sees_one_forward_per_step(self):
        run = FakeRun(net(0))
        method = FFL(FFL.Params())
        (phase,) = start(method, run)
        calls = []
        run.student.net.stages[0].register_forward_hook(lambda *a: calls.append(1))
        train_phase(method, phase, run, steps=3)
        assert len(calls) == 3

    def test_ramp_is_scaled_to_short_runs(self):
        method = FFL(FFL.Params())
        assert method.ramp(40, 300) == pytest.approx(0.2865048, abs=1e-6)
        assert method.ramp(4, 15) == 1
        assert FFL(FFL.Params(ramp_epochs=80)).ramp(4, 15) == pytest.approx(ramp_up(4, 80))

    def test_losses_are_those_of_the_formula(self):
        run = FakeRun(net(0))
        run.epoch, run.phase_epochs = 40, 300
        method = FFL(FFL.Params())
        (phase,) = start(method, run)
        b = batch(8, seed=0)
        run.student.net.train()
        first, second = method.pair(b.x)
        fused = method.fusion(torch.cat([first.feats[LAST], second.feats[LAST]], 1))
        to_fused, to_subs = mutual_losses([first.logits, second.logits], fused)
        expected = {
            "task": run.task.loss(first, b),
            "task_sub2": run.task.loss(second, b),
            "task_fused": run.task.loss(Out(fused), b),
            "to_fused": ramp_up(40, 80) * to_fused,
            "to_subs": ramp_up(40, 80) * to_subs,
        }
        got = train_phase(method, phase, run, steps=1)[0]
        assert got == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)
