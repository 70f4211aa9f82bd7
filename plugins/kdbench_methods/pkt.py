"""Probabilistic knowledge transfer (Passalis, Tefas; ECCV 2018, arXiv:1803.10837)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full
from kdbench_methods._feature_tools import pooled, require_pooled


def neighbour_probabilities(x: Tensor) -> Tensor:
    """Return P with ``P_ij ∝ (cos(x_i, x_j) + 1)/2`` and rows that sum to 1, (B, D) -> (B, B)."""
    unit = F.normalize(full(x), dim=1)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def pkt_loss(s: Tensor, t: Tensor, eps: float = 1e-7) -> Tensor:
    """Return ``mean_ij P^t_ij·log((P^t_ij + ε)/(P^s_ij + ε))``, a scalar; `s` (B, D), `t` (B, D')."""
    ps, pt = neighbour_probabilities(s), neighbour_probabilities(t)
    # At opposite vectors rounding can make the kernel -1e-8; log takes no such value below -eps.
    return (pt * ((pt.clamp_min(0) + eps).log() - (ps.clamp_min(0) + eps).log())).mean()


class PKT(Method):
    """``L = ce_weight·L_task + weight·pkt_loss`` on the pooled features.

    Follows RepDistiller, whose weight 30000 goes with the mean over B² entries and batches of 64.
    """

    class Params(MethodParams):
        """Weights."""

        weight: float = Field(30000.0, gt=0, description="weight of the divergence of the neighbourhoods")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="pooled", min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"weight": 30000.0}}
    search = {
        "weight": Search(
            low=3000.0, high=300000.0, log=True, source="a decade each way of the authors' value"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        f = torch.tensor([[1, 2], [0, 1], [1, 1]], dtype=torch.float64)
        g = torch.tensor([[1, 1], [1, 1], [0, 1]], dtype=torch.float64)
        return [
            Golden(
                "divergence of the neighbourhoods of three images",
                lambda: pkt_loss(f, g),
                0.000579977,
                "(cos + 1)/2 of all pairs, rows over their sums, mean p·log(p/q), worked out with numpy",
            )
        ]

    def setup(self, run: Run) -> None:
        require_pooled(run, "pkt")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "pkt": self.hp.weight * pkt_loss(pooled(S), pooled(T[0])),
        }
