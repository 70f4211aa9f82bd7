"""The student alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kdbench.api import Batch, Golden, Method, Needs, Out, Run
from kdbench_methods._golden import TASK_LOSS, total


class Vanilla(Method):
    """``L = L_task``, the task's supervised loss alone; teachers are trained this way too."""

    needs = Needs(teachers=0, capabilities=frozenset({"supervised"}))
    fidelity = ""

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "cross-entropy of two samples",
                total(cls()),
                TASK_LOSS,
                "by hand: (log(1 + e + 1/e) + log(1 + e^-2 + e^-3))/2",
            )
        ]

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        return {"task": run.task.loss(S, batch)}
