"""timm-logit, timm-feature, timm-token: timm's tasks give the losses that their formulas say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeHandle, FakeRun, batch, copy_state, net, same_state, start, train_phase

from kdbench.api import NotApplicable, Out
from kdbench_methods._timm import Port
from kdbench_methods.timm_feature import TimmFeature
from kdbench_methods.timm_logit import TimmLogit
from kdbench_methods.timm_token import TimmToken


class Pooling(FakeHandle):
    """A handle that also gives what enters the head."""

    def __call__(self, x, taps=None):
        _, feats = self.net.run_stages(self.net.stem(x))
        pooled = feats[len(self.net.stages), "post"].mean((2, 3))
        return Out(self.net.head(pooled), {}, pooled)


def make_run(*widths):
    run = FakeRun(net(0), *(net(1 + i, widths=w) for i, w in enumerate(widths)))
    run.student = run.students["student"] = Pooling("student", run.student.net)
    run.teachers = [Pooling(t.name, t.net) for t in run.teachers]
    return run


def outputs(run):
    b = batch(8)
    with torch.no_grad():
        run.student.net.train()
        S = run.student(b.x)
        return b, S, run.teach(run.teacher, b.x)


class TestLogit:
    def test_loss_is_kds(self):
        run, method = make_run((5, 7, 9)), TimmLogit(TimmLogit.Params(temperature=3.0, task_loss_weight=0.3))
        (phase,) = start(method, run)
        b, S, T = outputs(run)
        (parts,) = train_phase(method, phase, run, steps=1)
        assert parts["task"] == pytest.approx(0.3 * float(run.task.loss(S, b)), rel=1e-5)
        assert parts["kd"] == pytest.approx(0.7 * float(run.task.divergence(S, T, 3.0)), rel=1e-5)

    def test_teachers_stay_as_they_are(self):
        run, method = make_run((5, 7, 9)), TimmLogit()
        (phase,) = start(method, run)
        before = copy_state(run.teacher.net)
        train_phase(method, phase, run)
        assert same_state(before, copy_state(run.teacher.net))
        assert not any(p.requires_grad for p in run.teacher.net.parameters())

    def test_the_method_owns_neither_network(self):
        run, method = make_run((5, 7, 9)), TimmLogit()
        start(method, run)
        assert list(method.parameters()) == []
        assert method.state_dict() == {}

    def test_the_teacher_gets_the_students_pixels(self):
        run, method = make_run((5, 7, 9)), TimmLogit()
        start(method, run)
        x = torch.randn(2, 3, 16, 16)
        guide = method.timm_task.teacher
        assert guide.normalize_input(x, method.timm_task.student_mean, method.timm_task.student_std) is x


class TestFeature:
    def test_projection_only_where_widths_differ(self):
        for widths, count in (((5, 7, 9), 2), ((4, 6, 8), 0)):
            run, method = make_run(widths), TimmFeature()
            start(method, run)
            assert len(list(method.parameters())) == count

    def test_loss(self):
        run, method = make_run((5, 7, 9)), TimmFeature(TimmFeature.Params(distill_loss_weight=5.0))
        (phase,) = start(method, run)
        b, S, T = outputs(run)
        projection = method.timm_task.trainable_module.projection
        with torch.no_grad():
            want = 5 * F.mse_loss(projection(S.pooled), T.pooled)
        before = projection.weight.detach().clone()
        (parts,) = train_phase(method, phase, run, steps=1)
        assert parts["task"] == pytest.approx(float(run.task.loss(S, b)), rel=1e-5)
        assert parts["kd"] == pytest.approx(float(want), rel=1e-5)
        assert not torch.equal(projection.weight, before)

    def test_networks_without_a_classifier_are_not_applicable(self):
        run = make_run((5, 7, 9))
        run.teacher.num_features = 0
        with pytest.raises(NotApplicable, match="teacher0"):
            TimmFeature().setup(run)


class TwoHeads(torch.nn.Module):
    """A TinyNet with a second head, after DeiT's distilled networks."""

    distilled_training = False

    def __init__(self):
        super().__init__()
        self.body, self.head_dist = net(0), torch.nn.Linear(8, 4)

    def set_distilled_training(self, enable=True):
        self.distilled_training = enable

    def forward(self, x):
        _, feats = self.body.run_stages(self.body.stem(x))
        pooled = feats[3, "post"].mean((2, 3))
        a, b = self.body.head(pooled), self.head_dist(pooled)
        return (a, b) if self.distilled_training and self.training else (a + b) / 2


class HeadsHandle:
    def __init__(self, module):
        self.name, self.net, self.num_features = "student", module, 8

    def want(self, *taps):
        pass

    def __call__(self, x, taps=None):
        return Out(self.net(x))


class TestToken:
    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_loss(self, kind):
        run = make_run((5, 7, 9))
        torch.manual_seed(0)
        run.student = run.students["student"] = HeadsHandle(TwoHeads())
        method = TimmToken(TimmToken.Params(distill_type=kind, temperature=2.0, task_loss_weight=0.4))
        (phase,) = start(method, run)
        b = batch(8)
        with torch.no_grad():
            main, dist = run.student.net.train()(b.x)
            T = run.teach(run.teacher, b.x)
        soft = run.task.divergence(Out(dist), T, 2.0)
        want = soft if kind == "soft" else F.cross_entropy(dist, T.logits.argmax(1))
        (parts,) = train_phase(method, phase, run, steps=1)
        assert parts["task"] == pytest.approx(0.4 * float(F.cross_entropy(main, b.y)), rel=1e-5)
        assert parts["kd"] == pytest.approx(0.6 * float(want), rel=1e-5)
        assert run.student.net.eval()(b.x).shape == (8, 4)

    def test_students_with_one_head_are_not_applicable(self):
        with pytest.raises(NotApplicable, match="distillation head"):
            TimmToken().setup(make_run((5, 7, 9)))


def test_a_port_widens_half_precision():
    run = FakeRun(net(0), net(1), amp=True)
    port = Port(run.teacher, run, teaches=True)
    out = port(torch.randn(2, 3, 16, 16))
    assert out.dtype == torch.float32
    assert not out.requires_grad
