"""Relational knowledge distillation (Park, Kim, Lu, Cho; CVPR 2019, arXiv:1904.05068)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full
from kdbench_methods._feature_tools import pooled, require_pooled


def relative_distances(x: Tensor) -> Tensor:
    """Return Euclidean distances over the mean of the positive ones, (B, D) -> (B, B), zero diagonal.

    Squares are cut off at 1e-12 before the root, so the gradient of equal rows is 0. The rows are centred
    first: distances keep, and the difference of large squares loses fewer digits.
    """
    x = full(x)
    x = x - x.mean(0, keepdim=True)
    squares = x.square().sum(1)
    gram = squares[:, None] + squares[None] - 2 * x @ x.T
    off_diagonal = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = gram.clamp_min(1e-12).sqrt() * off_diagonal
    count = off_diagonal.sum().clamp_min(1)
    return distances / (distances.sum() / count).clamp_min(1e-12)


def angles(x: Tensor) -> Tensor:
    """Return ``cos∠(x_j, x_i, x_k)`` at vertex i for all triplets, (B, D) -> (B, B, B).

    Takes B²·D + B³ numbers; a side of length 0 gives 0.
    """
    x = full(x)
    sides = F.normalize(x[None] - x[:, None], dim=2)
    return sides @ sides.transpose(1, 2)


def distance_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return the mean smooth-L1 distance of :func:`relative_distances`, a scalar; `s` (B, D), `t` (B, D')."""
    return F.smooth_l1_loss(relative_distances(s), relative_distances(t))


def angle_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return the mean smooth-L1 distance of :func:`angles`, a scalar; `s` (B, D), `t` (B, D')."""
    return F.smooth_l1_loss(angles(s), angles(t))


class RKD(Method):
    """``L = ce_weight·L_task + distance_weight·L_D + angle_weight·L_A`` on the pooled features.

    Follows RepDistiller (weights 25 and 50, classification). Memory grows with B²·D + B³: 600 MB a network
    at B = 256, D = 2048.
    """

    class Params(MethodParams):
        """Weights."""

        distance_weight: float = Field(25.0, ge=0, description="weight of the distances' loss")
        angle_weight: float = Field(50.0, ge=0, description="weight of the angles' loss")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="pooled", min_batch=3, capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"distance_weight": 25.0, "angle_weight": 50.0}}
    search = {
        "distance_weight": Search(
            low=2.5, high=250.0, log=True, source="arXiv:1904.05068: 25 and 50 for the two weights"
        ),
        "angle_weight": Search(
            low=5.0, high=500.0, log=True, source="arXiv:1904.05068: 25 and 50 for the two weights"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        f = torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=torch.float64)
        g = torch.tensor([[0, 0], [3, 0], [0, 4]], dtype=torch.float64)
        by_hand = "right-angled triangles with legs 1, 2 and 3, 4: mean of half squares of the differences"
        return [
            Golden("loss of distances", lambda: distance_loss(f, g), 0.0059560, by_hand),
            Golden("loss of angles", lambda: angle_loss(f, g), 0.0011948, by_hand, 1e-4),
        ]

    def setup(self, run: Run) -> None:
        require_pooled(run, "rkd")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp, s, t = self.hp, pooled(S), pooled(T[0])
        parts = {"task": hp.ce_weight * run.task.loss(S, batch)}
        if hp.distance_weight:
            parts["distance"] = hp.distance_weight * distance_loss(s, t)
        if hp.angle_weight:
            parts["angle"] = hp.angle_weight * angle_loss(s, t)
        return parts
