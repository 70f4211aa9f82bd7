"""Route constrained optimization (Jin et al., ICCV 2019, arXiv:1904.09149)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Method, MethodParams, Needs, Out, Phase, Run


def anchor_at(frac: float, anchors: int) -> int:
    """Return the anchor, 0 to anchors - 1, at progress `frac` in [0, 1): ``floor(frac·anchors)``."""
    # Progress is a quotient of whole numbers: 1e-9 undoes its rounding at the boundaries, e.g. 0.29·100.
    return min(int(frac * anchors + 1e-9), anchors - 1)


class RCO(Method):
    """``L = ce_weight·L_task + kd_weight·D_T(anchor, student)``: the teacher walks its training route.

    The anchors are checkpoints at equal epoch intervals of the teacher's training, the last one its end;
    each supervises an equal share of the student's epochs, under one learning-rate schedule. Progress is
    read at the start of each epoch, so with fewer epochs than anchors some are passed over.

    A reconstruction: there is no official code, and the paper's weight and temperature could not be checked.
    The paper's greedy search for anchors is not included.
    """

    class Params(MethodParams):
        """Number of anchors, weights, temperature."""

        anchors: int = Field(4, ge=1, description="number of teacher checkpoints")
        kd_weight: float = Field(1.0, ge=0, description="weight of the divergence to the anchor (lambda)")
        temperature: float = Field(5.0, gt=0, description="T, divides the logits of both networks")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(route=4, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "reconstruction"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # Not a buffer: the teacher's weights are not in the checkpoint, so a resumed run must load them anew.
        self._loaded: int | None = None

    @classmethod
    def requires(cls, params: Any) -> Needs:
        return Needs(route=params.anchors, capabilities=cls.needs.capabilities)

    def on_phase_start(self, phase: Phase, run: Run) -> None:
        self._loaded = None

    def on_epoch_start(self, run: Run) -> None:
        anchor = anchor_at(run.frac, self.hp.anchors)
        if anchor != self._loaded:
            run.teacher.net.load_state_dict(run.route[anchor]())
            self._loaded = anchor

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        return {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "rco": hp.kd_weight * run.task.divergence(S, T[0], hp.temperature),
        }
