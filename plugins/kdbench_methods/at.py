"""Attention transfer (Zagoruyko, Komodakis; ICLR 2017, arXiv:1612.03928)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full, match_size
from kdbench_methods._feature_tools import require_spatial, want_last_stages

#: How the golden values are found: energies of the four positions of both maps, over their lengths.
_ENERGIES = "q(s) = (1, 1, 5, 5)/√52, q(t) = (5, 1, 0, 2)/√30; mean of squares, norm of the difference"


def attention(x: Tensor) -> Tensor:
    """Return ``q = a/‖a‖₂`` with ``a = vec(mean_c x²)``: (B, C, H, W) -> (B, H·W), in at least float32."""
    return F.normalize(full(x).square().mean(1).flatten(1), dim=1)


def attention_loss(s: Tensor, t: Tensor, variant: Literal["code", "paper"] = "code") -> Tensor:
    """Return the distance of two attention maps, a scalar.

    ``code``: ``mean((q(s) - q(t))²)`` over batch and positions (the authors' code). ``paper``:
    ``(1/B) Σ_b ‖q(s_b) - q(t_b)‖₂`` (equation 2, without β/2). `s`, `t`: (B, C, H, W); C may differ.
    """
    difference = attention(s) - attention(t)
    if variant == "code":
        return difference.square().mean()
    return torch.linalg.vector_norm(difference, dim=1).mean()


class AT(Method):
    """``L = ce_weight·L_task + w·Σ_stages attention_loss``, w = beta (``code``) or beta/2 (``paper``).

    The two variants differ by orders of magnitude: beta = 1000 belongs to ``code``, whose mean divides by the
    number of positions; for ``paper`` it has to be chosen anew. Larger maps are pooled to the smaller.
    """

    class Params(MethodParams):
        """Weights, form of the distance and number of stages."""

        variant: Literal["code", "paper"] = Field("code", description="squared means, or norms per image")
        beta: float = Field(1000.0, gt=0, description="weight of the distance (halved in variant 'paper')")
        stages: int | None = Field(None, ge=1, description="how many of the last stages; none: all")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="taps", capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {"cifar100": {"beta": 1000.0}, "imagenet": {"beta": 1000.0}}
    search = {
        "beta": Search(
            low=100.0, high=10000.0, log=True, source="a decade each way of the value in arXiv:1612.03928"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[[[1, 0], [2, 1]], [[0, 1], [1, 2]]]], dtype=torch.float64)
        t = torch.tensor([[[[2, 0], [0, 1]], [[1, 1], [0, 1]]]], dtype=torch.float64)
        return [
            Golden("attention loss, code form", lambda: attention_loss(s, t), 0.2974521, _ENERGIES),
            Golden("attention loss, paper form", lambda: attention_loss(s, t, "paper"), 1.0907834, _ENERGIES),
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_last_stages(run, "post", self.hp.stages)
        require_spatial(run, self.pairs, "at")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        weight = self.hp.beta if self.hp.variant == "code" else self.hp.beta / 2
        terms = [
            attention_loss(*match_size(S.feats[a], T[0].feats[b]), self.hp.variant) for a, b in self.pairs
        ]
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "at": weight * sum(terms[1:], start=terms[0]),
        }
