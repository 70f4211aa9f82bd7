"""Contrastive representation distillation (Tian, Krishnan, Isola; ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, NotApplicable, Out, Run, Search
from kdbench_methods._common import full
from kdbench_methods._feature_tools import pooled, require_pooled

#: Added to the noise term by the official code.
_EPS = 1e-7


def nce_loss(log_p: Tensor, n_data: int) -> Tensor:
    """Return the noise-contrastive loss (the paper's equation 18, as in the official code), a scalar.

    ``-(1/B)·Σ_b [ log P⁺/(P⁺ + c + ε) + Σ_k log c/(P⁻_k + c + ε) ]`` with ``c = K/n_data``, ``ε = 1e-7``.

    Args:
        log_p: (B, 1 + K), log P; column 0 is the positive. ``P = exp(⟨bank, embedding⟩/τ)/Z``.
        n_data: number of training images.

    All of it stays in log space: ``log((P + c')/P) = softplus(log c' - log P)`` and
    ``log((P + c')/c) = softplus(log P - log c') + log(c'/c)``, with ``c' = c + ε``.
    """
    log_p = full(log_p)
    k = log_p.shape[1] - 1
    noise = k / n_data
    log_noise = math.log(noise + _EPS)
    positive = F.softplus(log_noise - log_p[:, 0])
    negative = F.softplus(log_p[:, 1:] - log_noise) + (log_noise - math.log(noise))
    return (positive.sum() + negative.sum()) / len(log_p)


def bank_scores(bank: Tensor, embedding: Tensor, rows: Tensor) -> Tensor:
    """Return ``⟨bank[rows[b, j]], embedding[b]⟩``: (N, D), (B, D), (B, J) -> (B, J).

    Where the bank is not much larger than J, all N products are cheaper than copies of the chosen rows.
    """
    if len(bank) <= 16 * rows.shape[1]:
        return (embedding @ bank.T).gather(1, rows)
    chosen = bank.index_select(0, rows.flatten()).view(*rows.shape, -1)
    return torch.bmm(chosen, embedding[:, :, None]).squeeze(2)


class Embed(nn.Module):
    """Linear layer and division by the length: (B, D) -> (B, dim)."""

    def __init__(self, c_in: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(full(x)), dim=1)


class Others(nn.Module):
    """Draws negatives: for each image of a batch, images of all other classes, uniformly, with replacement.

    `classes`: (N,) class of every image, int64 from 0 on; ``arange(N)`` makes every other image a negative.
    The buffers follow from the data set; they are made again when a cut run resumes.
    """

    classes: Tensor
    order: Tensor
    count: Tensor
    first: Tensor

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        count = torch.bincount(classes)
        #: of the image with the fewest negatives
        self.fewest = len(classes) - int(count.max())
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("order", torch.argsort(classes, stable=True), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("first", count.cumsum(0) - count, persistent=False)

    def forward(self, index: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Return numbers of negatives (B, k), int64, of the images `index` (B,)."""
        own = self.classes[index]
        first, count = self.first[own][:, None], self.count[own][:, None]
        left = len(self.order) - count
        # double: the 24 random bits of a float are too few for a million images
        u = torch.rand((len(index), k), generator=generator, device=index.device, dtype=torch.float64)
        place = torch.minimum((u * left).long(), left - 1)
        # `order` without the block of the positive's class
        return self.order[place + count * (place >= first)]


class CRD(Method):
    """``L = ce_weight·L_task + weight·(NCE_s + NCE_t)`` between embeddings and banks of earlier embeddings.

    NCE_s contrasts the student's embedding of an image, (B, embed_dim) and of length 1, with the teacher's
    bank, NCE_t the other way round; a bank has one unit vector for every training image, the mean
    (`momentum`) of what was seen of it. The normalising constants Z are those of the first batch. Official
    code (RepDistiller), ``mode="exact"``: the positive is the image itself, negatives are of other classes by
    the labels of the whole training set.

    Negatives are drawn on the device and with replacement (the official loader draws without; with
    ``negatives="other-image"`` the class is not looked at). Sets of at most `k` other images use them all as
    K. Needs ``batch.index``.
    """

    class Params(MethodParams):
        """Weights, number and kind of negatives, embedding and banks."""

        weight: float = Field(0.8, gt=0, description="weight of the contrastive losses")
        k: int = Field(16384, ge=1, description="negatives an image; at most the images of other classes")
        negatives: Literal["other-class", "other-image"] = Field(
            "other-class", description="which images are negatives"
        )
        embed_dim: int = Field(128, ge=1, description="width of the embeddings")
        temperature: float = Field(0.07, gt=0, description="τ, divides the inner products")
        momentum: float = Field(0.5, ge=0, lt=1, description="share of the old vector in a bank's update")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="pooled", index=True, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {"cifar100": {"weight": 0.8, "k": 16384}, "imagenet": {"weight": 0.8, "k": 16384}}
    search = {
        "weight": Search(low=0.08, high=8.0, log=True, source="a decade each way of the authors' value"),
        "temperature": Search(low=0.02, high=0.3, log=True, source="our choice around the default"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "NCE of P = [0.5; 0.5, 0.25], 4 training images",
                lambda: nce_loss(torch.tensor([[0.5, 0.5, 0.25]], dtype=torch.float64).log(), 4),
                2 * math.log(2) + math.log(1.5),
                "by hand, c = 2/4: -[log(.5/1) + log(.5/1) + log(.5/.75)]; the 1e-7 of the code is below rtol",
            )
        ]

    def setup(self, run: Run) -> None:
        width_s, width_t = require_pooled(run, "crd")
        self.embed_student = Embed(width_s, self.hp.embed_dim)
        self.embed_teacher = Embed(width_t, self.hp.embed_dim)
        self.others = Others(self._classes(run))
        rows = len(self.others.classes)
        self.n_data = run.data.n_train if run.probing else rows
        fewest = self.n_data - 1 if run.probing else self.others.fewest
        if fewest < 1:
            raise NotApplicable("crd needs training images of two classes, or two images")
        self.k = min(self.hp.k, fewest)
        bound = 1 / math.sqrt(self.hp.embed_dim / 3)
        for name in ("bank_student", "bank_teacher"):
            uniform = torch.rand(rows, self.hp.embed_dim)
            self.register_buffer(name, (2 * uniform - 1) * bound)
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("ready", torch.tensor(False))
        self.seen: dict[str, Any] = {}

    def _classes(self, run: Run) -> Tensor:
        """Return what tells negatives apart, (N,) int64; while probing there is one image."""
        labels = run.labels()
        if labels is None and self.hp.negatives == "other-class":
            raise NotApplicable("crd with negatives 'other-class' needs labels of the training images")
        if labels is None or self.hp.negatives == "other-image":
            n = run.data.n_train if labels is None else len(labels)
            return torch.arange(1 if run.probing else n, device=run.device)
        return labels.clone()

    def log_probabilities(self, raw: Tensor, side: int) -> Tensor:
        """Return log P of scores over τ, (B, 1 + K); the first batch ever fixes Z."""
        fresh = torch.logsumexp(raw.detach().flatten(), 0) + math.log(self.n_data / raw.numel())
        self.log_z[side] = torch.where(self.ready, self.log_z[side], fresh)
        return raw - self.log_z[side].clone()

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        assert batch.index is not None, "crd needs batch.index"
        es, et = self.embed_student(pooled(S)), self.embed_teacher(pooled(T[0]))
        rows = torch.cat([batch.index[:, None], self.others(batch.index, self.k, run.rng)], 1)
        losses = []
        for side, (bank, embedding) in enumerate(((self.bank_teacher, es), (self.bank_student, et))):
            raw = bank_scores(bank, embedding, rows) / self.hp.temperature
            losses.append(nce_loss(self.log_probabilities(raw, side), self.n_data))
        self.ready.fill_(True)
        self.seen = {"index": batch.index, "es": es.detach(), "et": et.detach()}
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
    def remember(self, index: Tensor, es: Tensor, et: Tensor) -> None:
        """Put embeddings (B, dim) of the images `index` (B,) into the banks."""
        for bank, new in ((self.bank_student, es), (self.bank_teacher, et)):
            mixed = self.hp.momentum * bank[index] + (1 - self.hp.momentum) * new
            bank[index] = F.normalize(mixed, dim=1)
