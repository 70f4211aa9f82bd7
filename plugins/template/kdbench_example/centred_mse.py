"""Matching of centred logits (Hinton, Vinyals, Dean; arXiv:1503.02531, section 2.1, equation 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run


def centred_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of centred logits, a scalar.

    Both are (B, K); centred means that the mean over classes is taken out. It is the limit of
    ``T²·KL(teacher ‖ student)``, both softened by T, for T to infinity, over the number of classes.
    """
    difference = student.float() - teacher.float()
    return 0.5 * (difference - difference.mean(dim=1, keepdim=True)).square().mean()


class CentredMSE(Method):
    """``L = L_task + weight·centred_mse(z^s, z^t)``."""

    class Params(MethodParams):
        """Weight of the second term."""

        weight: float = Field(1.0, ge=0, description="weight of the squared error of the logits")

    needs = Needs(capabilities=frozenset({"distillable", "supervised"}))
    presets = {"gentle": {"weight": 0.1}}
    fidelity = "paper"

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        student, teacher = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
        by_hand = "½·(0.5² + 0.5²)/2"
        return [Golden("logits (1, 0), (0, 0)", lambda: centred_mse(student, teacher), 0.125, by_hand)]

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        match = self.hp.weight * centred_mse(S.logits, T[0].logits)
        return {"task": run.task.loss(S, batch), "match": match}
