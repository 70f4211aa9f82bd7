"""Neuron selectivity transfer (Huang, Wang; arXiv 2017, arXiv:1707.01219)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full, match_size
from kdbench_methods._feature_tools import require_spatial, want_last_stages


def polynomial_mmd(s: Tensor, t: Tensor) -> Tensor:
    """Return ``mean k(t, t) + mean k(s, s) - 2·mean k(s, t)`` with ``k(a, b) = (aᵀb)²``, a scalar.

    `s`: (B, C_s, H, W), `t`: (B, C_t, H, W). A sample of a distribution is one channel as a vector of H·W
    values of length 1; means run over pairs of channels and over the batch. The squared maximum mean
    discrepancy with the polynomial kernel of degree 2.
    """
    s, t = (F.normalize(full(x).flatten(2), dim=2) for x in (s, t))
    return _kernel_mean(t, t) + _kernel_mean(s, s) - 2 * _kernel_mean(s, t)


def _kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()


class NST(Method):
    """``L = ce_weight·L_task + weight·Σ_stages polynomial_mmd``.

    Follows RepDistiller (all stages, weight 50). Channel counts may differ; larger maps are pooled to the
    smaller.
    """

    class Params(MethodParams):
        """Weights and number of stages."""

        weight: float = Field(50.0, gt=0, description="weight of the discrepancy")
        stages: int | None = Field(None, ge=1, description="how many of the last stages; none: all")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="taps", capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"weight": 50.0}}
    search = {
        "weight": Search(low=5.0, high=500.0, log=True, source="a decade each way of the authors' value"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        s = torch.tensor([[[[1, 0], [2, 1]], [[0, 1], [1, 2]]]], dtype=torch.float64)
        t = torch.tensor([[[[2, 0], [0, 1]], [[1, 1], [0, 1]]]], dtype=torch.float64)
        return [
            Golden(
                "discrepancy of two channels each over four positions",
                lambda: polynomial_mmd(s, t),
                17 / 18,
                "means of squared cosines of the channels by hand: 0.9444444",
            )
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_last_stages(run, "post", self.hp.stages)
        require_spatial(run, self.pairs, "nst")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        terms = [polynomial_mmd(*match_size(S.feats[a], T[0].feats[b])) for a, b in self.pairs]
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "nst": self.hp.weight * sum(terms[1:], start=terms[0]),
        }
