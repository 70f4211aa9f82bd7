"""Flow of solution procedure (Yim, Joo, Bae, Kim; CVPR 2017, "A gift from knowledge distillation")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Method, MethodParams, Needs, NotApplicable, Opt, Out, Phase, Run
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


class FSP(Method):
    """First match the flow matrices (phase ``flow``), then learn the task (``two-phase``), or both at once.

    Follows RepDistiller, but for the maps of its stem, which are left out here: mean squares, and 30 epochs
    of initialisation before the 240 of the task, here within one budget. `weight` counts in both
    procedures; the preset ``joint`` is not published as such, its 50 is RepDistiller's command line. Channel
    counts must be equal; ``connectors=True`` lifts that by a 1×1 convolution and BatchNorm on the student's
    maps, which is no longer the paper's method.
    """

    class Params(MethodParams):
        """Procedure, weights and connectors."""

        procedure: Literal["two-phase", "joint"] = Field("two-phase", description="flow then task, or both")
        weight: float = Field(1.0, gt=0, description="weight of the distance of the flow matrices")
        flow_share: float = Field(30 / 270, gt=0, lt=1, description="share of the epochs of phase flow")
        connectors: bool = Field(False, description="match unequal channel counts by connectors")
        ce_weight: float = Field(1.0, gt=0, description="weight of the task's loss")

    needs = Needs(equal_channels=True, min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"procedure": "two-phase", "weight": 1.0, "flow_share": 30 / 270},
        "joint": {"procedure": "joint", "weight": 50.0},
    }

    @classmethod
    def requires(cls, params: Any) -> Needs:
        needs = cls.needs
        return Needs(
            equal_channels=not params.connectors, min_batch=needs.min_batch, capabilities=needs.capabilities
        )

    def setup(self, run: Run) -> None:
        self.pairs = want_pairs(run, "post")
        if len(self.pairs) < 2:
            raise NotApplicable("fsp needs two stages on both sides")
        self.connectors = nn.ModuleList(
            connector(channels(run.student, a), channels(run.teacher, b))
            if self.hp.connectors
            else nn.Identity()
            for a, b in self.pairs
        )

    def phases(self, run: Run) -> Sequence[Phase]:
        if self.hp.procedure == "joint":
            return [Phase("joint")]
        share, net = self.hp.flow_share, run.student.net
        first = Opt((net, self.connectors) if self.hp.connectors else (net,))
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
            teacher = run.teach(run.teacher, batch.x)
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
