"""timm's ``LogitDistillationTask`` (timm.task; after Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from timm.task import LogitDistillationTask
from torch import nn

from kdbench.api import Needs
from kdbench_methods._timm import TimmParams, TimmTask


class TimmLogit(TimmTask):
    """``L = task_loss_weight·L_task + distill_loss_weight·T²·KL(p_T(z^t) ‖ p_T(z^s))``, computed by timm.

    With equal weights and temperature it is kd; what differs is timm's weighting and its T = 1.
    """

    class Params(TimmParams):
        """timm's weights and temperature."""

        temperature: float = Field(1.0, gt=0, description="T, divides the logits of both networks")

    needs = Needs(capabilities=frozenset({"distillable", "supervised"}))
    presets = {"timm-docs": {"task_loss_weight": 0.3, "temperature": 4.0}}

    def make(self, **common: Any) -> nn.Module:
        return LogitDistillationTask(**common, temperature=self.hp.temperature)
