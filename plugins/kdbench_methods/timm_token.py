"""timm's ``TokenDistillationTask`` (timm.task; after DeiT, Touvron et al., ICML 2021, arXiv:2012.12877)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from timm.task import TokenDistillationTask
from torch import nn

from kdbench.api import Golden, Needs, NotApplicable, Out, Run, Search
from kdbench_methods._golden import BY_FORMULA, TASK_LOSS, stepped, student_logits
from kdbench_methods._timm import TimmParams, TimmTask, TokenPort


class TimmToken(TimmTask):
    """``L = task_loss_weight·L_task(head) + distill_loss_weight·D(distillation head)``, computed by timm.

    ``soft``: D is ``T²·KL`` to the teacher; ``hard``: the cross-entropy with the teacher's answers. The student
    needs a distillation token and head (DeiT or PiT distilled); deployed, it averages its two heads.
    """

    class Params(TimmParams):
        """timm's weights, kind of target and temperature."""

        distill_type: Literal["soft", "hard"] = Field("soft", description="distribution or answer")
        temperature: float = Field(1.0, gt=0, description="soft: T, divides the logits")

    needs = Needs(reads="logits", capabilities=frozenset({"distillable", "supervised"}))
    presets = {
        "timm-docs": {"task_loss_weight": 0.5, "distill_type": "soft", "temperature": 3.0},
        "timm-docs-hard": {"task_loss_weight": 0.5, "distill_type": "hard"},
    }
    search = {
        "distill_loss_weight": Search(low=0.1, high=10.0, log=True, source="as for kd"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }
    port = TokenPort
    distillation_loss = "distill_loss"

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        heads: Any = (student_logits(), student_logits())
        hard = cls(cls.Params(distill_type="hard"))
        return [
            Golden("L_task + KL, heads alike", stepped(cls(), Out(heads)), TASK_LOSS + 0.2450895, BY_FORMULA),
            Golden(
                "L_task + hard distillation, heads alike",
                stepped(hard, Out(heads)),
                2 * TASK_LOSS,
                "the teacher's answers are the labels",
            ),
        ]

    def setup(self, run: Run) -> None:
        if not hasattr(run.student.net, "set_distilled_training"):
            raise NotApplicable(
                "timm-token needs a student with a distillation head (deit_*_distilled, pit_*)"
            )
        super().setup(run)

    def make(self, **common: Any) -> nn.Module:
        return TokenDistillationTask(
            **common, distill_type=self.hp.distill_type, temperature=self.hp.temperature
        )
