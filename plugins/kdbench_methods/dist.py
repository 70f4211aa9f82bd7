"""Knowledge distillation from a stronger teacher (Huang, You, Wang, Qian, Xu; NeurIPS 2022, arXiv:2205.10536)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full, require_categorical, standardise
from kdbench_methods._golden import BY_FORMULA, student_logits, teacher_logits


def pearson(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the correlation of each row of `a` (N, M) with the same row of `b`, a tensor (N,).

    ``Σ âb̂ / (‖â‖·‖b̂‖ + eps)``, â and b̂ the rows less their means; 0 for a row that is constant.
    """
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + eps)


def inter_class(ps: Tensor, pt: Tensor) -> Tensor:
    """Return ``1 - mean_b ρ(p^s_b, p^t_b)``: rows of probabilities (B, K), one relation per sample."""
    return 1 - pearson(ps, pt).mean()


def intra_class(ps: Tensor, pt: Tensor) -> Tensor:
    """Return ``1 - mean_k ρ`` of the columns of probabilities (B, K), one relation per class over the batch.

    With B = 2 every correlation is +1 or -1, and its gradient is 0.
    """
    return inter_class(ps.t(), pt.t())


def dist_loss(
    zs: Tensor, zt: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0
) -> Tensor:
    """Return ``τ²·(beta·L_inter + gamma·L_intra)`` of ``p = softmax(z/τ)``, a scalar.

    `zs` (student), `zt` (teacher): logits (B, K), K >= 3, B >= 3 for all of it to have a meaning. Equations 8
    to 10 of the paper; the factor τ² is the official code's.
    """
    ps, pt = (full(zs) / temperature).softmax(1), (full(zt) / temperature).softmax(1)
    return temperature**2 * (beta * inter_class(ps, pt) + gamma * intra_class(ps, pt))


class DIST(Method):
    """``L = ce_weight·L_task + kd_weight·τ²·(beta·L_inter + gamma·L_intra)``: correlations, not divergences.

    The sum of both relations is weighted by 2 in the official code. ``standardise`` leaves L_inter's
    centring as it is and puts both networks' logits on one scale before the softmax.
    """

    class Params(MethodParams):
        """Weights and temperature."""

        kd_weight: float = Field(2.0, ge=0, description="weight of both relations together")
        beta: float = Field(1.0, ge=0, description="weight of the relations between classes (rows)")
        gamma: float = Field(1.0, ge=0, description="weight of the relations within classes (columns)")
        temperature: float = Field(4.0, gt=0, description="τ, divides the logits of both networks")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        standardise: bool = Field(False, description="standardise the logits of both networks first")

    needs = Needs(
        reads="logits", min_batch=3, min_classes=3, capabilities=frozenset({"distillable", "supervised"})
    )
    fidelity = "official-code"
    presets = {"cifar100": {"temperature": 4.0}, "imagenet": {"temperature": 1.0}}
    search = {
        "kd_weight": Search(low=0.2, high=20.0, log=True, source="a decade each way of the authors' value"),
        "temperature": Search(low=1.0, high=8.0, log=True, source="arXiv:2205.10536: 1 and 4"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def part(beta: float, gamma: float, temperature: float) -> Tensor:
            zs, zt = student_logits(3), teacher_logits(3)
            return dist_loss(zs, zt, beta=beta, gamma=gamma, temperature=temperature)

        return [
            Golden("L_inter at τ = 1, three samples", lambda: part(1, 0, 1.0), 0.3541894, BY_FORMULA),
            Golden("L_intra at τ = 1, three samples", lambda: part(0, 1, 1.0), 0.0889040, BY_FORMULA),
            Golden("16·L_inter at τ = 4", lambda: part(1, 0, 4.0), 5.0297770, BY_FORMULA),
            Golden("16·L_intra at τ = 4", lambda: part(0, 1, 4.0), 2.9922198, BY_FORMULA),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "dist")

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp, zs, zt = self.hp, S.logits, T[0].logits
        if hp.standardise:
            zs, zt = standardise(zs), standardise(zt)
        relations = dist_loss(zs, zt, beta=hp.beta, gamma=hp.gamma, temperature=hp.temperature)
        return {"task": hp.ce_weight * run.task.loss(S, batch), "dist": hp.kd_weight * relations}
