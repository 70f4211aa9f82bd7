"""Softmax regression representation learning (Yang, Martinez, Bulat, Tzimiropoulos; ICLR 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import channels, connector, full, require_categorical
from kdbench_methods._feature_tools import LAST, pooled, teacher_head


def feature_matching(s: Tensor, t: Tensor) -> Tensor:
    """Return ``(1/B) Σ_b mean_c (s_bc - t_bc)²``, a scalar; `s`, `t`: spatial means (B, C)."""
    return F.mse_loss(full(s), full(t))


def softmax_regression(zs: Tensor, zt: Tensor) -> Tensor:
    """Return ``mean((zs - zt)²)`` over batch and classes, a scalar.

    `zs`: logits (B, K) of the teacher's classifier on the student's feature, `zt`: on the teacher's own.
    """
    return F.mse_loss(full(zs), full(zt))


class SRRL(Method):
    """``L = ce_weight·L_task + alpha·L_FM + beta·L_SR``, on the pooled feature of the last stage.

    The connector (1×1 convolution, BatchNorm, ReLU) takes the student's last map to the teacher's channels;
    L_FM compares its spatial mean with the input of the teacher's classifier, L_SR what that classifier makes
    of both (mean squared error of logits, as in the official code, where all weights are 1). The ReLU is left
    out for teachers whose feature has negative values. Classifier and connector are dropped after training.
    """

    class Params(MethodParams):
        """Weights."""

        alpha: float = Field(1.0, ge=0, description="weight of the feature matching")
        beta: float = Field(1.0, gt=0, description="weight of the softmax regression")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(min_batch=2, capabilities=frozenset({"distillable", "features", "supervised"}))
    fidelity = "official-code"
    presets = {"imagenet": {"alpha": 1.0, "beta": 1.0}}
    search = {
        "alpha": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
        "beta": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
    }
    taps = {"student": (LAST,)}

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[1, 2], [0, 1]], dtype=torch.float64)
        t = torch.tensor([[1, 1], [2, 1]], dtype=torch.float64)
        by_hand = "mean square by hand: differences 0, 1, -2, 0"
        return [
            Golden("feature matching", lambda: feature_matching(s, t), 1.25, by_hand),
            Golden("softmax regression", lambda: softmax_regression(s, t), 1.25, by_hand),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "srrl")
        head = teacher_head(run, "srrl")
        made = connector(channels(run.student, LAST), head.width)
        self.connector = nn.Sequential(*made, nn.ReLU()) if head.nonnegative else made
        self.classifier = head.classifier

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        with run.amp():
            s = self.connector(S.feats[LAST])
        s = full(s).mean((2, 3))
        parts = {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "regression": hp.beta * softmax_regression(self.classifier(s), T[0].logits),
        }
        if hp.alpha:
            parts["features"] = hp.alpha * feature_matching(s, pooled(T[0]))
        return parts
