"""Contrastive representation distillation (Tian, Krishnan, Isola; ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Method, MethodParams, Needs, NotApplicable, Out, Run
from kdbench_methods._common import full
from kdbench_methods._feature_tools import pooled, require_pooled

#: Added to the noise term by the official code.
_EPS = 1e-7
#: Draws after the first for negatives that turned out to be of the positive's class.
_REDRAWS = 3


def nce_loss(log_p: Tensor, n_data: int, allowed: Tensor | None = None) -> Tensor:
    """Return the noise-contrastive loss (the paper's equation 18, as in the official code), a scalar.

    ``-(1/B)·Σ_b [ log P⁺/(P⁺ + c + ε) + Σ_k log c/(P⁻_k + c + ε) ]`` with ``c = K/n_data``, ``ε = 1e-7``.

    Args:
        log_p: (B, 1 + K), log P; column 0 is the positive. ``P = exp(⟨bank, embedding⟩/τ)/Z``.
        n_data: number of training images.
        allowed: (B, K) bool, negatives that count; None: all.

    All of it stays in log space: ``log((P + c')/P) = softplus(log c' - log P)`` and
    ``log((P + c')/c) = softplus(log P - log c') + log(c'/c)``, with ``c' = c + ε``.
    """
    log_p = full(log_p)
    k = log_p.shape[1] - 1
    noise = k / n_data
    log_noise = math.log(noise + _EPS)
    positive = F.softplus(log_noise - log_p[:, 0])
    negative = F.softplus(log_p[:, 1:] - log_noise) + (log_noise - math.log(noise))
    if allowed is not None:
        negative = negative * allowed
    return (positive.sum() + negative.sum()) / len(log_p)


def bank_scores(bank: Tensor, embedding: Tensor, rows: Tensor) -> Tensor:
    """Return ``⟨bank[rows[b, j]], embedding[b]⟩``: (N, D), (B, D), (B, J) -> (B, J).

    Where the bank is not much larger than J, all N products are cheaper than copies of the chosen rows.
    """
    if len(bank) <= 4 * rows.shape[1]:
        return (embedding @ bank.T).gather(1, rows)
    return torch.einsum("bjd,bd->bj", bank[rows], embedding)


class Embed(nn.Module):
    """Linear layer and division by the length: (B, D) -> (B, dim)."""

    def __init__(self, c_in: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(full(x)), dim=1)


class CRD(Method):
    """``L = ce_weight·L_task + weight·(NCE_s + NCE_t)`` between embeddings and banks of earlier embeddings.

    NCE_s contrasts the student's embedding of an image with the teacher's bank, NCE_t the other way round; a
    bank has one unit vector for every training image, the mean (`momentum`) of what was seen of it. The
    normalising constants Z are those of the first batch.

    Negatives are drawn on the device, with replacement. ``negatives="other-class"`` (the official default
    ``exact``) needs every image's label: here labels are noted as they come by, so during the first epoch a
    negative not yet seen may be of the positive's class. Those known to be are drawn again, and left out
    after three attempts. Needs ``batch.index``.
    """

    class Params(MethodParams):
        """Weights, number and kind of negatives, embedding and banks."""

        weight: float = Field(0.8, gt=0, description="weight of the contrastive losses")
        k: int = Field(16384, ge=1, description="negatives an image; at most the other training images")
        negatives: Literal["other-class", "other-image"] = Field(
            "other-class", description="which images are negatives"
        )
        embed_dim: int = Field(128, ge=1, description="width of the embeddings")
        temperature: float = Field(0.07, gt=0, description="τ, divides the inner products")
        momentum: float = Field(0.5, ge=0, lt=1, description="share of the old vector in a bank's update")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(index=True, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {"cifar100": {"weight": 0.8, "k": 16384}, "imagenet": {"weight": 0.8, "k": 16384}}

    def setup(self, run: Run) -> None:
        width_s, width_t = require_pooled(run, "crd")
        if run.data.n_train < 2:
            raise NotApplicable("crd needs at least two training images")
        dim = self.hp.embed_dim
        self.n_data, self.k = run.data.n_train, min(self.hp.k, run.data.n_train - 1)
        self.embed_student, self.embed_teacher = Embed(width_s, dim), Embed(width_t, dim)
        rows = 1 if run.probing else self.n_data
        bound = 1 / math.sqrt(dim / 3)
        for name in ("bank_student", "bank_teacher"):
            self.register_buffer(name, (2 * torch.rand(rows, dim) - 1) * bound)
        self.register_buffer("labels", torch.full((rows,), -1, dtype=torch.int64))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("ready", torch.tensor(False))
        self.seen: dict[str, Any] = {}

    def draw(self, index: Tensor, y: Tensor | None, run: Run) -> tuple[Tensor, Tensor | None]:
        """Return numbers of negatives (B, K), and which of them count (None: all).

        `index`, `y`: (B,) numbers and labels of the positives. A negative is never its positive.
        """
        negatives = self._others(index, run)
        if self.hp.negatives == "other-image" or y is None:
            return negatives, None
        for _ in range(_REDRAWS):
            same = self.labels[negatives] == y[:, None]
            negatives = torch.where(same, self._others(index, run), negatives)
        return negatives, self.labels[negatives] != y[:, None]

    def _others(self, index: Tensor, run: Run) -> Tensor:
        shape = (len(index), self.k)
        drawn = torch.randint(self.n_data - 1, shape, generator=run.rng, device=index.device)
        return drawn + (drawn >= index[:, None])

    def log_probabilities(self, raw: Tensor, side: int) -> Tensor:
        """Return log P of scores over τ, (B, 1 + K); the first batch ever fixes Z."""
        fresh = torch.logsumexp(raw.detach().flatten(), 0) + math.log(self.n_data / raw.numel())
        self.log_z[side] = torch.where(self.ready, self.log_z[side], fresh)
        return raw - self.log_z[side].clone()

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        assert batch.index is not None, "crd needs batch.index"
        es, et = self.embed_student(pooled(S)), self.embed_teacher(pooled(T[0]))
        negatives, allowed = self.draw(batch.index, batch.y, run)
        rows = torch.cat([batch.index[:, None], negatives], 1)
        losses = []
        for side, (bank, embedding) in enumerate(((self.bank_teacher, es), (self.bank_student, et))):
            raw = bank_scores(bank, embedding, rows) / self.hp.temperature
            losses.append(nce_loss(self.log_probabilities(raw, side), self.n_data, allowed))
        self.ready.fill_(True)
        self.seen = {"index": batch.index, "y": batch.y, "es": es.detach(), "et": et.detach()}
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "nce_student": self.hp.weight * losses[0],
            "nce_teacher": self.hp.weight * losses[1],
        }

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step; the banks take in the batch afterwards, since the backward pass still reads them."""
        parts = super().step(batch, run)
        self.remember(**self.seen)
        self.seen = {}
        return parts

    @torch.no_grad()
    def remember(self, index: Tensor, y: Tensor | None, es: Tensor, et: Tensor) -> None:
        """Put embeddings (B, dim) of the images `index` into the banks, and note their labels."""
        for bank, new in ((self.bank_student, es), (self.bank_teacher, et)):
            mixed = self.hp.momentum * bank[index] + (1 - self.hp.momentum) * new
            bank[index] = F.normalize(mixed, dim=1)
        if y is not None:
            self.labels[index] = y
