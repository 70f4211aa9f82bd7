"""Hints for thin deep networks (Romero et al., ICLR 2015, arXiv:1412.6550, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import (
    Batch,
    Golden,
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
from kdbench_methods._common import channels, connector, full, match_size, stage_pairs


def hint_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return ``mean((s - t)²)`` over all elements of two (B, C, H, W) maps, a scalar.

    The paper's equation 3 has half the squared norm; the mean keeps the weight independent of the map's size.
    """
    return F.mse_loss(full(s), full(t))


def never_negative(run: Run, tap: Tap) -> bool:
    """Return whether the teacher's feature has no value below 0 on two random images."""
    side = run.data.image_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, run.data.in_chans, side, side), generator=generator).to(run.device)
    with torch.no_grad():
        return bool((run.teacher(x, (tap,)).feats[tap] >= 0).all())


class FitNet(Method):
    """``L = ce_weight·L_task + hint_weight·mean((r(F^s) - F^t)²)`` at one stage, the hint.

    That is ``stages="joint"``. With ``stages="two-phase"``, as in the paper, the student's first part and the
    regressor r are trained on the hint alone, then the student on the task's loss and ``kd_weight`` times the
    divergence to the teacher.

    A reconstruction: the paper gives no code for today's networks, and the joint form, its weight 100 and its
    stage are RepDistiller's. The hint is the middle one of the paired stages, the earlier of two (the second
    of three or four). r is a 1×1 convolution, BatchNorm, and a ReLU where the teacher's map has no negative
    value, on maps pooled to the smaller of the two sizes (RepDistiller learns that step by strided
    convolutions).
    """

    class Params(MethodParams):
        """Place and weight of the hint, and the procedure."""

        stages: Literal["joint", "two-phase"] = Field("joint", description="one phase, or hint then task")
        hint: int | None = Field(
            None, description="which of the paired stages, 0 the first, -1 the last; none: the middle one"
        )
        hint_weight: float = Field(100.0, gt=0, description="weight of the hint in joint training")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        kd_weight: float = Field(0.0, ge=0, description="weight of the divergence to the teacher")
        temperature: float = Field(4.0, gt=0, description="T of that divergence")
        hint_share: float = Field(0.3, gt=0, lt=1, description="share of the epochs of the hint phase")

    needs = Needs(min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"stages": "joint", "hint_weight": 100.0},
        "two-phase": {"stages": "two-phase", "kd_weight": 1.0},
    }
    search = {
        "hint_weight": Search(
            low=10.0, high=1000.0, log=True, source="a decade each way of the authors' value"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        t = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
        return [
            Golden("hint loss of six values", lambda: hint_loss(s, t), 0.5, "three differences of 1 in six")
        ]

    def setup(self, run: Run) -> None:
        pairs = stage_pairs(run, "post")
        hint = (len(pairs) - 1) // 2 if self.hp.hint is None else self.hp.hint
        if not -len(pairs) <= hint < len(pairs):
            raise NotApplicable(f"fitnet: hint {hint}, but the networks share {len(pairs)} stage(s)")
        self.student_tap, self.teacher_tap = pairs[hint]
        run.student.want(self.student_tap)
        run.teacher.want(self.teacher_tap)
        c_in, c_out = channels(run.student, self.student_tap), channels(run.teacher, self.teacher_tap)
        self.regressor = connector(c_in, c_out)
        if never_negative(run, self.teacher_tap):
            self.regressor.append(nn.ReLU())

    def phases(self, run: Run) -> Sequence[Phase]:
        if self.hp.stages == "joint":
            return [Phase("joint")]
        share = self.hp.hint_share
        both = {"main": Opt((run.student.net, self.regressor))}
        return [
            Phase("hint", share, optimizers=both, step=self.hint_step, evaluate=False),
            Phase("train", 1 - share, optimizers={"main": Opt((run.student.net,))}, step=self.train_step),
        ]

    def hint(self, S: Out, T: Out, run: Run) -> Tensor:
        """Return the hint loss of one forward of each network, a scalar."""
        s, t = match_size(S.feats[self.student_tap], T.feats[self.teacher_tap])
        with run.amp():
            s = self.regressor(s)
        return hint_loss(s, t)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        parts = self.task_parts(S, T[0], batch, run)
        return {**parts, "hint": self.hp.hint_weight * self.hint(S, T[0], run)}

    def task_parts(self, S: Out, T: Out | None, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Return the task's loss and, where it has a weight, the divergence to the teacher."""
        parts = {"task": self.hp.ce_weight * run.task.loss(S, batch)}
        if T is not None and self.hp.kd_weight:
            parts["kd"] = self.hp.kd_weight * run.task.divergence(S, T, self.hp.temperature)
        return parts

    def hint_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the student up to the hint, and the regressor, on the hint alone."""
        assert batch is not None
        with run.amp():
            teacher = run.teach(run.teacher, batch.x, head=False)
            student = run.student(batch.x)
        with run.fp32():
            hint = self.hint(student, teacher, run)
        run.optimize(hint)
        return {"hint": hint.detach()}

    def train_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the whole student on the task, without the hint."""
        assert batch is not None
        with run.amp():
            teacher = run.teach(run.teacher, batch.x) if self.hp.kd_weight else None
            student = run.student(batch.x, ())
        with run.fp32():
            parts = self.task_parts(student, teacher, batch, run)
            total = sum(parts.values(), start=student.logits.new_zeros(()))
        run.optimize(total)
        return {name: part.detach() for name, part in parts.items()}
