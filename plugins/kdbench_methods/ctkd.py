"""Curriculum temperature (Li, Li, Yang, Zhao, Song, Luo, Li, Yang; AAAI 2023, arXiv:2211.16231)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import kl_divergence, require_categorical
from kdbench_methods._golden import BY_FORMULA, total

#: The length of the curriculum published for CIFAR-100: 10 of 240 epochs.
_LOOPS_SHARE = 10 / 240


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` unchanged; its gradient is multiplied by `factor`, so a negative one reverses it."""
    return _ScaleGradient.apply(x, factor)  # type: ignore[no-any-return]


def reversal(epoch: int, loops: int) -> float:
    """Return ``λ = (cos(π·min(e, loops)/loops) - 1)/2``, from 0 down to -1; e is the epoch, counted from 1."""
    return (math.cos(math.pi * min(epoch, loops) / loops) - 1) / 2


class CTKD(Method):
    """``L = ce_weight·L_task + alpha·T²·KL``, and T rises against it: one learned temperature for all samples.

    ``T = t_start + t_range·sigmoid(θ)``, θ starts at 1; its gradient is multiplied by λ(e) <= 0 of
    :func:`reversal`, so θ makes the divergence larger, at first gently. θ is trained by the recipe's optimizer
    together with the student. This is the paper's global temperature; its instance-wise one is not included.
    """

    class Params(MethodParams):
        """Weights, range of the temperature and length of the curriculum."""

        alpha: float = Field(0.9, ge=0, description="weight of the divergence to the teacher")
        ce_weight: float = Field(0.1, ge=0, description="weight of the task's loss")
        t_start: float = Field(1.0, gt=0, description="lower end of the temperature")
        t_range: float = Field(20.0, gt=0, description="temperatures lie in (t_start, t_start + t_range)")
        loops: int | None = Field(
            None, ge=1, description="epochs until the reversed gradient is full; none: 10 of 240, scaled"
        )

    needs = Needs(reads="logits", capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"alpha": 0.9, "ce_weight": 0.1, "loops": 10},
        "imagenet": {"alpha": 1.0, "ce_weight": 1.0, "loops": 5},
    }
    search = {
        "alpha": Search(low=0.1, high=10.0, log=True, source="as for kd"),
        "t_range": Search(low=2.0, high=40.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "λ after 0, 5, 10 and 20 of 10 epochs",
                lambda: [reversal(epoch, 10) for epoch in (0, 5, 10, 20)],
                [0.0, -0.5, -1.0, -1.0],
                "(cos 0 - 1)/2, (cos π/2 - 1)/2, (cos π - 1)/2",
            ),
            Golden("L at the first temperature, 1 + 20·sigmoid(1)", total(cls()), 0.4249493, BY_FORMULA),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "ctkd")
        self.theta = nn.Parameter(torch.ones(1))

    def temperature(self, epoch: int, phase_epochs: int) -> Tensor:
        """Return T, a scalar, in an epoch counted from 0; its gradient to θ is scaled by λ."""
        loops = self.hp.loops or max(1, round(phase_epochs * _LOOPS_SHARE))
        theta = scale_gradient(self.theta, reversal(epoch + 1, loops))
        return self.hp.t_start + self.hp.t_range * theta.sigmoid().squeeze()

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        temperature: Any = self.temperature(run.epoch, run.phase_epochs)
        run.log({"temperature": temperature})
        divergence = temperature**2 * kl_divergence(S.logits, T[0].logits, temperature)
        return {"task": self.hp.ce_weight * run.task.loss(S, batch), "kd": self.hp.alpha * divergence}
