"""timm's ``FeatureDistillationTask`` (timm.task; regression of features after Romero et al., arXiv:1412.6550)."""

from __future__ import annotations

from typing import Any

from timm.task import FeatureDistillationTask
from torch import nn

from kdbench.api import Needs, NotApplicable, Run
from kdbench_methods._timm import TimmTask


class TimmFeature(TimmTask):
    """``L = task_loss_weight·L_task + distill_loss_weight·mean((W·f^s - f^t)²)``, computed by timm.

    f is what enters the classifier, (B, D); W is a linear layer with bias where the widths differ, and the
    identity where they are equal.
    """

    needs = Needs(capabilities=frozenset({"features", "supervised"}))
    presets = {"timm-docs": {"task_loss_weight": 1.0, "distill_loss_weight": 5.0}}

    def setup(self, run: Run) -> None:
        for handle in (run.student, run.teacher):
            if not handle.num_features:
                raise NotApplicable(f"timm-feature: {handle.name} has no classifier to take features from")
        super().setup(run)

    def make(self, **common: Any) -> nn.Module:
        return FeatureDistillationTask(**common)
