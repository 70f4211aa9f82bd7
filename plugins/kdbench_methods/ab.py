"""Activation boundaries (Heo, Lee, Yun, Choi; AAAI 2019, arXiv:1811.03233; bhheo/AB_distillation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Opt, Out, Phase, Run, Search
from kdbench_methods._common import channels, connector, full, match_size, want_pairs


def boundary_loss(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """Return ``Σ [t > 0]·max(0, margin - s)² + [t <= 0]·max(0, margin + s)²`` over all elements, a scalar.

    `s`: student values after the connector, `t`: teacher values, both before the activation and of one shape.
    The sum is taken in float32: in float16 it overflows for ordinary feature maps.
    """
    s, t = full(s), full(t)
    on = (t > 0).to(s.dtype)
    # Distance into the wrong side: margin - s where the teacher is on, margin + s where it is off.
    return (margin - (2 * on - 1) * s).relu().square().sum()


def boundary_mismatch(s: Tensor, t: Tensor) -> Tensor:
    """Return the share of elements that are on in one tensor and off in the other, a scalar in [0, 1].

    This is the mean of the transfer loss that :func:`boundary_loss` stands in for; it has no gradient.
    """
    return ((s > 0) != (t > 0)).double().mean().to(full(s).dtype)


def stagewise_boundary_loss(
    s: Sequence[Tensor], t: Sequence[Tensor], *, weight: float = 3e-3, margin: float = 1.0
) -> Tensor:
    """Return ``weight·Σ_i boundary_loss(s_i, t_i) / (B·2^(n - i))`` for i = 1..n: the last stage counts 1.

    `s` and `t` are lists of equally shaped (B, C, H, W) maps from the earliest to the last stage.
    """
    last = len(s) - 1
    terms = [boundary_loss(a, b, margin) / 2 ** (last - i) for i, (a, b) in enumerate(zip(s, t, strict=True))]
    return weight * sum(terms[1:], start=terms[0]) / len(s[0])


class AB(Method):
    """First ``L = loss_weight·Σ_i L_AB,i/(B·2^(n - i))``, then ``L = ce_weight·L_task + kd_weight·T²·KL``.

    Phase ``init`` trains student and connectors with :func:`stagewise_boundary_loss` only, so that the student
    copies which neurons are on. Phase ``classify`` drops the connectors and trains the student alone.

    The defaults are the authors' script for CIFAR-10: the teacher normalises by batch statistics in ``init``,
    and ``classify`` is KL at T = 3 alone, without T² (``kd_weight`` 1/9 takes it away again). Only the split of
    the epochs is not theirs: the script's two lengths are placeholders. The preset ``cifar100`` follows
    RepDistiller's benchmark: teacher in eval mode, and cross-entropy alone in ``classify``.

    Connectors are 1×1 convolutions without bias, and BatchNorm, whose output is signed even where the student's
    own values are not; where the channels are equal there is none. Maps of different size are pooled to the
    smaller. The loss is a sum over C·H·W: its weight is to be tuned again for larger maps.
    """

    class Params(MethodParams):
        """Weights of both phases and the share of the first."""

        loss_weight: float = Field(
            3e-3,
            gt=0,
            description="weight of the boundary loss (official code: 3/1000 CIFAR, 1/1000 MIT scenes)",
        )
        margin: float = Field(1.0, gt=0, description="margin of the boundary loss")
        init_share: float = Field(0.3, gt=0, lt=1, description="share of the epochs of phase init")
        teacher_bn: Literal["eval", "batch"] = Field(
            "batch", description="statistics of the teacher's BatchNorm in phase init"
        )
        identity: bool = Field(True, description="no connector where the channels are equal")
        ce_weight: float = Field(0.0, ge=0, description="weight of the task's loss in phase classify")
        kd_weight: float = Field(
            1 / 9, ge=0, description="weight of the divergence (with T²) in phase classify"
        )
        temperature: float = Field(3.0, gt=0, description="T of the divergence")

        @model_validator(mode="after")
        def _something_to_classify_by(self) -> Any:
            if not self.ce_weight and not self.kd_weight:
                raise ValueError("ce_weight and kd_weight are both 0, so phase classify has no loss")
            return self

    needs = Needs(stage_end_act=True, min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {
        "official": {"ce_weight": 0.0, "kd_weight": 1 / 9, "teacher_bn": "batch", "identity": True},
        # 30 epochs of initialisation before 240 of cross-entropy, here within one budget.
        "cifar100": {"ce_weight": 1.0, "kd_weight": 0.0, "init_share": 30 / 270, "teacher_bn": "eval"},
    }
    search = {
        "loss_weight": Search(low=0.0003, high=0.03, log=True, source="official code: 0.001 and 0.003"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([-2.0, 0.5, 0.5, 2.0, -0.5, 1.0], dtype=torch.float64)
        t = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        return [
            Golden(
                "boundary loss of six neurons, one by one",
                lambda: torch.stack([boundary_loss(a, b) for a, b in zip(s, t, strict=True)]),
                [0.0, 2.25, 0.25, 0.0, 2.25, 4.0],
                "by hand: (1 - s)² where t > 0, else (1 + s)²; 0 beyond the margin",
            ),
            Golden("boundary loss, their sum", lambda: boundary_loss(s, t), 8.75, "the sum of those six"),
            Golden("share of neurons that differ", lambda: boundary_mismatch(s, t), 0.5, "three of six"),
            Golden(
                "two stages, two images of three neurons",
                lambda: stagewise_boundary_loss([s.view(2, 3)] * 2, [t.view(2, 3)] * 2),
                3e-3 * 1.5 * 8.75 / 2,
                "3/1000·(8.75/2 + 8.75)/2 images",
            ),
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_pairs(run, "pre")
        self.connectors = nn.ModuleList()
        for student_tap, teacher_tap in self.pairs:
            c_in, c_out = channels(run.student, student_tap), channels(run.teacher, teacher_tap)
            same = self.hp.identity and c_in == c_out
            self.connectors.append(nn.Identity() if same else connector(c_in, c_out))

    def phases(self, run: Run) -> Sequence[Phase]:
        share, net = self.hp.init_share, run.student.net
        first = {"main": Opt((net, self.connectors) if any(True for _ in self.parameters()) else (net,))}
        return [
            Phase(
                "init",
                share,
                optimizers=first,
                step=self.init_step,
                teacher_bn=self.hp.teacher_bn,
                evaluate=False,
            ),
            Phase("classify", 1 - share, optimizers={"main": Opt((net,))}, step=self.classify_step),
        ]

    def boundaries(self, S: Out, T: Out) -> tuple[list[Tensor], list[Tensor]]:
        """Return connected student maps and teacher maps of equal shapes, earliest stage first."""
        maps = [match_size(S.feats[a], T.feats[b]) for a, b in self.pairs]
        return [c(s) for c, (s, _) in zip(self.connectors, maps, strict=True)], [t for _, t in maps]

    def init_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step on the boundary loss."""
        assert batch is not None
        with run.amp():
            teacher = run.teach(run.teacher, batch.x, head=False)
            s, t = self.boundaries(run.student(batch.x), teacher)
        with run.fp32():
            loss = stagewise_boundary_loss(s, t, weight=self.hp.loss_weight, margin=self.hp.margin)
            run.log({"boundary_mismatch": boundary_mismatch(s[-1].detach(), t[-1])})
        run.optimize(loss)
        return {"ab": loss.detach()}

    def classify_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step on the task's loss and the divergence, each where it has a weight."""
        assert batch is not None
        hp = self.hp
        parts: dict[str, Tensor] = {}
        with run.amp():
            teacher = run.teach(run.teacher, batch.x) if hp.kd_weight else None
            student = run.student(batch.x, ())
        with run.fp32():
            if hp.ce_weight:
                parts["task"] = hp.ce_weight * run.task.loss(student, batch)
            if teacher is not None:
                parts["kd"] = hp.kd_weight * run.task.divergence(student, teacher, hp.temperature)
            total = sum(parts.values(), start=student.logits.new_zeros(()))
        run.optimize(total)
        return {name: part.detach() for name, part in parts.items()}
