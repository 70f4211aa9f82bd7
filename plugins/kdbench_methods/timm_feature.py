"""timm's ``FeatureDistillationTask`` (timm.task; regression of features after Romero et al., arXiv:1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.task import FeatureDistillationTask
from torch import nn

from kdbench.api import Golden, Needs, NotApplicable, Out, Run, Search
from kdbench_methods._golden import TASK_LOSS, stepped, student_logits, teacher_logits
from kdbench_methods._timm import TimmTask


class TimmFeature(TimmTask):
    """``L = task_loss_weight·L_task + distill_loss_weight·mean((W·f^s - f^t)²)``, computed by timm.

    f is what enters the classifier, (B, D); W is a linear layer with bias where the widths differ, and the
    identity where they are equal.
    """

    needs = Needs(reads="pooled", capabilities=frozenset({"features", "supervised"}))
    presets = {"timm-docs": {"task_loss_weight": 1.0, "distill_loss_weight": 5.0}}
    search = {
        "distill_loss_weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of 1"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = Out(student_logits(), pooled=torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        t = Out(teacher_logits(), pooled=torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        return [
            Golden(
                "L_task + mean((f^s - f^t)²) of features of one width",
                stepped(cls(), s, t),
                TASK_LOSS + 0.5,
                "by hand: the squares 0, 1, 1, 0 of four differences",
            )
        ]

    def setup(self, run: Run) -> None:
        for handle in (run.student, run.teacher):
            if not handle.num_features:
                raise NotApplicable(f"timm-feature: {handle.name} has no classifier to take features from")
        super().setup(run)

    def make(self, **common: Any) -> nn.Module:
        return FeatureDistillationTask(**common)
