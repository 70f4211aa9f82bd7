"""Methods with one mistake each, and the check that is meant for it; twins that do the same thing right."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, Needs, NotApplicable, Opt, Out, Phase, Tap

LAST = Tap(-1)


class Right(Method):
    """A feature method that does everything right; the broken ones differ in one point."""

    taps = {"student": [LAST], "teacher": [LAST]}

    def setup(self, run: Any) -> None:
        cs, ct = run.student.shape(LAST)[1], run.teacher.shape(LAST)[1]
        self.connector = nn.Conv2d(cs, ct, 1)

    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        s, t = self.connector(S.feats[LAST].float()), T[0].feats[LAST].float()
        return (s.mean((2, 3)) - t.mean((2, 3))).square().mean()

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {"task": run.task.loss(S, batch), "hint": self.hint(S, T)}


@dataclass(frozen=True)
class Mutant:
    """A broken method: `check` is meant for it and sees `words`; `also` fail with it, for the same reason."""

    cls: type[Method]
    check: str
    words: str
    also: frozenset[str]


MUTANTS: list[Mutant] = []
TWINS: list[type[Method]] = [Right]


def caught_by(check: str, words: str, *also: str) -> Callable[[type[Method]], type[Method]]:
    def add(cls: type[Method]) -> type[Method]:
        MUTANTS.append(Mutant(cls, check, words, frozenset(also)))
        return cls

    return add


def twin(cls: type[Method]) -> type[Method]:
    TWINS.append(cls)
    return cls


# --- nothing trains, or not finitely


@caught_by("finite losses", "nan")
class LosesItsMind(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {**super().loss(S, T, batch, run), "nan": (S.logits - S.logits).mean() / 0}


@caught_by("finite losses", "step() must return {name: scalar tensor}; 'hint' is None (")
class ReturnsNothing(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        super().step(batch, run)
        return {"hint": None}  # type: ignore[dict-item]


@caught_by("finite losses", "loss() must return {name: scalar tensor}; it returned a tensor of shape () (")
class ReturnsItsSum(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return sum(super().loss(S, T, batch, run).values())  # type: ignore[return-value]


@caught_by("finite losses", "'hint' is a float (")
class ReturnsFloats(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = super().loss(S, T, batch, run)
        return {**parts, "hint": parts["hint"].item()}  # type: ignore[dict-item]


@caught_by("finite losses", "'hint' has shape (8,): take its mean (")
class ForgetsTheMean(Right):
    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        return (S.logits - T[0].logits).square().mean(1)


@caught_by("finite losses", "run.optimize() takes a scalar tensor, it got shape (8,): take the mean")
class OptimizesPerImage(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        loss = nn.functional.cross_entropy(run.student(batch.x).logits, batch.y, reduction="none")
        run.optimize(loss)
        return {"task": loss.mean()}


@caught_by("finite losses", "was not asked for: call run.student.want(tap) in setup()")
class ForgetsItsTap(Right):
    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        return super().hint(S, T) + S.feats[Tap(0)].mean()


@caught_by("finite losses", "raised SystemExit")
class Exits(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        raise SystemExit("enough")


@caught_by("finite losses", "the loss does not require grad")
class DetachesAll(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {k: v.detach() for k, v in super().loss(S, T, batch, run).items()}


# --- what learns


@caught_by("parameters learn", "'connector.weight' is in no phase's optimizer")
class ForgetsConnector(Right):
    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase(optimizers={"s": Opt((run.student.net,))})]


@caught_by("parameters learn", "loss/hint depends on nothing that learns (detached")
class DetachesHint(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {k: v.detach() if k == "hint" else v for k, v in super().loss(S, T, batch, run).items()}


@caught_by("parameters learn", "'connector.weight' never received a gradient")
class DetachesHintInItsStep(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        parts = self.loss(run.student(batch.x), [run.teach(run.teacher, batch.x)], batch, run)
        run.optimize(parts["task"] + parts["hint"].detach())
        return parts


class MatchesLogits(Method):
    """It has no module that could miss a gradient."""

    def match(self, S: Out, T: Sequence[Out]) -> Tensor:
        return 1 - nn.functional.cosine_similarity(S.logits, T[0].logits).mean()

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {"task": run.task.loss(S, batch), "cosine": self.match(S, T)}


@caught_by("parameters learn", "loss/cosine depends on nothing that learns (detached")
class DetachesItsOnlyTerm(MatchesLogits):
    def match(self, S: Out, T: Sequence[Out]) -> Tensor:
        return super().match(S, T).detach()


@caught_by("parameters learn", "loss/cosine depends on nothing that learns (detached")
class ForgetsGradients(MatchesLogits):
    @torch.no_grad()
    def match(self, S: Out, T: Sequence[Out]) -> Tensor:
        return super().match(S, T)


@twin
class WarmsUp(MatchesLogits):
    """Constants have no gradient: a plain zero in the first epoch, a term that weighs nothing, a one."""

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        match = self.match(S, T) if run.epoch else torch.zeros(())
        none = 0.0 * self.match(S, T).detach()
        return {"task": run.task.loss(S, batch), "cosine": match, "none": none, "one": torch.ones(())}


@twin
class DetachesWhatItReturns(MatchesLogits):
    """Its own step has taken the gradients by then; and once it asks for values alone."""

    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        S, T = run.student(batch.x), [run.teach(run.teacher, batch.x)]
        with torch.no_grad():
            weight = self.loss(S, T, batch, run)["cosine"]
        parts = {"task": run.task.loss(S, batch), "cosine": weight * self.match(S, T)}
        run.optimize(parts["task"] + parts["cosine"])
        return {name: part.detach() for name, part in parts.items()}


@caught_by("parameters learn", "no parameter of the student received a gradient")
class ForgetsStudent(Right):
    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase(optimizers={"g": Opt((self.connector,))})]


@caught_by("parameters learn", "run.optimize() was never called", "overfits a batch")
class NeverOptimizes(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        return self.loss(run.student(batch.x), [run.teach(run.teacher, batch.x)], batch, run)


@caught_by("overfits a batch", "loss of phase 'main' goes from")
class WrongSign(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        parts = self.loss(run.student(batch.x), [run.teach(run.teacher, batch.x)], batch, run)
        run.optimize(-parts["task"] - parts["hint"])
        return parts


@caught_by("overfits a batch", "loss of phase 'second' goes from")
class SecondPhaseUndoes(WrongSign):
    """Its first phase is right."""

    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase("first", 0.5, step=super(WrongSign, self).step), Phase("second", 0.5)]


# --- the value of the loss


@caught_by("golden values", "'one and one' gives 2, expected 3 (by hand)")
class WrongGolden(Right):
    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [Golden("one and one", lambda: torch.tensor(1.0) + 1, 3.0, "by hand")]


@caught_by("golden values", "'ones' has shape (2,), expected (3,)")
class GoldenOfAnotherShape(Right):
    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [Golden("ones", lambda: torch.ones(2), [1, 1, 1], "by hand")]


@caught_by("golden values", "'ratio' raised ZeroDivisionError")
class GoldenThatRaises(Right):
    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [Golden("ratio", lambda: 1 / 0, 1.0, "by hand")]


@twin
class RightGolden(Right):
    @classmethod
    def golden(cls) -> Sequence[Golden]:
        pair = Golden("pair", lambda: torch.tensor([0.1, 0.2]) + 0.1, [0.2, 0.3], "by hand")
        return [pair, Golden("none", lambda: 1e-12, 0.0, "by hand")]


@caught_by("mean over batch", "loss/hint is a sum over the images")
class SumsOverImages(Right):
    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        return super().hint(S, T) * len(S.logits)


@caught_by("mean over batch", "main: loss/task is a sum over the images")
class SumsInItsStep(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        S, T = run.student(batch.x), [run.teach(run.teacher, batch.x)]
        task = nn.functional.cross_entropy(S.logits, batch.y, reduction="sum")
        parts = {"task": task, "hint": self.hint(S, T)}
        run.optimize(parts["task"] + parts["hint"])
        return parts


@twin
class ComparesImages(Right):
    """Grows with the batch, but is no sum over images: ``|G|²_F / B`` of a Gram matrix."""

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        s, t = (o.logits.float().softmax(1) for o in (S, T[0]))
        gram = (s @ s.T - t @ t.T).square().sum() / len(s)
        return {**super().loss(S, T, batch, run), "gram": gram}


# --- the teacher


@caught_by("teacher untouched", "the teacher (teacher0) was put into train mode in a step")
class TrainsTeacher(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        run.teacher.net.train()
        return super().step(batch, run)


@caught_by("teacher untouched", "the teacher (teacher0) was put into train mode in setup()")
class TrainsTeacherInSetup(Right):
    """The engine puts it back before the first step; what setup() itself forwards has moved it by then."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        run.teacher.net.train()


@caught_by("teacher untouched", "'fc' of teacher0, a teacher, was put into train mode in a step")
class TeacherInTrainMode(Right):
    """No BatchNorm notices, but dropout would."""

    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        run.teacher.net.get_classifier().train()
        parts = super().step(batch, run)
        run.teacher.net.eval()
        return parts


@caught_by("teacher untouched", "asks for, a gradient")
class UnfreezesTeacher(Right):
    def on_epoch_start(self, run: Any) -> None:
        run.teacher.net.requires_grad_(True)


@caught_by("teacher untouched", "weight' of teacher0, a teacher, changed", "resume")
class TunesTeacher(Right):
    """Its optimizer has the teacher too. A resumed teacher starts from its file, so the run differs."""

    def phases(self, run: Any) -> Sequence[Phase]:
        run.teacher.net.requires_grad_(True)
        return [Phase(optimizers={"all": Opt((run.student.net, self.connector, run.teacher.net))})]

    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        S, T = run.student(batch.x), [run.teacher(batch.x)]
        parts = self.loss(S, T, batch, run)
        run.optimize(parts["task"] + parts["hint"])
        return parts


@caught_by("teacher untouched", "weight' of teacher0, a teacher, changed")
class MovesTeacher(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        with torch.no_grad():
            next(iter(run.teacher.net.parameters())).mul_(0.99)


# --- what the method holds


@caught_by("registered state", "self.scales holds a parameter that the module does not register")
class HidesParameter(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.scales = [nn.Parameter(torch.ones(()))]


@caught_by("registered state", "self.scales holds a parameter that the module does not register")
class HidesTensor(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.scales = {"hint": (torch.ones((), requires_grad=True),)}


@caught_by("registered state", "self.more holds a module in a plain list")
class HidesModule(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.more = [nn.Linear(2, 2)]


@caught_by("resume", "differs after a cut and a resume")
class KeepsAttribute(Right):
    """A running mean in a Python attribute: gone after a resume."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.mean = 0.0

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = dict(super().loss(S, T, batch, run))
        self.mean = 0.5 * self.mean + 0.5 * float(parts["hint"].detach())
        return parts | {"scaled": parts["hint"] * self.mean}


@twin
class KeepsBuffer(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = dict(super().loss(S, T, batch, run))
        self.mean = 0.5 * self.mean + 0.5 * parts["hint"].detach()
        return parts | {"scaled": parts["hint"] * self.mean}


@caught_by("resume", "differs after a cut and a resume")
class ForgetsItsTurn(Right):
    """Counts steps in the second phase only: a cut in the first does not show it."""

    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase("first", 0.5), Phase("second", 0.5)]

    def on_phase_start(self, phase: Phase, run: Any) -> None:
        self.weight, self.grows = 1.0, phase.name == "second"

    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        self.weight *= 0.5 if self.grows else 1.0
        return self.weight * super().hint(S, T)


@caught_by("resume", "differs after a cut and a resume")
class OwnGenerator(Right):
    """Draws from a generator that no checkpoint knows."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.generator = torch.Generator().manual_seed(0)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        noise = torch.rand((), generator=self.generator)
        return {k: v * (1 + noise) for k, v in super().loss(S, T, batch, run).items()}


@twin
class RunGenerator(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        noise = torch.rand((), generator=run.rng)
        return {k: v * (1 + noise / 10) for k, v in super().loss(S, T, batch, run).items()}


# --- what the method leaves behind


@caught_by("no hooks left", "a hook is left on 'conv1.0' of student")
class LeavesHook(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        first(run.student.net).register_forward_hook(lambda module, args, out: None)


@caught_by("no hooks left", "a hook is left on teacher0")
class LeavesHookOnTeacher(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        run.teacher.net.register_forward_hook(lambda module, args, out: None)


@twin
class UsesAuxHook(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        run.student.aux_hook(first(run.student.net), lambda module, args, out: None)


@caught_by("no hooks left", "a hook is left on parameter 'conv1.0.weight' of student")
class LeavesGradientHook(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        next(iter(run.student.net.parameters())).register_hook(lambda grad: None)


@caught_by("no hooks left", "forward() of 'conv1.0' of teacher0 is replaced")
class PatchesForward(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        module = first(run.teacher.net)
        module.forward = module.forward


def first(net: nn.Module) -> nn.Module:
    """Return the first module without children."""
    return next(m for m in net.modules() if not list(m.children()))


@caught_by("in-place flags", "inplace of '")
class FlipsInplace(Right):
    """So that a hook sees what enters an activation."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        for module in run.student.net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False


# --- what is deployed


class Tail(nn.Module):
    def __init__(self, net: nn.Module, connector: nn.Module | None, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.connector, self.scale = net, connector, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


@caught_by("deploy", "deployable 'both' contains modules of the method")
class DeploysConnector(Right):
    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"both": Tail(run.student.net, self.connector)}


@twin
class DeclaresIt(DeploysConnector):
    deploys_extra = True


@caught_by("deploy", "gives (4, 3072) for 4 images and 5 classes")
class DeploysFeatures(Right):
    """Whatever it gives is a number of a class for the evaluation: a class for each pixel."""

    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"features": nn.Flatten()}


@caught_by("deploy", "other logits than the trained student")
class DeploysCooler(Right):
    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"student": Tail(run.student.net, None, 0.5)}


@caught_by("deploy", "other logits than the trained student")
class DeploysAnother(Right):
    """A peer that was never trained."""

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.peer = run.new_student("peer", seed=1)

    def phases(self, run: Any) -> Sequence[Phase]:
        return [Phase(optimizers={"main": Opt((run.student.net, self.connector))})]

    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"student": self.peer.net}


@caught_by("deploy", "deploying changes 'conv1.0.weight' of student")
class DeployShrinks(Right):
    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        with torch.no_grad():
            next(iter(run.student.net.parameters())).mul_(0.5)
        return {"student": run.student.net}


@caught_by("deploy", "other logits when deployed a second time")
class DeployDraws(Right):
    deploys_extra = True

    def deploy(self, run: Any) -> Mapping[str, nn.Module]:
        return {"student": Tail(run.student.net, None, float(torch.rand(())))}


# --- batches and precision


@caught_by("odd batches", "RuntimeError")
class NeedsEvenBatches(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        halves = S.logits.reshape(2, len(batch.x) // 2, -1)
        return {**super().loss(S, T, batch, run), "pairs": (halves[0] - halves[1]).square().mean()}


@caught_by("odd batches", "RuntimeError")
class NeedsTheFirstSize(Right):
    """Assumes that all batches are as large as the first."""

    def on_phase_start(self, phase: Phase, run: Any) -> None:
        self.size = 0

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        self.size = self.size or len(batch.x)
        shifted = S.logits + torch.ones(self.size, 1)
        return {**super().loss(S, T, batch, run), "shifted": shifted.square().mean()}


class NeedsThree(Right):
    """Takes the first three images that it ever sees as anchors."""

    needs = Needs(min_batch=3)

    def setup(self, run: Any) -> None:
        super().setup(run)
        self.register_buffer("anchors", torch.zeros(3, run.data.num_classes))
        self.register_buffer("ready", torch.tensor(False))

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        if not self.ready:
            self.anchors.copy_(S.logits[:3].detach())
            self.ready.fill_(True)
        far = (S.logits[:, None] - self.anchors).square().mean()
        return {**super().loss(S, T, batch, run), "anchors": far}


twin(NeedsThree)


@caught_by("smallest batch", "RuntimeError")
class NeedsThreeUndeclared(NeedsThree):
    needs = Needs()


@caught_by("autocast", "RuntimeError")
class FullOnly(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        mixed = torch.mm(S.logits, torch.eye(S.logits.shape[1]))  # bfloat16 times float32
        return {**super().loss(S, T, batch, run), "mixed": mixed.square().mean()}


# --- needs


class AsksForBatchNorm(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.norm = run.teacher.batchnorms()[0][0]


@caught_by("other networks", "a teacher of tokens, without BatchNorm: setup() raised IndexError")
class NeedsBatchNormUndeclared(AsksForBatchNorm):
    pass


@twin
class NeedsBatchNorm(AsksForBatchNorm):
    needs = Needs(teacher_bn=True)


class ComparesMaps(Right):
    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        direct = (S.feats[LAST].float() - T[0].feats[LAST].float()).square().mean()
        return direct + super().hint(S, T)


@caught_by("other networks", "the training raised RuntimeError")
class NeedsEqualChannelsUndeclared(ComparesMaps):
    pass


@twin
class NeedsEqualChannels(ComparesMaps):
    needs = Needs(equal_channels=True)


@caught_by("other networks", "2 classes: the training raised RuntimeError")
class NeedsThreeClasses(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {**super().loss(S, T, batch, run), "top": S.logits.topk(3).values.var(1).mean()}


@caught_by("other networks", "2 classes: NotApplicable without a reason")
class RefusesWithoutReason(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        if run.data.num_classes == 2:
            raise NotApplicable("")


class WeighsByNumber(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        even = (batch.index % 2 == 0).float().mean()
        return {k: v * (1 + even) for k, v in super().loss(S, T, batch, run).items()}


@caught_by("undeclared use", "without index, which the needs do not name: raised TypeError")
class UsesIndexUndeclared(WeighsByNumber):
    pass


@twin
class UsesIndex(WeighsByNumber):
    needs = Needs(index=True)


@caught_by("undeclared use", "the supervised loss needs labels")
class UsesLabelsUndeclared(Right):
    needs = Needs(labels=False)


@caught_by("undeclared use", 'the training set is read, and the needs say data="none"')
class ReadsDataUndeclared(Right):
    needs = Needs(data="none")


@caught_by("undeclared use", 'a feature of a teacher is read, and the needs say reads="pooled"')
class ReadsFeatureUndeclared(Right):
    needs = Needs(reads="pooled")


class ReadsPooled(Method):
    needs = Needs(reads="pooled")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        near = (S.logits - T[0].logits).square().mean() + T[0].pooled.square().mean()
        return {"task": run.task.loss(S, batch), "near": near}


twin(ReadsPooled)


@caught_by("undeclared use", "more of teachers than logits, which the needs do not name: raised RuntimeError")
class ReadsPooledUndeclared(ReadsPooled):
    needs = Needs(reads="logits")


@caught_by("undeclared use", "without data, as the planner does it")
class ReadsDataInSetup(Right):
    def setup(self, run: Any) -> None:
        super().setup(run)
        self.batches = len(run.split("val"))


# --- the process


@caught_by("global RNG", "the method calls torch.manual_seed(42)")
class Reseeds(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        torch.manual_seed(42)
        return super().step(batch, run)


@caught_by("global RNG", "the method calls torch.manual_seed(0)")
class SeedsItsConnector(Right):
    """Every seed of the matrix gets the same connector."""

    def setup(self, run: Any) -> None:
        torch.manual_seed(0)
        super().setup(run)


@caught_by("global RNG", "the method calls numpy.random.seed(1)")
class ReseedsNumpy(Right):
    def on_epoch_start(self, run: Any) -> None:
        np.random.seed(1)


@caught_by("global RNG", "setup() leaves python's generator in one state")
class SetsPythonsState(Right):
    state = random.Random(3).getstate()

    def setup(self, run: Any) -> None:
        super().setup(run)
        random.setstate(self.state)


@caught_by("global RNG", "the training leaves torch's generator in one state")
class SetsTorchsState(Right):
    state = torch.Generator().manual_seed(7).get_state()

    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        torch.set_rng_state(self.state)
        return super().step(batch, run)


@caught_by("global state", "the training changes torch.is_anomaly_enabled(): False -> True")
class LeavesAnomalyDetection(Right):
    def on_phase_start(self, phase: Phase, run: Any) -> None:
        torch.autograd.set_detect_anomaly(True)


@caught_by("global state", "the training changes torch.is_grad_enabled(): True -> False")
class LeavesGradientsOff(Right):
    def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
        torch.set_grad_enabled(True)
        parts = super().step(batch, run)
        torch.set_grad_enabled(False)
        return parts


@caught_by("any position", "differs when another cell was trained before")
class CachesInClass(Right):
    """Teachers' features by image: those of the first cell serve all later ones. Other shapes do not fit."""

    needs = Needs(index=True)
    cache: dict[Any, Tensor] = {}

    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        key = (len(S.logits), T[0].feats[LAST].shape)
        t = self.cache.setdefault(key, T[0].feats[LAST].float().mean((2, 3)))
        return (self.connector(S.feats[LAST].float()).mean((2, 3)) - t).square().mean()


@caught_by("any position", "differs when another cell was trained before", "resume")
class CountsCells(Right):
    """Weighs the hint by the number of cells before, so that a resumed one is another."""

    cells = 0

    def setup(self, run: Any) -> None:
        super().setup(run)
        type(self).cells += 1

    def hint(self, S: Out, T: Sequence[Out]) -> Tensor:
        return super().hint(S, T) / self.cells


@caught_by("memory", "student of a finished cell is still in memory")
class KeepsNetworks(Right):
    kept: list[Any] = []

    def on_phase_start(self, phase: Phase, run: Any) -> None:
        self.kept.append(run.student.net)


@caught_by("memory", "two more cells leave")
class KeepsLosses(Right):
    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = super().loss(S, T, batch, run)
        LOSSES.append(parts["hint"].detach())
        return parts


LOSSES: list[Tensor] = []
