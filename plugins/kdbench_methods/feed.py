"""Feature-level ensemble distillation (Park, Kwak; arXiv:1909.10754), on Factor Transfer (1802.04977)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdbench.api import (
    Batch,
    Golden,
    Handle,
    Method,
    MethodParams,
    Needs,
    NotApplicable,
    Opt,
    Out,
    Phase,
    Run,
    Search,
    Tap,
)
from kdbench_methods._common import channels, full, match_size

LAST = Tap(-1)


def unit_l1(fs: Tensor, ft: Tensor) -> Tensor:
    """Return ``mean | fs/‖fs‖₂ - ft/‖ft‖₂ |``, a scalar; each sample is flattened before its norm is taken.

    `fs`, `ft`: maps (B, C, H, W) or vectors (B, D) of one shape; the mean runs over all elements (Factor
    Transfer's official code). An all-zero sample stays zero.
    """
    s, t = (F.normalize(full(x).flatten(1), dim=1) for x in (fs, ft))
    return (s - t).abs().mean()


def nonlinear_transform(c_in: int, c_out: int) -> nn.Sequential:
    """Return three 3×3 convolutions with BatchNorm and LeakyReLU(0.1), from c_in to c_out channels."""
    layers: list[nn.Module] = []
    for width in (c_in, c_out, c_out):
        layers += [
            nn.Conv2d(width, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Factor Transfer's autoencoder of a teacher's map; the factors have ``round(rate·C)`` channels.

    Encoder: 3×3 convolutions C→C→kC→kC; decoder: transposed ones kC→kC→C→C; LeakyReLU(0.1) after every layer,
    biases, no BatchNorm (official code). ``forward`` returns the reconstruction.
    """

    def __init__(self, width: int, rate: float = 0.5) -> None:
        super().__init__()
        self.factors = max(1, round(rate * width))
        k = self.factors
        encoder: list[nn.Module] = []
        for c_in, c_out in ((width, width), (width, k), (k, k)):
            encoder += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.LeakyReLU(0.1)]
        decoder: list[nn.Module] = []
        for c_in, c_out in ((k, k), (k, width), (width, width)):
            decoder += [nn.ConvTranspose2d(c_in, c_out, 3, padding=1), nn.LeakyReLU(0.1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class FEED(Method):
    """``L = ce_weight·L_task + beta·Σ_n unit_l1(NL_n(F^s), F^{t_n})`` on the last stages' outputs.

    ``parallel``: N different teachers, one non-linear transform NL_n of the student's map for each; with
    ``paraphrase`` the targets are factors of paraphrasers that are trained first. ``sequential``:
    generation 1 learns from the teacher, generation g from the finished generation g - 1, each from its own
    initial weights; the last one is the run's student, the others are deployed as ``gen1``, ``gen2``, ...
    The transforms are dropped after training.

    A reconstruction: no code was published, and the paper's beta could not be checked; 200 (CIFAR) and 1000
    (ImageNet) are weights that third parties use for Factor Transfer.
    """

    class Params(MethodParams):
        """Variant, number of teachers or generations, and weights."""

        variant: Literal["parallel", "sequential"] = Field(
            "parallel", description="several teachers at once, or generation after generation"
        )
        teachers: int = Field(2, ge=1, description="number of teachers (parallel)")
        generations: int = Field(3, ge=1, description="number of student generations (sequential)")
        generation_share: float | None = Field(
            None,
            gt=0,
            le=1,
            description="epochs of a generation as a share of the recipe's; none: 1/generations",
        )
        beta: float = Field(200.0, gt=0, description="weight of each teacher's feature distance")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        paraphrase: bool = Field(False, description="targets are paraphrased factors (parallel only)")
        paraphrase_rate: float = Field(
            0.5, gt=0, description="channels of the factors, relative to the map's"
        )
        paraphrase_share: float = Field(
            0.05, gt=0, lt=1, description="share of the epochs in which the paraphrasers are trained"
        )

        @model_validator(mode="after")
        def _one_teacher_per_generation(self) -> Any:
            if self.paraphrase and self.variant == "sequential":
                raise ValueError("paraphrase goes with variant 'parallel' only")
            return self

    needs = Needs(teachers=2, min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"beta": 200.0},
        "imagenet": {"beta": 1000.0},
        "sequential": {"variant": "sequential"},
    }
    search = {
        "beta": Search(
            low=20.0, high=2000.0, log=True, source="a decade each way of the value in arXiv:1909.10754"
        ),
    }
    taps = {"student": (LAST,), "teacher": (LAST,)}

    @classmethod
    def requires(cls, params: Any) -> Needs:
        n = params.teachers if params.variant == "parallel" else 1
        return Needs(teachers=n, min_batch=cls.needs.min_batch, capabilities=cls.needs.capabilities)

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
        t = torch.tensor([[2.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
        source = "s/sqrt(30) and t/3, worked out with numpy in float64"
        return [Golden("unit_l1 of two maps of four values", lambda: unit_l1(s, t), 0.4325742, source)]

    def setup(self, run: Run) -> None:
        for handle in (run.student, *run.teachers):
            handle.want(LAST)
        width = channels(run.student, LAST)
        if self.hp.variant == "sequential":
            earlier = [run.new_student(f"gen{g}", seed=g) for g in range(1, self.hp.generations)]
            for handle in earlier:
                handle.want(LAST)
            self.students: tuple[Handle, ...] = (*earlier, run.student)
            targets = [channels(h, LAST) for h in (run.teacher, *earlier)]
        else:
            if not run.probing:
                _refuse_twins(run.teachers)
            targets = [channels(t, LAST) for t in run.teachers]
            if self.hp.paraphrase:
                self.paraphrasers = nn.ModuleList(Paraphraser(c, self.hp.paraphrase_rate) for c in targets)
                targets = [p.factors for p in self.paraphrasers]
        self.transforms = nn.ModuleList(nonlinear_transform(width, c) for c in targets)

    def phases(self, run: Run) -> Sequence[Phase]:
        if self.hp.variant == "sequential":
            return [self._generation_phase(g) for g in range(len(self.students))]
        train = {"main": Opt((run.student.net, self.transforms))}
        if not self.hp.paraphrase:
            return [Phase("distil", optimizers=train)]
        share, first = self.hp.paraphrase_share, {"main": Opt((self.paraphrasers,))}
        return [
            Phase("paraphrase", share, optimizers=first, step=self.paraphrase_step, evaluate=False),
            Phase("distil", 1 - share, optimizers=train),
        ]

    def _generation_phase(self, g: int) -> Phase:
        count = len(self.students)
        return Phase(
            f"gen{g + 1}",
            self.hp.generation_share or 1 / count,
            optimizers={"main": Opt((self.students[g].net, self.transforms[g]))},
            step=partial(self.generation_step, g),
            evaluate=g == count - 1,
        )

    def distance(self, n: int, student: Tensor, target: Tensor, run: Run) -> Tensor:
        """Return ``unit_l1`` of transform n of the student's map to a target map, a scalar."""
        s, t = match_size(student, target)
        with run.amp():
            s = self.transforms[n](s)
        return unit_l1(s, t)

    def targets(self, T: Sequence[Out], run: Run) -> list[Tensor]:
        """Return the teachers' maps, or their factors, (B, C, H, W), without gradient."""
        maps = [out.feats[LAST] for out in T]
        if not self.hp.paraphrase:
            return maps
        with torch.no_grad(), run.amp():
            return [p.encoder(x) for p, x in zip(self.paraphrasers, maps, strict=True)]

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        parts = {"task": self.hp.ce_weight * run.task.loss(S, batch)}
        for n, target in enumerate(self.targets(T, run)):
            parts[f"feed{n}"] = self.hp.beta * self.distance(n, S.feats[LAST], target, run)
        return parts

    def paraphrase_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train every paraphraser to reconstruct its teacher's map, mean absolute error."""
        assert batch is not None
        with run.amp():
            maps = [run.teach(t, batch.x).feats[LAST] for t in run.teachers]
            copies = [p(x) for p, x in zip(self.paraphrasers, maps, strict=True)]
        with run.fp32():
            parts = {
                f"paraphrase{n}": F.l1_loss(full(copy), full(x))
                for n, (copy, x) in enumerate(zip(copies, maps, strict=True))
            }
            total = sum(parts.values(), start=batch.x.new_zeros(()))
        run.optimize(total)
        return {name: part.detach() for name, part in parts.items()}

    def generation_step(self, g: int, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train generation g (counted from 0) on the task and on its predecessor's map."""
        assert batch is not None
        with run.amp():
            if g == 0:
                target = run.teach(run.teacher, batch.x).feats[LAST]
            else:
                target = _frozen(self.students[g - 1], batch.x)
            student = self.students[g](batch.x)
        with run.fp32():
            parts = {
                "task": self.hp.ce_weight * run.task.loss(student, batch),
                "feed": self.hp.beta * self.distance(g, student.feats[LAST], target, run),
            }
            total = sum(parts.values(), start=student.logits.new_zeros(()))
        run.optimize(total)
        return {name: part.detach() for name, part in parts.items()}

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        earlier = self.students[:-1] if self.hp.variant == "sequential" else ()
        return {"student": run.student.net, **{h.name: h.net for h in earlier}}


def _frozen(handle: Handle, x: Tensor) -> Tensor:
    """Return the last stage's output of a finished generation, in eval mode and without gradient."""
    if handle.net.training:
        handle.net.eval()
    with torch.no_grad():
        return handle(x).feats[LAST]


def _refuse_twins(teachers: Sequence[Handle]) -> None:
    for a, b in combinations(teachers, 2):
        x, y = a.net.state_dict(), b.net.state_dict()
        if x.keys() == y.keys() and all(x[k].shape == y[k].shape and torch.equal(x[k], y[k]) for k in x):
            raise NotApplicable(f"feed needs different teachers; {a.name} and {b.name} have equal weights")
