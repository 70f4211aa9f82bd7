"""Variational information distillation (Ahn, Hu, Damianou, Lawrence, Dai; CVPR 2019, arXiv:1904.05835)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import channels, full, match_size
from kdbench_methods._feature_tools import want_last_stages


def gaussian_nll(mean: Tensor, t: Tensor, variance: Tensor) -> Tensor:
    """Return ``mean(½·((mean - t)²/v + log v))`` over all elements, a scalar.

    `mean`, `t`: (B, C, H, W); `variance`: v, (C,). The constant ½·log 2π is left out.
    """
    v = full(variance).view(1, -1, 1, 1)
    return 0.5 * ((full(mean) - full(t)).square() / v + v.log()).mean()


class Gaussian(nn.Module):
    """Predicts a teacher's map: a mean for each element and a learned variance for each channel.

    The mean is three 1×1 convolutions with ReLU between, C_s -> C_t -> C_t -> C_t, without bias. The variance
    is ``softplus(a_c) + floor`` and starts at `init_variance`; a is a parameter, so that it is trained.
    """

    def __init__(self, c_in: int, c_out: int, init_variance: float = 5.0, floor: float = 1e-5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (c_in, c_out, c_out):
            layers += [nn.Conv2d(width, c_out, 1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        self.floor = floor
        raw = math.log(math.expm1(max(init_variance - floor, 1e-6)))
        self.raw_variance = nn.Parameter(torch.full((c_out,), raw))

    @property
    def variance(self) -> Tensor:
        """v, (C,)."""
        return F.softplus(self.raw_variance) + self.floor

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(x)


class VID(Method):
    """``L = ce_weight·L_task + weight·Σ_stages gaussian_nll``: a lower bound of the mutual information.

    Follows RepDistiller. In mdistiller's copy the variances are plain tensors that no optimizer sees, so that
    they stay at 5; here they learn. Larger maps are pooled to the smaller.
    """

    class Params(MethodParams):
        """Weights, stages and the variances' start."""

        weight: float = Field(1.0, gt=0, description="weight of the negative log-likelihood")
        init_variance: float = Field(5.0, gt=1e-4, le=80, description="first value of every variance")
        floor: float = Field(1e-5, gt=0, description="smallest variance")
        stages: int | None = Field(None, ge=1, description="how many of the last stages; none: all")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(reads="taps", capabilities=frozenset({"features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"weight": 1.0}}
    search = {
        "weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        return [
            Golden(
                "negative log-likelihood of 1.5 at mean 0.5 and variance 5",
                lambda: gaussian_nll(0.5 * one, 1.5 * one, torch.full((1,), 5.0, dtype=torch.float64)),
                (1 / 5 + math.log(5)) / 2,
                "½·((0.5 - 1.5)²/5 + log 5) by hand: 0.9047190",
            ),
            Golden(
                "first variance",
                lambda: Gaussian(1, 1, 5.0).variance,
                [5.0],
                "softplus and its inverse cancel, but for the floor",
            ),
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_last_stages(run, "post", self.hp.stages)
        self.regressors = nn.ModuleList(
            Gaussian(channels(run.student, s), channels(run.teacher, t), self.hp.init_variance, self.hp.floor)
            for s, t in self.pairs
        )

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        terms = []
        for regressor, (a, b) in zip(self.regressors, self.pairs, strict=True):
            s, t = match_size(S.feats[a], T[0].feats[b])
            with run.amp():
                mean = regressor(s)
            terms.append(gaussian_nll(mean, t, regressor.variance))
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "vid": self.hp.weight * sum(terms[1:], start=terms[0]),
        }
