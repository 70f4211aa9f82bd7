"""bss, and the greedy search of rco."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import CLASSES, FakeRun, batch, copy_state, net, pair_of_logits, same_state, start, train_phase
from on_pairs import ON_PAIRS
from pydantic import ValidationError

from kdbench.api import Batch, NotApplicable, Phase
from kdbench.testing import check_method
from kdbench_methods._entries_boundary import METHODS
from kdbench_methods.bss import (
    BSS,
    boundary_attack,
    choose,
    disagreement,
    draw_target,
    schedule,
    soft_cross_entropy,
)
from kdbench_methods.rco import RCO, next_anchor

ROWS = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)


def softmax(z, axis=1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


class TestSoftCrossEntropy:
    def test_golden(self):
        z = pair_of_logits()
        assert float(soft_cross_entropy(z.s, z.t, 3.0)) == pytest.approx(1.0350566, abs=1e-6)

    def test_against_numpy_with_weights(self):
        rng = np.random.default_rng(0)
        s, t, w = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), np.array([1.0, 0, 1, 1, 0])
        each = -(softmax(t / 2) * np.log(softmax(s / 2))).sum(1)
        got = soft_cross_entropy(torch.tensor(s), torch.tensor(t), 2.0, torch.tensor(w))
        assert float(got) == pytest.approx((w * each).sum() / 3, rel=1e-12)
        plain = soft_cross_entropy(torch.tensor(s), torch.tensor(t), 2.0)
        assert float(plain) == pytest.approx(each.mean(), rel=1e-12)

    def test_no_weight_gives_zero_and_no_gradient(self):
        s = torch.randn(3, 4, requires_grad=True)
        loss = soft_cross_entropy(s, torch.randn(3, 4), 3.0, torch.zeros(3))
        loss.backward()
        assert float(loss.detach()) == 0
        assert float(s.grad.abs().sum()) == 0

    def test_gradient(self):
        torch.manual_seed(0)
        s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        t = torch.randn(3, 4, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, t), (s,))

    def test_half_precision_does_not_overflow(self):
        big = torch.tensor([[6e4, -6e4, 0]], dtype=torch.float16)
        assert torch.isfinite(soft_cross_entropy(big, -big))


class TestChoice:
    def test_schedules(self):
        assert [schedule(e, 80, 4, 1, 1.0) for e in (0, 40, 80)] == pytest.approx([4, 2.5, 1])
        assert [schedule(e, 80, 2, 0, 0.75) for e in (0, 30, 60, 80)] == pytest.approx([2, 1, 0, 0])
        method = BSS()
        assert method.weights(0, 80) == pytest.approx((1 + 3 * (1 - 1 / 80), 2 * (1 - 4 / 240)))
        assert method.weights(59, 80)[1] == 0

    def test_disagreement_against_numpy(self):
        rng = np.random.default_rng(1)
        s, t, y = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])
        gap = (softmax(t) - softmax(s)) ** 2
        gap[np.arange(4), y] = 0
        got = disagreement(torch.tensor(s), torch.tensor(t), torch.tensor(y))
        assert got.numpy() == pytest.approx(gap.sum(1), rel=1e-12)

    def test_targets_are_drawn_by_probability_and_never_the_base(self):
        zt = torch.tensor([[5.0, math.log(1), math.log(3), -torch.inf]]).repeat(8000, 1)
        target = draw_target(zt, torch.zeros(8000, dtype=torch.int64), torch.Generator().manual_seed(0))
        share = target.bincount(minlength=4) / 8000
        assert share.tolist() == pytest.approx([0, 0.25, 0.75, 0], abs=0.02)

    def test_a_sure_teacher_still_has_a_target(self):
        zt = torch.tensor([[1e4, -3e4, 0.0, -1e3]])
        assert int(draw_target(zt, torch.tensor([0]), torch.Generator().manual_seed(0))) == 2

    def test_the_largest_scores_among_the_eligible(self):
        score = torch.tensor([5.0, 1, 4, 3, 2])
        eligible = torch.tensor([False, True, True, True, True])
        index, counts = choose(score, eligible, 3)
        assert index.tolist() == [2, 3, 4]
        assert counts.tolist() == [True] * 3

    def test_too_few_are_repeated_without_weight(self):
        index, counts = choose(torch.tensor([5.0, 1, 4]), torch.tensor([False, True, True]), 3)
        assert index.tolist() == [2, 1, 2]
        assert counts.tolist() == [True, True, False]

    @pytest.mark.parametrize("eligible", [[False] * 3, [True, False, False]])
    def test_fewer_than_two_do_not_count(self, eligible):
        index, counts = choose(torch.tensor([5.0, 1, 4]), torch.tensor(eligible), 2)
        assert len(set(index.tolist())) == 2
        assert not counts.any()


def linear(x):
    return x @ ROWS.to(x.dtype).T


class TestAttack:
    def attack(self, x, base, target, **kw):
        x = torch.tensor(x, dtype=torch.float64)
        return boundary_attack(linear, x, torch.tensor(base), torch.tensor(target), **kw)

    def test_golden_step(self):
        moved = self.attack([[2.0, 1.0]], [0], [1], steps=1)
        assert moved.flatten().tolist() == pytest.approx([1.787847, 1.212153], abs=1e-6)

    def test_against_numpy(self):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(6, 2)), ROWS.numpy()
        base, target = (x @ w.T).argmax(1), np.array([(b + 1) % 3 for b in (x @ w.T).argmax(1)])
        want = x.copy()
        for n, (b, k) in enumerate(zip(base, target, strict=True)):
            for _ in range(4):
                z = w @ want[n]
                if z.argmax() != b:
                    break
                g = w[k] - w[b]
                want[n] = np.clip(want[n] + 0.5 * (z[b] - z[k] + 1e-4) * g / np.linalg.norm(g), -1.5, 1.5)
        got = self.attack(x, base, target, steps=4, step_size=0.5, low=-1.5, high=1.5)
        assert got.numpy() == pytest.approx(want, rel=1e-10)

    def test_moves_over_the_boundary_and_rests_there(self):
        few = self.attack([[2.0, 1.0]], [0], [1], steps=30, step_size=0.8)
        assert int(linear(few).argmax()) == 1
        more = self.attack([[2.0, 1.0]], [0], [1], steps=60, step_size=0.8)
        assert torch.equal(few, more)

    def test_pairwise_lands_on_the_boundary_of_a_linear_network_in_one_step(self):
        x = [[2.0, 1.0], [2.0, 1.0]]
        moved = self.attack(x, [0, 0], [1, 2], steps=1, step_size=1.0, pairwise=True, low=-9.0, high=9.0)
        z = linear(moved)
        assert (z[:, 0] - z[[0, 1], [1, 2]]).tolist() == pytest.approx([-1e-4, -1e-4], abs=1e-9)
        # for the second one, class 1 is the largest by now; it rests all the same
        again = self.attack(moved.tolist(), [0, 0], [1, 2], steps=3, pairwise=True, low=-9.0, high=9.0)
        assert torch.equal(moved, again)

    def test_bounds_per_channel_and_what_may_not_move(self):
        x = torch.full((2, 3, 2, 2), 0.5)
        bound = torch.tensor([0.5, 0.6, 0.7]).view(1, -1, 1, 1)
        weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
        moved = boundary_attack(
            lambda x: x.flatten(1) @ weight.T,
            x,
            (x.flatten(1) @ weight.T).argmax(1),
            (x.flatten(1) @ weight.T).argmin(1),
            step_size=5.0,
            low=-bound,
            high=bound,
            active=torch.tensor([True, False]),
        )
        assert torch.equal(moved[1], x[1])
        assert (moved[0].abs() <= bound[0]).all()
        assert not torch.equal(moved[0], x[0])

    def test_a_flat_network_and_no_grad_outside(self):
        x = torch.ones(2, 3)
        with torch.no_grad():
            moved = boundary_attack(lambda x: x * 0, x, torch.tensor([0, 0]), torch.tensor([1, 2]))
        assert torch.equal(moved, x)
        assert not moved.requires_grad


def similar(seed):
    """A network whose logits differ a little from those of net(0), and whose classes vary."""
    made = net(0)
    with torch.no_grad():
        made.head.weight.mul_(8).add_(torch.randn(made.head.weight.shape, generator=_seeded(seed)) * 0.3)
        made.head.bias.sub_(made.eval()(batch(64, seed=3).x).mean(0))
    return made


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


class TestBSS:
    def make(self, **kw):
        run = FakeRun(similar(0), similar(1))
        run.phase_epochs = 4
        method = BSS(BSS.Params(**kw))
        return run, method, start(method, run)

    def agreeing_batch(self, run):
        """A batch that student and teacher classify as labelled."""
        b = batch(64, seed=3)
        run.student.net.eval()
        s, t = run.student(b.x).logits.argmax(1), run.teach(run.teacher, b.x).logits.argmax(1)
        keep = s == t
        assert keep.sum() >= 16
        return Batch(b.x[keep], s[keep])

    def test_bounds_of_the_data_and_of_the_paper(self):
        _, method, _ = self.make()
        assert method.low.flatten().tolist() == [-1, -1, -1]
        _, method, _ = self.make(**BSS.presets["paper"])
        assert method.high.flatten().tolist() == [2.5] * 3
        assert not method.state_dict()

    def test_samples(self):
        run, method, _ = self.make(attack_share=0.5, clip=10.0, step_size=20.0)
        b = self.agreeing_batch(run)
        n = len(b.x)
        out = run.student(b.x), run.teach(run.teacher, b.x)
        x, counts = method.boundary_samples(*out, b, run)
        assert x.shape[0] == round(0.5 * n)
        assert counts.all()
        flipped = run.teach(run.teacher, x).logits.argmax(1)
        top = disagreement(out[0].logits, out[1].logits, b.y).argsort(descending=True)[: len(x)]
        assert (flipped != b.y[top]).double().mean() > 0.5

    def test_the_third_term_ends_with_its_share(self):
        run, method, (phase,) = self.make()
        for epoch, expected in ((0, {"task", "kd", "bss"}), (2, {"task", "kd"}), (3, {"task", "kd"})):
            run.epoch = epoch
            assert set(train_phase(method, phase, run, steps=1)[0]) == expected

    def test_nothing_right_costs_nothing(self):
        run, method, _ = self.make()
        b = self.agreeing_batch(run)
        wrong = Batch(b.x, (b.y + 1) % CLASSES)
        parts = method.loss(run.student(b.x), [run.teach(run.teacher, b.x)], wrong, run)
        assert float(parts["bss"].detach()) == 0
        assert float(run.logged[-1]["bss_samples"]) == 0

    def test_the_teacher_keeps_no_gradient(self):
        run, method, (phase,) = self.make()
        before = copy_state(run.teacher.net)
        train_phase(method, phase, run)
        assert same_state(copy_state(run.teacher.net), before)
        assert all(p.grad is None for p in run.teacher.net.parameters())

    def test_other_tasks_are_refused(self):
        run = FakeRun(net(0), net(1))
        run.task.kind = "continuous"
        with pytest.raises(NotApplicable, match="class logits"):
            start(BSS(), run)

    @pytest.mark.parametrize(
        "bad", [{"temperature": 0}, {"attack_share": 1.5}, {"attack_steps": 0}, {"clip": 0}, {"bss_share": 0}]
    )
    def test_values_out_of_bounds_are_refused(self, bad):
        with pytest.raises(ValidationError):
            BSS.Params(**bad)

    def test_entry(self):
        (entry,) = METHODS
        assert (entry.name, entry.needs) == ("bss", BSS.needs)
        for preset in BSS.presets.values():
            assert BSS.Params(**preset).model_dump().items() >= dict(preset).items()
        assert all(f.description for f in BSS.Params.model_fields.values())


class TestGreedy:
    def test_the_furthest_within_the_threshold(self):
        hardness = [1.0, 1.2, 1.4, 2.0, 1.6].__getitem__
        assert next_anchor(hardness, 0, 4, 1.5) == 2
        assert next_anchor(hardness, 0, 4, 1.6) == 4  # a later one may be easier again
        assert next_anchor(hardness, 0, 4, 1.0) == 1  # at least one further
        assert next_anchor(hardness, 3, 4, 0.1) == next_anchor(hardness, 4, 4, 0.1) == 4

    def test_asks_from_the_end_and_no_more_than_needed(self):
        asked = []
        next_anchor(lambda j: asked.append(j) or 1.0, 1, 6, 1.0)
        assert asked == [1, 6]

    def make(self, epochs=4, **kw):
        run = FakeRun(net(0), net(1))
        run.phase_epochs = epochs
        run.split = lambda name: {"val": [batch(8, seed=5), batch(4, seed=6)]}[name]
        states = [copy_state(net(10 + i)) for i in range(5)]
        run.route = [lambda s=s: s for s in states]
        method = RCO(RCO.Params(strategy="greedy", candidates=5, **kw))
        return run, method, start(method, run), states

    def walk(self, run, method):
        seen = []
        for epoch in range(run.phase_epochs):
            run.epoch = epoch
            method.on_epoch_start(run)
            seen.append(int(method.chosen))
        return seen

    def test_from_the_first_to_the_last(self):
        run, method, _, states = self.make(anchors=4, delta=1e-9)
        assert self.walk(run, method) == [0, 1, 2, 4]
        assert same_state(copy_state(run.teacher.net), states[4])
        run, method, _, _ = self.make(anchors=4, delta=1e9)
        assert self.walk(run, method) == [0, 4, 4, 4]

    def test_hardness_is_the_mean_divergence_on_val(self):
        run, method, _, states = self.make()
        run.student.net.train()
        flags = [m.training for m in run.student.net.modules()]
        student = copy_state(run.student.net)
        got = method.hardness(3, run)
        assert [m.training for m in run.student.net.modules()] == flags
        assert same_state(copy_state(run.student.net), student)
        run.student.net.eval()
        run.teacher.net.load_state_dict(states[3])
        x = torch.cat([b.x for b in run.split("val")])
        with torch.no_grad():
            s, t = run.student(x).logits.double().numpy(), run.teacher(x).logits.double().numpy()
        kl = (softmax(t) * (np.log(softmax(t)) - np.log(softmax(s)))).sum(1).mean()
        assert got == pytest.approx(kl, rel=1e-5)

    def test_a_resumed_run_keeps_its_choice(self):
        run, method, _, states = self.make(anchors=2, epochs=6, delta=1e-9)
        run.epoch = 3
        method.stage.fill_(1)
        method.chosen.fill_(2)
        resumed = self.make(anchors=2, epochs=6)[1]
        resumed.load_state_dict(method.state_dict())
        resumed.on_phase_start(Phase(), run)
        resumed.on_epoch_start(run)
        assert same_state(copy_state(run.teacher.net), states[2])

    def test_needs(self):
        params = RCO.Params(strategy="greedy", anchors=3, candidates=7)
        assert RCO.requires(params).route == 7
        assert RCO.requires(RCO.Params(**RCO.presets["greedy"])).route == 10
        with pytest.raises(ValidationError, match="candidates"):
            RCO.Params(strategy="greedy", anchors=4, candidates=3)
        with pytest.raises(ValidationError):
            RCO.Params(delta=0)

    def test_without_a_validation_split(self):
        run = FakeRun(net(0), net(1))
        run.split = lambda name: {}[name]
        with pytest.raises(NotApplicable, match="validation split"):
            start(RCO(RCO.Params(strategy="greedy")), run)
        run.probing = True
        start(RCO(RCO.Params(strategy="greedy")), run)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("test_resnet", "test_resnet"), ("test_resnet", "test_vit"), ("test_vit", "test_resnet")],
)
@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (BSS, {"attack_steps": 3}),
        (RCO, {}),
        (RCO, {"strategy": "greedy", "anchors": 3, "candidates": 5, "delta": 0.01}),
    ],
    ids=["bss", "rco", "rco-greedy"],
)
def test_conformance(cls, params, teacher, student):
    report = check_method(
        cls, params=params, teacher=f"timm:{teacher}", student=f"timm:{student}", only=ON_PAIRS
    )
    assert report.failures() == []
