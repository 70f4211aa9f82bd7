"""Flow of solution procedure (Yim, Joo, Bae, Kim; CVPR 2017, "A gift from knowledge distillation")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import (
    Batch,
    Golden,
    Handle,
    Method,
    MethodParams,
    Needs,
    NotApplicable,
    Opt,
    Out,
    Phase,
    Run,
    Search,
    Tap,
)
from kdbench_methods._common import channels, connector, full, match_size, want_pairs


def flow(a: Tensor, b: Tensor) -> Tensor:
    """Return ``G_ij = 1/(H·W)·Σ_hw a_ihw·b_jhw`` of each image: (B, C1, H, W), (B, C2, H', W') -> (B, C1, C2).

    The larger map is average-pooled to the smaller. The sums are taken in float32.
    """
    a, b = match_size(full(a), full(b))
    a, b = a.flatten(2), b.flatten(2)
    return a @ b.transpose(1, 2) / a.shape[2]


def flow_loss(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """Return ``Σ_i mean((G(s_i, s_{i+1}) - G(t_i, t_{i+1}))²)`` over consecutive maps, a scalar.

    `s`, `t`: lists of (B, C_i, H, W) maps with equal channel counts, earliest stage first, at least two.
    Heights and widths may differ between the networks.
    """
    terms = [
        (flow(s[i], s[i + 1]) - flow(t[i], t[i + 1])).square().mean() for i in range(min(len(s), len(t)) - 1)
    ]
    return sum(terms[1:], start=terms[0])


def has_stem(handle: Handle) -> bool:
    """Return whether ``Tap(0)`` is a stem before the first stage: stages are numbered 1, 2, ... without gaps."""
    return handle.stages == tuple(range(1, len(handle.stages) + 1))


class FSP(Method):
    """``L = weight·Σ_i mean((G^s_i - G^t_i)²)``, then ``L = ce_weight·L_task``; G_i: stages i - 1 and i.

    Two phases, as in the paper: first the flow matrices alone, then the task alone; ``procedure="joint"``
    minimises the sum at once. G_i is (B, C_{i-1}, C_i), the inner products of the maps at the start and at the
    end of stage i; the first one starts at the stem, where both networks have one of equal width.

    Follows RepDistiller (mean squares; 30 epochs of initialisation at a constant learning rate before the 240
    of the task, here within one budget), but for its BatchNorm statistics, which it does not update while it
    initialises. The preset ``joint`` is not published as such; its 50 is on RepDistiller's command line, where
    it has no effect. Channel counts must be equal; ``connectors=True`` lifts that by a 1×1 convolution and
    BatchNorm on the student's maps, which is no longer the paper's method.
    """

    class Params(MethodParams):
        """Procedure, weights, stem and connectors."""

        procedure: Literal["two-phase", "joint"] = Field("two-phase", description="flow then task, or both")
        weight: float = Field(1.0, gt=0, description="weight of the distance of the flow matrices")
        flow_share: float = Field(30 / 270, gt=0, lt=1, description="share of the epochs of phase flow")
        stem: bool = Field(True, description="begin with the matrix from the stem to the first stage")
        connectors: bool = Field(False, description="match unequal channel counts by connectors")
        ce_weight: float = Field(1.0, gt=0, description="weight of the task's loss")

    needs = Needs(equal_channels=True, min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"procedure": "two-phase", "weight": 1.0, "flow_share": 30 / 270},
        "joint": {"procedure": "joint", "weight": 50.0},
    }
    search = {
        "weight": Search(low=0.1, high=500.0, log=True, source="the authors' 1, later code's 50"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        a = torch.tensor([[[[1, 2], [0, 1]]]], dtype=torch.float64)
        b = torch.tensor([[[[1, 1], [2, 0]], [[0, 1], [1, 1]]]], dtype=torch.float64)
        return [
            Golden(
                "flow matrix of [[1, 2], [0, 1]] and two channels",
                lambda: flow(a, b),
                [[[0.75, 0.75]]],
                "1/(HW) Σ a_i·b_j by hand: (1 + 2)/4 and (2 + 1)/4",
            ),
            Golden(
                "mean square of the difference to the matrix of (a, 2b)",
                lambda: flow_loss([a, b], [a, 2 * b]),
                0.5625,
                "0.75² by hand, as the matrix is linear in b",
            ),
        ]

    @classmethod
    def requires(cls, params: Any) -> Needs:
        needs = cls.needs
        return Needs(
            equal_channels=not params.connectors, min_batch=needs.min_batch, capabilities=needs.capabilities
        )

    def setup(self, run: Run) -> None:
        self.pairs = self._stem_pair(run) + want_pairs(run, "post")
        if len(self.pairs) < 2:
            raise NotApplicable("fsp needs two stages on both sides")
        self.connectors = nn.ModuleList(
            connector(channels(run.student, a), channels(run.teacher, b))
            if self.hp.connectors
            else nn.Identity()
            for a, b in self.pairs
        )

    def _stem_pair(self, run: Run) -> list[tuple[Tap, Tap]]:
        student, teacher = run.student, run.teacher
        aligned = len(student.stages) == len(teacher.stages) and has_stem(student) and has_stem(teacher)
        if not (self.hp.stem and aligned):
            return []
        tap = Tap(0)
        if not self.hp.connectors and channels(student, tap) != channels(teacher, tap):
            return []
        student.want(tap)
        teacher.want(tap)
        return [(tap, tap)]

    def phases(self, run: Run) -> Sequence[Phase]:
        if self.hp.procedure == "joint":
            return [Phase("joint")]
        share, net = self.hp.flow_share, run.student.net
        first = Opt((net, self.connectors) if self.hp.connectors else (net,), schedule="constant")
        return [
            Phase("flow", share, optimizers={"main": first}, step=self.flow_step, evaluate=False),
            Phase("train", 1 - share, optimizers={"main": Opt((net,))}, step=self.train_step),
        ]

    def distance(self, S: Out, T: Out, run: Run) -> Tensor:
        """Return the weighted loss of one forward of each network, a scalar."""
        with run.amp():
            s = [c(S.feats[a]) for c, (a, _) in zip(self.connectors, self.pairs, strict=True)]
        return self.hp.weight * flow_loss(s, [T.feats[b] for _, b in self.pairs])

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "fsp": self.distance(S, T[0], run),
        }

    def flow_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step on the flow matrices alone."""
        assert batch is not None
        with run.amp():
            teacher = run.teach(run.teacher, batch.x, head=False)
            student = run.student(batch.x)
        with run.fp32():
            loss = self.distance(student, teacher, run)
        run.optimize(loss)
        return {"fsp": loss.detach()}

    def train_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step on the task alone; the teacher is not asked."""
        assert batch is not None
        with run.amp():
            student = run.student(batch.x, ())
        with run.fp32():
            loss = self.hp.ce_weight * run.task.loss(student, batch)
        run.optimize(loss)
        return {"task": loss.detach()}
