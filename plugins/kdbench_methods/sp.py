"""Similarity-preserving distillation (Tung, Mori; ICCV 2019, arXiv:1907.09682)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full
from kdbench_methods._feature_tools import want_last_stages


def similarity(x: Tensor) -> Tensor:
    """Return G = XXᵀ with rows of length 1, (B, B); X is (B, ...) flattened per image."""
    flat = full(x).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def similarity_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return ``(1/B²)·‖G(s) - G(t)‖²_F``, a scalar.

    `s`, `t`: maps or vectors of the same B images; all other sizes may differ. The products are sums over
    C·H·W and overflow half precision.
    """
    return (similarity(s) - similarity(t)).square().mean()


class SP(Method):
    """``L = ce_weight·L_task + gamma·Σ similarity_loss`` on the last stage, or on more of the last stages.

    Features (B, ...), similarities (B, B). Follows RepDistiller (last stage only, weight 3000). The loss compares
    the images of one batch, so gamma belongs to a batch size (64 there).
    """

    class Params(MethodParams):
        """Weights and number of stages."""

        gamma: float = Field(3000.0, gt=0, description="weight of the distance of the similarities")
        stages: int = Field(1, ge=1, description="how many of the last stages")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="taps", min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"gamma": 3000.0}}
    search = {
        "gamma": Search(
            low=300.0, high=30000.0, log=True, source="a decade each way of the value in arXiv:1907.09682"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[1, 0], [1, 1]], dtype=torch.float64)
        t = torch.eye(2, dtype=torch.float64)
        return [
            Golden(
                "similarity of [[1, 0], [1, 1]] and the unit matrix",
                lambda: similarity_loss(s, t),
                (4 - math.sqrt(2) - 4 / math.sqrt(5)) / 4,
                "by hand: rows (1, 1)/√2 and (1, 2)/√5 against (1, 0) and (0, 1): 0.1992330",
            )
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_last_stages(run, "post", self.hp.stages)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        terms = [similarity_loss(S.feats[a], T[0].feats[b]) for a, b in self.pairs]
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "sp": self.hp.gamma * sum(terms[1:], start=terms[0]),
        }
