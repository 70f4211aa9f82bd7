"""Correlation congruence (Peng et al., ICCV 2019, arXiv:1904.01802)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full
from kdbench_methods._feature_tools import pooled, require_pooled


def neighbour_loss(es: Tensor, et: Tensor) -> Tensor:
    """Return ``1/(B-1)·Σ_b Σ_d |δ_{b,d}|·|δ_{b+1,d}|`` with ``δ = es - et``, a scalar.

    `es`, `et`: embeddings (B, D). This is what RepDistiller has from the authors, not the paper's loss. With
    one image there is no neighbour: 0.
    """
    delta = (full(es) - full(et)).abs()
    return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)


def rbf_correlation(e: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Return the Gaussian kernel of unit vectors by its Taylor series, (B, D) -> (B, B).

    ``exp(-γ‖x - y‖²) = e^{-2γ}·e^{2γ·xᵀy} ≈ e^{-2γ} Σ_{p=0..order} (2γ)^p/p!·(xᵀy)^p``; rows are normalised
    here.
    """
    unit = F.normalize(full(e), dim=1)
    cosine = unit @ unit.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms[1:], start=terms[0])


def rbf_loss(es: Tensor, et: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Return ``(1/B²)·‖K(es) - K(et)‖²_F`` with K as in :func:`rbf_correlation`, a scalar."""
    return (rbf_correlation(es, gamma, order) - rbf_correlation(et, gamma, order)).square().mean()


class CC(Method):
    """``L = ce_weight·L_task + weight·L_cc`` on linear embeddings of both pooled features.

    ``form="repdistiller"`` is :func:`neighbour_loss` of the embeddings (B, embed_dim) with the weight 0.02, the
    code that RepDistiller has from the authors and not the loss of their paper; ``form="rbf"`` is the kernel
    of the paper, for which no weight could be checked. As in RepDistiller both embeddings are
    trained with the student.
    """

    class Params(MethodParams):
        """Form of the loss, its weight, embedding and kernel."""

        form: Literal["repdistiller", "rbf"] = Field("repdistiller", description="neighbours, or RBF kernel")
        weight: float = Field(0.02, gt=0, description="weight of the correlation loss")
        embed_dim: int = Field(128, ge=1, description="width of the embeddings")
        gamma: float = Field(0.4, gt=0, description="γ of the kernel (form 'rbf')")
        order: int = Field(2, ge=1, le=8, description="order of its Taylor series (form 'rbf')")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="pooled", min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {"cifar100": {"weight": 0.02}, "rbf": {"form": "rbf"}}
    search = {
        "weight": Search(low=0.002, high=0.2, log=True, source="a decade each way of the authors' value"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        f = torch.tensor([[1, 2], [0, 1], [1, 1]], dtype=torch.float64)
        g = torch.tensor([[1, 1], [1, 1], [0, 1]], dtype=torch.float64)
        return [
            Golden("loss of neighbours", lambda: neighbour_loss(f, g), 0.5, "by hand: |δ| = 01, 10, 10"),
            Golden(
                "loss of Gaussian kernels, γ = 0.4, order 2",
                lambda: rbf_loss(f, g, 0.4, 2),
                0.0056194,
                "e^-0.8·Σ 0.8^p/p!·cos^p of all pairs, worked out with numpy",
            ),
        ]

    def setup(self, run: Run) -> None:
        width_s, width_t = require_pooled(run, "cc")
        self.embed_student = nn.Linear(width_s, self.hp.embed_dim)
        self.embed_teacher = nn.Linear(width_t, self.hp.embed_dim)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        es, et = self.embed_student(pooled(S)), self.embed_teacher(pooled(T[0]))
        value = neighbour_loss(es, et) if hp.form == "repdistiller" else rbf_loss(es, et, hp.gamma, hp.order)
        return {"task": hp.ce_weight * run.task.loss(S, batch), "cc": hp.weight * value}
