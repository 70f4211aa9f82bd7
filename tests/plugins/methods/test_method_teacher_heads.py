"""simkd, srrl, ofa: methods that use the teacher's classifier, or classifiers on the student's stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_run import CLASSES, FakeRun, batch, copy_state, net, pair_of_logits, same_state, start, train_phase
from pooled_run import PooledRun, open_net
from torch import nn

from kdbench.api import NotApplicable, Tap
from kdbench_methods._feature_tools import teacher_head
from kdbench_methods.ofa import OFA, ExitHead, ofa_loss
from kdbench_methods.simkd import SimKD, feature_loss, projector
from kdbench_methods.srrl import SRRL, feature_matching, softmax_regression


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def signed_teacher(seed=1):
    made = open_net(seed, widths=(5, 7, 9))
    plain = made.run_stages

    def run_stages(x, first=0):
        _, feats = plain(x, first)
        vector = nn.functional.layer_norm(feats[3, "post"].mean((2, 3)), (9,))
        made.vector = vector
        return made.head(vector), feats

    made.run_stages = run_stages
    return made


def signed_run():
    """A run with that teacher; its pooled feature is the vector."""
    run = PooledRun(net(0), signed_teacher())
    handle = run.teacher
    plain = type(handle).__call__

    class Handle(type(handle)):
        def __call__(self, x, taps=None):
            out = plain(self, x, taps)
            out.pooled = self.net.vector
            return out

    handle.__class__ = Handle
    return run


class TestTeacherHead:
    def test_average_of_the_last_map(self):
        run = PooledRun(net(0), open_net(1, widths=(5, 7, 9)))
        head = teacher_head(run, "x")
        assert (head.width, head.averages, head.nonnegative) == (9, True, True)
        assert head.classifier is not run.teacher.net.head
        assert not any(p.requires_grad for p in head.classifier.parameters())
        assert run.teacher.wanted == []

    def test_another_vector(self):
        head = teacher_head(signed_run(), "x")
        assert (head.averages, head.nonnegative) == (False, False)

    def test_no_classifier_to_see(self):
        with pytest.raises(NotApplicable, match="not a single linear layer"):
            teacher_head(PooledRun(net(0), net(1)), "x")

    def test_logits_that_are_not_the_classifiers(self):
        run = PooledRun(net(0), open_net(1))
        run.teacher.net.get_classifier = lambda: nn.Linear(8, CLASSES)
        with pytest.raises(NotApplicable, match="classifier's output alone"):
            teacher_head(run, "x")


class TestSimKD:
    def test_loss_against_numpy(self):
        s, t = draws(2, 3, 4, 4), draws(2, 3, 4, 4, seed=1)
        assert float(feature_loss(torch.tensor(s), torch.tensor(t))) == pytest.approx(((s - t) ** 2).mean())
        x = torch.tensor(s, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: feature_loss(v, torch.tensor(t)), (x,))
        big = torch.full((1, 1, 2, 2), 6e4, dtype=torch.float16)
        assert torch.isfinite(feature_loss(big, -big))

    def test_projector_of_the_official_code(self):
        made = projector(4, 10, 2)
        convs = [m for m in made if isinstance(m, nn.Conv2d)]
        assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs] == [
            (4, 5, 1),
            (5, 5, 3),
            (5, 10, 1),
        ]
        assert isinstance(made[-1], nn.ReLU)
        assert isinstance(projector(4, 10, relu=False)[-1], nn.BatchNorm2d)
        assert projector(4, 1, 2)[0].out_channels == 1

    @pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2), (4, 2, 2)])
    def test_training_moves_body_and_projector_only(self, strides):
        run = PooledRun(net(0), open_net(1, widths=(5, 7, 9), strides=strides))
        method = SimKD(SimKD.Params())
        (phase,) = start(method, run)
        head, teacher = copy_state(run.student.net.head), copy_state(run.teacher.net)
        own, classifier = copy_state(method.projector), copy_state(method.classifier)
        rows = train_phase(method, phase, run, steps=5, lr=0.1)
        assert set(rows[0]) == {"simkd"}
        assert rows[-1]["simkd"] < rows[0]["simkd"]
        assert same_state(copy_state(run.student.net.head), head)
        assert same_state(copy_state(run.teacher.net), teacher)
        assert same_state(copy_state(method.classifier), classifier)
        assert not same_state(copy_state(method.projector), own)
        assert 0 <= float(run.logged[0]["agreement"]) <= 1

    def test_deploys_projector_and_the_teachers_classifier(self):
        run = PooledRun(net(0), open_net(1, widths=(5, 7, 9)))
        method = SimKD(SimKD.Params())
        start(method, run)
        (deployed,) = method.deploy(run).values()
        deployed.eval()
        x = batch().x
        with torch.no_grad():
            last = run.student(x, (Tap(3),)).feats[Tap(3)]
            expected = run.teacher.net.head(method.projector(last).mean((2, 3)))
            torch.testing.assert_close(deployed(x), expected)
        held = {id(p) for p in deployed.parameters()}
        own = {id(p) for p in run.student.net.parameters()} - {
            id(p) for p in run.student.net.head.parameters()
        }
        assert held == own | {id(p) for m in (method.projector, method.classifier) for p in m.parameters()}
        assert isinstance(run.student.net.head, nn.Linear)
        assert not {id(p) for p in run.teacher.net.parameters()} & held

    def test_perfect_features_give_the_teachers_logits(self):
        teacher = open_net(1)
        run = PooledRun(teacher, teacher)
        method = SimKD(SimKD.Params())
        start(method, run)
        method.projector = nn.Identity()
        (deployed,) = method.deploy(run).values()
        x = batch().x
        with torch.no_grad():
            torch.testing.assert_close(deployed.eval()(x), teacher(x))

    def test_teachers_with_another_vector(self):
        run = signed_run()
        method = SimKD(SimKD.Params())
        (phase,) = start(method, run)
        assert not isinstance(method.projector[-1], nn.ReLU)
        rows = train_phase(method, phase, run, steps=5, lr=0.1)
        assert rows[-1]["simkd"] < rows[0]["simkd"]

    def test_reads_no_labels(self):
        run = PooledRun(net(0), open_net(1))
        method = SimKD(SimKD.Params())
        start(method, run)
        b = batch()
        b.y = None
        assert set(method.loss(run.student(b.x), [run.teacher(b.x)], b, run)) == {"simkd"}
        assert not SimKD.needs.labels


class TestSRRL:
    def test_losses_against_numpy(self):
        s, t = draws(4, 5), draws(4, 5, seed=1)
        a, b = torch.tensor(s), torch.tensor(t)
        expected = np.mean([((x - y) ** 2).mean() for x, y in zip(s, t, strict=True)])
        assert float(feature_matching(a, b)) == pytest.approx(expected, rel=1e-12)
        assert float(softmax_regression(a, b)) == pytest.approx(((s - t) ** 2).mean(), rel=1e-12)
        for loss in (feature_matching, softmax_regression):
            assert torch.autograd.gradcheck(lambda v, f=loss: f(v, b), (a.clone().requires_grad_(),))

    def test_parts_by_hand(self):
        run = PooledRun(net(0), open_net(1, widths=(5, 7, 9), strides=(1, 2, 2)))
        method = SRRL(SRRL.Params(alpha=2.0, beta=3.0))
        start(method, run)
        b = batch()
        with torch.no_grad():
            S, T = run.student(b.x), run.teach(run.teacher, b.x)
            method.eval()
            parts = method.loss(S, [T], b, run)
            v = method.connector(S.feats[Tap(-1)]).mean((2, 3))
            z = run.teacher.net.head(v)
        assert float(parts["features"]) == pytest.approx(2 * float((v - T.pooled).square().mean()), rel=1e-5)
        assert float(parts["regression"]) == pytest.approx(
            3 * float((z - T.logits).square().mean()), rel=1e-5
        )

    def test_the_classifier_stays_and_the_rest_learns(self):
        run = PooledRun(net(0), open_net(1, widths=(5, 7, 9)))
        method = SRRL(SRRL.Params())
        (phase,) = start(method, run)
        classifier, own = copy_state(method.classifier), copy_state(method.connector)
        train_phase(method, phase, run)
        assert same_state(copy_state(method.classifier), classifier)
        assert not same_state(copy_state(method.connector), own)
        assert method.deploy(run) == {"student": run.student.net}

    @pytest.mark.parametrize(("make", "relu"), [(signed_run, False), (None, True)])
    def test_relu_only_for_features_without_sign(self, make, relu):
        run = make() if make else PooledRun(net(0), open_net(1))
        method = SRRL(SRRL.Params(alpha=0))
        (phase,) = start(method, run)
        assert isinstance(method.connector[-1], nn.ReLU) is relu
        assert set(train_phase(method, phase, run)[0]) == {"task", "regression"}


@pytest.mark.parametrize("cls", [SimKD, SRRL, OFA])
def test_other_kinds_of_output(cls):
    run = PooledRun(net(0), open_net(1))
    run.task.kind = "continuous"
    with pytest.raises(NotApplicable, match="continuous"):
        start(cls(cls.Params()), run)


class TestOFA:
    def test_eps_one_is_the_cross_entropy_with_the_teacher(self):
        z = pair_of_logits()
        expected = -(z.t.softmax(1) * z.s.log_softmax(1)).sum(1).mean()
        assert float(ofa_loss(z.s, z.t, z.y)) == pytest.approx(float(expected), abs=1e-12)

    @pytest.mark.parametrize("eps", [0.8, 1.0, 1.5, 3.0])
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_against_numpy(self, eps, temperature):
        zs, zt, y = draws(5, 7), draws(5, 7, seed=1), np.array([0, 6, 3, 3, 1])
        ps, pt = (np.exp(z / temperature) for z in (zs, zt))
        ps, pt = ps / ps.sum(1, keepdims=True), pt / pt.sum(1, keepdims=True)
        expected = 0.0
        for b in range(5):
            for k in range(7):
                target = (pt[b, k] + 1) ** eps - 1 if k == y[b] else pt[b, k] ** eps
                expected -= target * np.log(ps[b, k]) / 5
        args = [torch.tensor(x) for x in (zs, zt, y)]
        assert float(ofa_loss(*args, eps, temperature)) == pytest.approx(expected, rel=1e-12)

    def test_gradient_and_extremes(self):
        z = pair_of_logits()
        assert torch.autograd.gradcheck(lambda v: ofa_loss(v, z.t, z.y, 1.5), (z.s.requires_grad_(),))
        sure = torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16)
        assert torch.isfinite(ofa_loss(sure, -sure, torch.tensor([0]), 1.5))

    @pytest.mark.parametrize("halvings", [0, 1, 3])
    @pytest.mark.parametrize("side", [1, 5, 8])
    def test_head(self, halvings, side):
        head = ExitHead(4, 20, CLASSES, halvings)
        assert head(torch.randn(3, 4, side, side)).shape == (3, CLASSES)
        assert head.head.in_features == 20

    def test_every_head_learns_and_none_is_deployed(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = OFA(OFA.Params(eps=1.5))
        (phase,) = start(method, run)
        assert len(method.heads) == 3
        assert run.teacher.wanted == []
        before = copy_state(method)
        assert set(train_phase(method, phase, run)[0]) == {"task", "exits", "kd"}
        for name, p in method.named_parameters():
            assert not torch.equal(p, before[name]), name
        assert method.deploy(run) == {"student": run.student.net}

    def test_options(self):
        run = FakeRun(net(0), net(1))
        method = OFA(OFA.Params(stages=1, kd_weight=0))
        (phase,) = start(method, run)
        assert run.student.wanted == [Tap(3)]
        assert set(train_phase(method, phase, run)[0]) == {"task", "exits"}

    def test_student_without_stages(self):
        run = FakeRun(net(0), net(1))
        run.student.stages = ()
        with pytest.raises(NotApplicable, match="no stages"):
            start(OFA(OFA.Params()), run)
