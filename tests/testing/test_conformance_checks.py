"""The conformance suite passes what is right and catches each mistake by the check meant for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.api import Batch, KdbenchError, Method, Needs, NotApplicable, Opt, Out, Phase, Tap
from kdbench.registry import Registry
from kdbench.testing import check_method
from kdbench.testing.conformance import CHECKS, Report
from kdbench_methods import METHODS

STUDENT = Tap(-1)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_first_party_methods_conform(name: str, registry: Registry) -> None:
    # token distillation is for students with a head of their own for the teacher
    student = "timm:deit_tiny_distilled_patch16_224" if name == "timm-token" else "timm:test_resnet"
    report = check_method(name, registry=registry, student=student)
    assert report.failures() == []
    assert report.passed
    assert [c.name for c in report.checks] == [*(name for name, _, _ in CHECKS), "needs"]


class Right(Method):
    """A feature method that does everything right; the broken ones below differ in one point."""

    taps = {"student": [STUDENT], "teacher": [STUDENT]}

    def setup(self, run: Any) -> None:
        cs, ct = run.student.shape(STUDENT)[1], run.teacher.shape(STUDENT)[1]
        self.connector = nn.Conv2d(cs, ct, 1)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        gap = self.connector(S.feats[STUDENT].float()) - T[0].feats[STUDENT].float()
        return {"task": run.task.loss(S, batch), "hint": gap.square().mean()}


def failed(report: Report) -> set[str]:
    return {c.name for c in report.checks if not c.passed}


def seen(report: Report, name: str) -> str:
    return next(c.seen for c in report.checks if c.name == name)


def test_a_right_class_passes(registry: Registry) -> None:
    report = check_method(Right, registry=registry)
    assert report.failures() == []
    assert [c.name for c in report.checks] == [name for name, _, _ in CHECKS]


class TrainsTeacher(Right):
    """Its teacher's BatchNorm statistics drift."""

    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        run.teacher.net.train()
        return super().step(batch, run)


class UnfreezesTeacher(Right):
    def on_epoch_start(self, run: Any) -> None:
        run.teacher.net.requires_grad_(True)


class MovesTeacher(Right):
    def on_epoch_start(self, run: Any) -> None:
        with torch.no_grad():
            next(iter(run.teacher.net.parameters())).mul_(0.99)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (TrainsTeacher, "running_mean' of the teacher changed"),
        (UnfreezesTeacher, "asks for, a gradient"),
        (MovesTeacher, "weight' of the teacher changed"),
    ],
)
def test_touched_teacher(cls: type[Method], words: str, registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert "teacher untouched" in failed(report)
    assert words in seen(report, "teacher untouched")


class HidesParameter(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.scales = [nn.Parameter(torch.ones(()))]


class HidesModule(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.more = [nn.Linear(2, 2)]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (HidesParameter, "self.scales holds a parameter that the module does not register"),
        (HidesModule, "self.more holds a module in a plain list"),
    ],
)
def test_unregistered_state(cls: type[Method], words: str, registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert failed(report) == {"registered state"}
    assert seen(report, "registered state") == words


class ForgetsConnector(Right):
    """Its connector is in no optimizer."""

    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase(optimizers={"s": Opt((run.student.net,))})]


class DetachesHint(Right):
    """The connector's part of the loss has no gradient."""

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {k: v.detach() if k == "hint" else v for k, v in super().loss(S, T, batch, run).items()}


class ForgetsStudent(Right):
    """Only the connector learns."""

    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase(optimizers={"g": Opt((self.connector,))})]


class NeverOptimizes(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        teachers = [run.teach(run.teacher, batch.x)]
        return self.loss(run.student(batch.x), teachers, batch, run)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (ForgetsConnector, "'connector.weight' is in no phase's optimizer"),
        (DetachesHint, "'connector.weight' never received a gradient"),
        (ForgetsStudent, "no parameter of the student received a gradient"),
        (NeverOptimizes, "run.optimize() was never called"),
    ],
)
def test_parameters_that_do_not_learn(cls: type[Method], words: str, registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert failed(report) == {"parameters learn"}
    assert seen(report, "parameters learn") == words


class DetachesAll(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {k: v.detach() for k, v in super().loss(S, T, batch, run).items()}


def test_wholly_detached_loss(registry: Registry) -> None:
    report = check_method(DetachesAll, registry=registry)
    assert {"finite losses", "parameters learn"} <= failed(report)
    assert "does not require grad" in seen(report, "parameters learn")


class LeavesHook(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        run.student.net.conv1.register_forward_hook(lambda module, args, out: None)


class UsesAuxHook(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        run.student.aux_hook(run.student.net.conv1, lambda module, args, out: None)


def test_leftover_hook(registry: Registry) -> None:
    report = check_method(LeavesHook, registry=registry)
    assert failed(report) == {"no hooks left"}
    assert seen(report, "no hooks left") == "a hook is left on 'conv1'"
    assert check_method(UsesAuxHook, registry=registry).passed


class LosesItsMind(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {**super().loss(S, T, batch, run), "nan": (S.logits - S.logits).mean() / 0}


def test_loss_that_is_not_a_number(registry: Registry) -> None:
    report = check_method(LosesItsMind, registry=registry)
    assert "finite losses" in failed(report)
    assert "diverged at step 1 (epoch 1 of phase 'main'): term 'nan'" in seen(report, "finite losses")


class ReturnsNothing(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        super().step(batch, run)
        return {"hint": None}  # type: ignore[dict-item]


def test_step_that_returns_no_tensor(registry: Registry) -> None:
    assert "finite losses" in failed(check_method(ReturnsNothing, registry=registry))


class NeedsEvenBatches(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        halves = S.logits.reshape(2, len(batch.x) // 2, -1)
        return {**super().loss(S, T, batch, run), "pairs": (halves[0] - halves[1]).square().mean()}


class NeedsTheFirstSize(Right):
    """Assumes that all batches are as large as the first."""

    def on_phase_start(self, phase: Phase, run: Any) -> None:
        self.size = 0

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        self.size = self.size or len(batch.x)
        shifted = S.logits + torch.ones(self.size, 1)
        return {**super().loss(S, T, batch, run), "shifted": shifted.square().mean()}


@pytest.mark.parametrize("cls", [NeedsEvenBatches, NeedsTheFirstSize])
def test_odd_batch(cls: type[Method], registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert failed(report) == {"odd batches"}
    assert "RuntimeError" in seen(report, "odd batches")


class DeploysConnector(Right):
    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"both": Tail(run.student.net, self.connector)}


class Tail(nn.Module):
    def __init__(self, net: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.net, self.connector = net, connector

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DeclaresIt(DeploysConnector):
    deploys_extra = True


class DeploysFeatures(Right):
    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"features": nn.Flatten()}


def test_deployed_connector(registry: Registry) -> None:
    report = check_method(DeploysConnector, registry=registry)
    assert failed(report) == {"deploy"}
    assert seen(report, "deploy") == "deployable 'both' contains modules of the method"
    assert check_method(DeclaresIt, registry=registry).passed


def test_deployable_that_is_no_classifier(registry: Registry) -> None:
    assert "deploy" in failed(check_method(DeploysFeatures, registry=registry))


class Reseeds(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        torch.manual_seed(42)
        return super().step(batch, run)


def test_reseeding_the_global_generator(registry: Registry) -> None:
    report = check_method(Reseeds, registry=registry)
    assert failed(report) == {"global RNG"}
    assert seen(report, "global RNG") == "training calls torch.manual_seed(42)"


class KeepsAttribute(Right):
    """A running mean in a Python attribute: gone after a resume."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.mean = 0.0

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = dict(super().loss(S, T, batch, run))
        self.mean = 0.5 * self.mean + 0.5 * float(parts["hint"].detach())
        return parts | {"scaled": parts["hint"] * self.mean}


class KeepsBuffer(Right):
    """The same in a buffer."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = dict(super().loss(S, T, batch, run))
        self.mean = 0.5 * self.mean + 0.5 * parts["hint"].detach()
        return parts | {"scaled": parts["hint"] * self.mean}


class OwnGenerator(Right):
    """Draws from a generator that no checkpoint knows."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.generator = torch.Generator().manual_seed(0)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        noise = torch.rand((), generator=self.generator)
        return {k: v * noise for k, v in super().loss(S, T, batch, run).items()}


class RunGenerator(Right):
    """Draws from the run's."""

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        noise = torch.rand((), generator=run.rng)
        return {k: v * noise for k, v in super().loss(S, T, batch, run).items()}


@pytest.mark.parametrize("cls", [KeepsAttribute, OwnGenerator])
def test_state_that_a_resume_loses(cls: type[Method], registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert failed(report) == {"resume"}
    assert "differs after a cut and a resume" in seen(report, "resume")


@pytest.mark.parametrize("cls", [KeepsBuffer, RunGenerator])
def test_state_that_a_resume_keeps(cls: type[Method], registry: Registry) -> None:
    assert check_method(cls, registry=registry).failures() == []


class FullOnly(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        mixed = torch.mm(S.logits, torch.eye(5))  # bfloat16 times float32
        return {**super().loss(S, T, batch, run), "mixed": mixed.square().mean()}


def test_loss_that_cannot_take_bfloat16(registry: Registry) -> None:
    report = check_method(FullOnly, registry=registry)
    assert failed(report) == {"autocast"}
    assert "RuntimeError" in seen(report, "autocast")


class RaisesInSetup(Right):
    def setup(self, run: Any) -> None:
        raise KeyError("layer9")


class Refuses(Right):
    def setup(self, run: Any) -> None:
        raise NotApplicable("needs moonlight")


def test_setup_that_fails_is_one_check(registry: Registry) -> None:
    report = check_method(RaisesInSetup, registry=registry)
    assert [c.name for c in report.checks] == ["setup"]
    assert not report.passed
    assert "KeyError: 'layer9'" in report.failures()[0]


def test_refused_pair_is_an_error_of_the_user(registry: Registry) -> None:
    with pytest.raises(KdbenchError, match=r"'Refuses' does not apply to .*: needs moonlight"):
        check_method(Refuses, registry=registry)


def test_declared_needs_are_honoured(registry: Registry) -> None:
    class Picky(Right):
        needs = Needs(teacher_bn=True)

    with pytest.raises(KdbenchError, match="needs a teacher with BatchNorm statistics"):
        check_method(Picky, teacher="timm:test_convnext", registry=registry)


def test_unknown_method_and_bad_parameters(registry: Registry) -> None:
    with pytest.raises(KdbenchError, match=r"unknown method 'vanila' \(did you mean 'vanilla'"):
        check_method("vanila", registry=registry)
    with pytest.raises(KdbenchError, match=r"alhpa: unknown.*'alpha'"):
        check_method("kd", params={"alhpa": 1}, registry=registry)


def test_fixture_of_the_pytest_plugin(request: pytest.FixtureRequest, registry: Registry) -> None:
    check = request.getfixturevalue("check_method")
    assert check(Right, registry=registry).passed
    with pytest.raises(pytest.fail.Exception, match="method 'LeavesHook':\nno hooks left: a hook is left"):
        check(LeavesHook, registry=registry)
