"""Knowledge distillation from softened outputs (Hinton, Vinyals, Dean; arXiv:1503.02531, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import kl_divergence, require_categorical, standardise
from kdbench_methods._golden import BY_FORMULA, student_logits, teacher_logits, total


class KD(Method):
    """``L = ce_weight·L_task + alpha·D_T(teacher, student)``.

    D is the task's default divergence; for classes it is ``T²·KL(p_T(z^t) ‖ p_T(z^s))``, batch mean. The
    paper's two-term objective is kept; weights and temperature are those of the reference code of later
    papers (mdistiller), on CIFAR-100 by default. With ``standardise`` the divergence sees logits of mean 0 and
    standard deviation 1 (Sun et al., arXiv:2403.01427); `kd-ls` is that with its own weights. Two logits are
    ±0.71 whatever they were once they are standardised, so that takes three classes.
    """

    class Params(MethodParams):
        """Weights and temperature."""

        alpha: float = Field(0.9, ge=0, description="weight of the divergence to the teacher")
        ce_weight: float = Field(0.1, ge=0, description="weight of the task's loss")
        temperature: float = Field(4.0, gt=0, description="T, divides the logits of both networks")
        standardise: bool = Field(False, description="standardise the logits of both networks first")

    needs = Needs(reads="logits", capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "paper"
    presets = {
        "cifar100": {"alpha": 0.9, "ce_weight": 0.1, "temperature": 4.0},
        "imagenet": {"alpha": 0.5, "ce_weight": 0.5, "temperature": 1.0},
    }
    search = {
        "alpha": Search(low=0.1, high=10.0, log=True, source="mdistiller: 0.5 and 0.9; arXiv:2403.01427: 9"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def requires(cls, params: Any) -> Needs:
        return replace(cls.needs, min_classes=3) if params.standardise else cls.needs

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def divergence(t: float) -> Tensor:
            return t**2 * kl_divergence(student_logits(), teacher_logits(), t)

        return [
            Golden("T²·KL at T = 1", lambda: divergence(1.0), 0.2450895, BY_FORMULA),
            Golden("T²·KL at T = 2", lambda: divergence(2.0), 0.3160634, BY_FORMULA),
            Golden("T²·KL at T = 4", lambda: divergence(4.0), 0.3613417, BY_FORMULA),
            Golden("0.1·L_task + 0.9·T²·KL at T = 4", total(cls()), 0.4040801, BY_FORMULA),
        ]

    def setup(self, run: Run) -> None:
        if self.hp.standardise:
            require_categorical(run, "logit standardisation")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp, student, teacher = self.hp, S, T[0]
        if hp.standardise:
            student, teacher = Out(standardise(S.logits)), Out(standardise(T[0].logits))
        return {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "kd": hp.alpha * run.task.divergence(student, teacher, hp.temperature),
        }
