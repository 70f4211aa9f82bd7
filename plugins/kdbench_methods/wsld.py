"""Weighted soft labels (Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang; ICLR 2021, arXiv:2102.00650)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full, require_categorical
from kdbench_methods._golden import BY_FORMULA, TASK_LOSS, labels, student_logits, teacher_logits, total


def soft_label_weights(zs: Tensor, zt: Tensor, y: Tensor) -> Tensor:
    """Return ``w = 1 - exp(-ce_s / (ce_t + 1e-7))`` per sample (B,), without gradient.

    ce is the cross-entropy of the logits (B, K) at T = 1 with the labels `y` (B,): a sample that the student
    knows better than the teacher counts little.
    """
    with torch.no_grad():
        ce_s = F.cross_entropy(full(zs), y, reduction="none")
        ce_t = F.cross_entropy(full(zt), y, reduction="none")
        return -torch.expm1(-ce_s / (ce_t + 1e-7))


def wsl_loss(zs: Tensor, zt: Tensor, y: Tensor, temperature: float = 2.0) -> Tensor:
    """Return ``T²·(1/B) Σ_b w_b·H(p_T(z^t_b), p_T(z^s_b))``, a scalar; H is the cross-entropy in nats.

    `zs`, `zt`: logits (B, K); `y`: labels (B,) int64; w of :func:`soft_label_weights`. As in the official code
    H keeps the teacher's entropy, which has no gradient.
    """
    log_s = F.log_softmax(full(zs) / temperature, 1)
    soft = F.softmax(full(zt) / temperature, 1)
    return temperature**2 * (soft_label_weights(zs, zt, y) * -(soft * log_s).sum(1)).mean()


class WSLD(Method):
    """``L = ce_weight·L_task + alpha·T²·mean(w·H(p^t, p^s))``: soft labels weighted sample by sample.

    The published code is for ImageNet, and its values are the defaults; there is none of the authors for
    CIFAR-100, where re-implementations take the same ones.
    """

    class Params(MethodParams):
        """Weights and temperature."""

        alpha: float = Field(2.5, ge=0, description="weight of the weighted soft labels")
        temperature: float = Field(2.0, gt=0, description="T, divides the logits of both networks")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="logits", capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"alpha": 2.5, "temperature": 2.0},
        "imagenet": {"alpha": 2.5, "temperature": 2.0},
    }
    search = {
        "alpha": Search(
            low=0.25, high=25.0, log=True, source="a decade each way of the value in arXiv:2102.00650"
        ),
        "temperature": Search(
            low=1.0,
            high=8.0,
            log=True,
            source="1 on ImageNet, 2 to 6 on CIFAR in published code",
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "weights of two samples",
                lambda: soft_label_weights(student_logits(), teacher_logits(), labels()),
                [0.9683605, 0.9240709],
                "1 - exp(-1.4076060/0.4076060) and 1 - exp(-0.1698460/0.0658839), the cross-entropies",
            ),
            Golden(
                "L_task + 2.5·T²·mean(w·H) at T = 2", total(cls()), TASK_LOSS + 2.5 * 3.6664837, BY_FORMULA
            ),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "wsld")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        assert batch.y is not None
        return {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "wsl": hp.alpha * wsl_loss(S.logits, T[0].logits, batch.y, hp.temperature),
        }
