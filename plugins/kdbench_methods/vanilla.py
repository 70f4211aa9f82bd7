"""The student alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kdbench.api import Batch, Method, Needs, Out, Run


class Vanilla(Method):
    """Training with the task's supervised loss only; teachers are trained this way too."""

    needs = Needs(teachers=0, capabilities=frozenset({"supervised"}))

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        return {"task": run.task.loss(S, batch)}
