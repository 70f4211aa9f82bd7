"""Route constrained optimization (Jin et al., ICCV 2019, arXiv:1904.09149)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdbench.api import (
    Batch,
    Golden,
    KdbenchError,
    Method,
    MethodParams,
    Needs,
    NotApplicable,
    Out,
    Phase,
    Run,
    Search,
)
from kdbench_methods._golden import BY_FORMULA, TASK_LOSS, total


def anchor_at(frac: float, anchors: int) -> int:
    """Return the anchor, 0 to anchors - 1, at progress `frac` in [0, 1): ``floor(frac·anchors)``."""
    # Progress is a quotient of whole numbers: 1e-9 undoes its rounding at the boundaries, e.g. 0.29·100.
    return min(int(frac * anchors + 1e-9), anchors - 1)


def next_anchor(hardness: Callable[[int], float], current: int, last: int, delta: float) -> int:
    """Return the furthest j in (current, last] with ``H(j)/H(current) <= delta``, else ``current + 1``.

    `hardness(j)` is H, the student's divergence from checkpoint j; it is asked for as few j as it takes, from
    the last one backwards. `current` = `last` stays. A student that equals the current checkpoint (H = 0)
    goes one further.
    """
    if last - current <= 1:
        return last
    bound = delta * hardness(current)
    return next((j for j in range(last, current + 1, -1) if hardness(j) <= bound), current + 1)


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    flags = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


class RCO(Method):
    """``L = ce_weight·L_task + kd_weight·D_T(anchor, student)``: the teacher walks its training route.

    The student's epochs are divided into `anchors` equal stages under one learning-rate schedule; in each, one
    checkpoint of the teacher's training, the anchor, supervises. Progress is read at the start of each epoch,
    so with fewer epochs than anchors some are passed over.

    ``strategy="equal"``: the anchors lie at equal epoch intervals of the teacher's training, the last one at
    its end. ``strategy="greedy"``: the teacher keeps `candidates` such checkpoints. The first stage takes the
    first of them. Each later one takes the furthest whose hardness, relative to that of the current anchor, is
    at most `delta`; hardness is the student's mean divergence from it (T = 1) on the validation split. Where
    none is near enough it takes the next one; the last stage always takes the end of the route.

    A reconstruction: there is no official code, and the paper's weight, temperature and threshold could not be
    checked. That the stages of the greedy search are equally long, and that the last one jumps to the end, is
    ours, so that every strategy has the same budget and ends with the same teacher.
    """

    class Params(MethodParams):
        """How anchors are chosen, weights, temperature."""

        anchors: int = Field(4, ge=1, description="number of stages; equal: also of teacher checkpoints")
        strategy: Literal["equal", "greedy"] = Field(
            "equal", description="anchors at equal intervals, or chosen by hardness"
        )
        candidates: int = Field(10, ge=1, description="greedy: number of teacher checkpoints to choose from")
        delta: float = Field(1.5, gt=0, description="greedy: largest relative hardness of the next anchor")
        kd_weight: float = Field(1.0, ge=0, description="weight of the divergence to the anchor (lambda)")
        temperature: float = Field(5.0, gt=0, description="T, divides the logits of both networks")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

        @model_validator(mode="after")
        def _enough_candidates(self) -> Any:
            if self.strategy == "greedy" and self.candidates < self.anchors:
                raise ValueError(f"candidates ({self.candidates}) must not be fewer than anchors")
            return self

    needs = Needs(route=4, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "reconstruction"
    presets = {"greedy": {"strategy": "greedy"}}
    search = {
        "kd_weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        near = (1.0, 1.2, 1.4, 2.0)
        return [
            Golden(
                "anchors of eight epochs, four stages",
                lambda: [anchor_at(epoch / 8, 4) for epoch in range(8)],
                [0, 0, 1, 1, 2, 2, 3, 3],
                "floor(4·epoch/8)",
            ),
            Golden(
                "greedy choice among hardnesses 1, 1.2, 1.4, 2 at delta 1.5",
                lambda: next_anchor(near.__getitem__, 0, 3, 1.5),
                2,
                "1.4 is the furthest at most 1.5 times as hard as the current one",
            ),
            Golden("L_task + T²·KL at T = 5", total(cls()), TASK_LOSS + 0.3689356, BY_FORMULA),
        ]

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # Not a buffer: the teacher's weights are not in the checkpoint, so a resumed run must load them anew.
        self._loaded: int | None = None

    @classmethod
    def requires(cls, params: Any) -> Needs:
        route = params.candidates if params.strategy == "greedy" else params.anchors
        return Needs(route=route, capabilities=cls.needs.capabilities)

    def setup(self, run: Run) -> None:
        if self.hp.strategy == "equal":
            return
        if not run.probing:
            try:
                run.split("val")
            except KeyError:
                raise NotApplicable("rco: strategy 'greedy' needs a validation split") from None
        # Buffers, so that a resumed run goes on with the choice that was made: stage, and its candidate.
        self.register_buffer("stage", torch.tensor(-1))
        self.register_buffer("chosen", torch.tensor(0))

    def on_phase_start(self, phase: Phase, run: Run) -> None:
        self._loaded = None

    def on_epoch_start(self, run: Run) -> None:
        # not run.frac: where a cut epoch resumes, that is past the start of the epoch
        anchor = anchor_at(run.epoch / run.phase_epochs, self.hp.anchors)
        self._load(self._greedy(anchor, run) if self.hp.strategy == "greedy" else anchor, run)

    def _load(self, anchor: int, run: Run) -> None:
        if anchor != self._loaded:
            run.teacher.net.load_state_dict(run.route[anchor]())
            self._loaded = anchor

    def _greedy(self, stage: int, run: Run) -> int:
        """Return the candidate of a stage; it is chosen when the stage is seen for the first time."""
        last = len(run.route) - 1
        if stage != int(self.stage):
            if stage == self.hp.anchors - 1:
                chosen = last
            elif int(self.stage) < 0:
                chosen = 0
            else:
                chosen = next_anchor(lambda j: self.hardness(j, run), int(self.chosen), last, self.hp.delta)
            self.stage.fill_(stage)
            self.chosen.fill_(chosen)
        run.log({"rco_anchor": self.chosen})
        return int(self.chosen)

    def hardness(self, anchor: int, run: Run) -> float:
        """Return the student's mean divergence at T = 1 from a checkpoint of the route, on ``val``."""
        self._load(anchor, run)
        total: Tensor | None = None
        count = 0
        with _eval_mode(run.student.net), run.amp():
            for batch in run.split("val"):
                teacher, student = run.teach(run.teacher, batch.x), run.student(batch.x, ())
                with run.fp32():
                    step = run.task.divergence(student, teacher, 1.0) * len(batch.x)
                total = step if total is None else total + step
                count += len(batch.x)
        if total is None:
            raise KdbenchError("rco: the validation split has no images")
        return float(total) / count

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        return {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "rco": hp.kd_weight * run.task.divergence(S, T[0], hp.temperature),
        }
