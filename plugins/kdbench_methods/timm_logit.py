"""timm's ``LogitDistillationTask`` (timm.task; after Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from timm.task import LogitDistillationTask
from torch import nn

from kdbench.api import Golden, Needs, Search
from kdbench_methods._golden import BY_FORMULA, TASK_LOSS, stepped
from kdbench_methods._timm import TimmParams, TimmTask


class TimmLogit(TimmTask):
    """``L = task_loss_weight·L_task + distill_loss_weight·T²·KL(p_T(z^t) ‖ p_T(z^s))``, computed by timm.

    With equal weights and temperature it is kd; what differs is timm's weighting and its T = 1.
    """

    class Params(TimmParams):
        """timm's weights and temperature."""

        temperature: float = Field(1.0, gt=0, description="T, divides the logits of both networks")

    needs = Needs(reads="logits", capabilities=frozenset({"distillable", "supervised"}))
    presets = {"timm-docs": {"task_loss_weight": 0.3, "temperature": 4.0}}
    search = {
        "distill_loss_weight": Search(low=0.1, high=10.0, log=True, source="as for kd"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        docs = cls(cls.Params(**cls.presets["timm-docs"]))
        return [
            Golden("L_task + KL", stepped(cls()), TASK_LOSS + 0.2450895, BY_FORMULA),
            Golden(
                "0.3·L_task + 0.7·T²·KL at T = 4",
                stepped(docs),
                0.3 * TASK_LOSS + 0.7 * 0.3613417,
                BY_FORMULA,
            ),
        ]

    def make(self, **common: Any) -> nn.Module:
        return LogitDistillationTask(**common, temperature=self.hp.temperature)
