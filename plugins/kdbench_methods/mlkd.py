"""Multi-level logit distillation (Jin, Wang, Lin; CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Run, Search
from kdbench_methods._common import full, kl_divergence, require_categorical, standardise
from kdbench_methods._golden import BY_FORMULA, student_logits, teacher_logits

#: Four of the five temperatures; the fifth is a hyper-parameter.
_FIXED = (2.0, 3.0, 5.0, 6.0)
#: Temperatures at which the official code takes the weak view's logits for the strong view's.
_SWAPPED = (2.0, 6.0)


def class_correlation(zs: Tensor, zt: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``‖P_sᵀP_s - P_tᵀP_t‖²_F / K`` with ``P = softmax(z/T)``, logits (B, K); a scalar, no factor T²."""
    ps, pt = _probabilities(zs, zt, temperature)
    return (ps.t() @ ps - pt.t() @ pt).square().sum() / zs.shape[1]


def batch_correlation(zs: Tensor, zt: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``‖P_sP_sᵀ - P_tP_tᵀ‖²_F / B`` with ``P = softmax(z/T)``, logits (B, K); a scalar, no factor T²."""
    ps, pt = _probabilities(zs, zt, temperature)
    return (ps @ ps.t() - pt @ pt.t()).square().sum() / zs.shape[0]


def instance_divergence(zs: Tensor, zt: Tensor, temperature: float, scale: bool = False) -> Tensor:
    """Return ``T²·KL`` of logits (B, K), standardised first with `scale`; a scalar."""
    if scale:
        zs, zt = standardise(zs), standardise(zt)
    return temperature**2 * kl_divergence(zs, zt, temperature)


def doubtful_shares(zt: Tensor) -> tuple[Tensor, Tensor]:
    """Return which share of the samples, and of the classes, the teacher is at most median-sure of.

    `zt`: logits (B, K). A sample's sureness is its largest probability, a class's the sum of its
    probabilities over the batch. Two scalars, a half each but for ties and odd numbers.
    """
    p = full(zt).softmax(1)
    samples, classes = p.amax(1), p.sum(0)
    return tuple((x <= x.quantile(0.5)).to(x.dtype).mean() for x in (samples, classes))  # type: ignore[return-value]


def _probabilities(zs: Tensor, zt: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (full(zs) / temperature).softmax(1), (full(zt) / temperature).softmax(1)


class MLKD(Method):
    """``L = ce_weight·Σ_views L_task + kd_weight·Σ_T [Σ_views T²·KL + batch(weak) + class(weak)]``.

    Logits are aligned per instance, per batch and per class, on a weak and a strong view of the images, at five
    temperatures T: 2, 3, 5, 6 and ``temperature``. That is ``variant="paper"``.

    ``variant="official"`` is what the published code computes: its masks of doubtful samples and classes
    multiply numbers that are already reduced, so they only scale the weak terms by the masked share; and the
    strong view's KL at T = 2 and 6 takes the weak view's logits. The main view is the weak one. The code's
    learning rate on CIFAR-100 is 0.025, half the usual one: that is the recipe's matter. ``standardise`` holds
    for the KL only, as in the code of logit standardisation.
    """

    class Params(MethodParams):
        """Variant, weights, and the fifth temperature."""

        variant: Literal["official", "paper"] = Field(
            "official", description="what the published code computes, or what it is meant to"
        )
        ce_weight: float = Field(0.1, ge=0, description="weight of the task's loss on each view")
        kd_weight: float = Field(0.9, ge=0, description="weight of all alignment terms")
        temperature: float = Field(4.0, gt=0, description="the temperature beside 2, 3, 5 and 6")
        standardise: bool = Field(False, description="standardise the logits of both networks for the KL")

    needs = Needs(
        reads="logits", views=("strong",), min_batch=2, capabilities=frozenset({"distillable", "supervised"})
    )
    fidelity = "official-code"
    presets = {
        "cifar100": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
        "imagenet": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
        "cifar100-ls": {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0, "standardise": True},
        "paper": {"variant": "paper"},
    }
    search = {
        "kd_weight": Search(low=0.09, high=9.0, log=True, source="a decade each way of the authors' value"),
        "temperature": Search(
            low=1.0,
            high=8.0,
            log=True,
            source="1 on ImageNet, 2 to 6 on CIFAR in published code",
        ),
    }

    @classmethod
    def requires(cls, params: Any) -> Needs:
        # two standardised logits are the same for all images
        return replace(cls.needs, min_classes=3) if params.standardise else cls.needs

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        zs, zt = student_logits(3), teacher_logits(3)
        return [
            Golden("batch correlation at T = 1", lambda: batch_correlation(zs, zt), 0.1233703, BY_FORMULA),
            Golden("class correlation at T = 1", lambda: class_correlation(zs, zt), 0.2138490, BY_FORMULA),
            Golden(
                "T²·KL of standardised logits at T = 2",
                lambda: instance_divergence(zs[:2], zt[:2], 2.0, scale=True),
                0.2367355,
                BY_FORMULA,
            ),
            Golden(
                "shares of doubtful samples and classes",
                lambda: torch.stack(doubtful_shares(zt)),
                [2 / 3, 2 / 3],
                "of three, the median one counts as doubtful too",
            ),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "mlkd")

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Forward both networks on both views, one after the other as the official code does."""
        assert batch is not None
        with run.amp():
            views = (batch.x, batch.views[0])
            teachers = [run.teach(run.teacher, x).logits for x in views]
            students = [run.student(x) for x in views]
        with run.fp32():
            task = run.task.loss(students[0], batch) + run.task.loss(students[1], batch)
            terms = self.alignment([s.logits for s in students], teachers)
            parts = {
                "task": self.hp.ce_weight * task,
                **{name: self.hp.kd_weight * term for name, term in terms.items()},
            }
            total = sum(parts.values(), start=task.new_zeros(()))
        run.optimize(total)
        return {name: part.detach() for name, part in parts.items()}

    def alignment(self, students: list[Tensor], teachers: list[Tensor]) -> dict[str, Tensor]:
        """Return the three levels, unweighted scalars; logits (B, K) of the weak view, then of the strong one."""
        official, scale = self.hp.variant == "official", self.hp.standardise
        weak, strong = (students[0], teachers[0]), (students[1], teachers[1])
        one = torch.ones((), device=teachers[0].device)
        samples, classes = doubtful_shares(teachers[0]) if official else (one, one)
        out = {name: students[0].new_zeros((), dtype=one.dtype) for name in ("kl", "batch", "class")}
        levels = [(t, official and t in _SWAPPED) for t in _FIXED] + [(self.hp.temperature, False)]
        for t, swapped in levels:
            second = weak if swapped else strong
            out["kl"] = out["kl"] + samples * instance_divergence(*weak, t, scale)
            out["kl"] = out["kl"] + instance_divergence(*second, t, scale)
            out["batch"] = out["batch"] + samples * batch_correlation(*weak, t)
            out["class"] = out["class"] + classes * class_correlation(*weak, t)
        return out
