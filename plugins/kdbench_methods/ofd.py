"""Overhaul of feature distillation (Heo et al., ICCV 2019, arXiv:1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Phase, Run, Search, Tap
from kdbench_methods._common import channels, connector, full, match_size, want_pairs


def margins_from_bn(beta: Tensor, gamma: Tensor) -> Tensor:
    """Return ``E[x | x < 0]`` for x ~ N(beta, gamma²), per channel, float64 (C,).

    ``m = β - |γ|·φ(β/|γ|)/Φ(-β/|γ|)`` where ``Φ(-β/|γ|) > 1e-3``, else ``-3·|γ|`` (official code). |γ| is at
    least 1e-8: timm's zero-initialised last BatchNorm would give 0/0.
    """
    beta, scale = beta.detach().double(), gamma.detach().double().abs().clamp_min(1e-8)
    z = beta / scale
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(-z)
    return torch.where(below > 1e-3, beta - scale * density / below.clamp_min(1e-3), -3 * scale)


def partial_l2(s: Tensor, t: Tensor) -> Tensor:
    """Return ``Σ (s - t)²·[s > t or t > 0]`` over all elements, a scalar, in float32.

    `t` is the teacher's value after the margin ReLU ``max(t, m)``. No distance where ``s <= t <= 0``: both
    are cut off by the activation that follows.
    """
    s, t = full(s), full(t)
    return ((s - t).square() * ((s > t) | (t > 0))).sum()


def overhaul_loss(s: Sequence[Tensor], t: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Return ``(1/B)·Σ_i partial_l2(s_i, max(t_i, m_i)) / 2^(n - i)`` for i = 1..n, without alpha.

    `s`, `t`: lists of equally shaped (B, C, H, W) maps before the activation, earliest stage first;
    `margins`: (1, C, 1, 1) each.
    """
    last = len(s) - 1
    terms = [
        partial_l2(a, torch.maximum(full(b), m.to(full(b).dtype))) / 2 ** (last - i)
        for i, (a, b, m) in enumerate(zip(s, t, margins, strict=True))
    ]
    return sum(terms[1:], start=terms[0]) / len(s[0])


class NegativeMean:
    """Running mean of the negative entries of (B, C, H, W) maps, per channel."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in one batch."""
        below = x < 0
        self.total = self.total + full(x).where(below, 0.0).sum((0, 2, 3)).cpu().double()
        self.count = self.count + below.sum((0, 2, 3)).cpu().double()

    def value(self) -> Tensor:
        """Return the means, float64 (C,); 0 for a channel that was never negative."""
        return torch.as_tensor(self.total) / torch.as_tensor(self.count).clamp_min(1.0)


class OFD(Method):
    """``L = ce_weight·L_task + alpha·overhaul_loss`` on the values before the stage-end activations.

    The teacher is frozen but normalises with batch statistics, on purpose (the authors' code and
    overhaul-distillation#37). A margin comes from the BatchNorm that feeds the activation; as in the official
    code it ignores a residual block's shortcut. Where no BatchNorm does, it is the mean of the channel's
    negative entries over `calibration_batches` training batches, so a teacher without BatchNorm is accepted.

    alpha multiplies a sum over C·H·W and is chosen on a log-10 grid: 1e-3 is too strong for small students
    (ResNet-56 to ResNet-20 on CIFAR-100 loses accuracy; the authors advise 1e-4 there and 1e-5 for
    MobileNetV2, overhaul-distillation#12 and #13).
    """

    class Params(MethodParams):
        """Weights and calibration."""

        alpha: float = Field(1e-3, gt=0, description="weight of the distance; lower it for small students")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        calibration_batches: int = Field(
            50, ge=1, description="training batches for the margins of stages without BatchNorm"
        )

    needs = Needs(
        reads="taps",
        stage_end_act=True,
        min_batch=2,
        capabilities=frozenset({"features", "supervised"}),
    )
    fidelity = "official-code"
    presets = {
        "cifar100": {"alpha": 1e-3},
        "imagenet": {"alpha": 1e-4},
        "resnet56-resnet20": {"alpha": 1e-4},
        "mobilenetv2": {"alpha": 1e-5},
    }
    search = {
        "alpha": Search(low=1e-05, high=0.01, log=True, source="official code: 1e-5 to 1e-3"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        beta = torch.tensor([0.0, 0.5, 1.0, -1.0, 2.0, 3.2])
        gamma = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.5, 1.0])
        s = torch.tensor([-2.0, -0.5, -0.9, 0.3, 0.3, 1.5], dtype=torch.float64)
        t = torch.tensor([-1.0, -1.0, -0.2, -0.2, 1.0, 1.0], dtype=torch.float64).clamp_min(-0.8)
        return [
            Golden(
                "margins of six channels",
                lambda: margins_from_bn(beta, gamma),
                [-0.7978846, -0.6410778, -0.5251353, -2.0183209, -1.5, -3.0],
                "means of truncated normal distributions; the last two by the rule for the tail, -3·|γ|",
            ),
            Golden(
                "partial L2 of six neurons at margin -0.8, one by one",
                lambda: torch.stack([partial_l2(a, b) for a, b in zip(s, t, strict=True)]),
                [0.0, 0.09, 0.0, 0.25, 0.49, 0.25],
                "by hand: (s - t)², 0 where s <= t <= 0",
            ),
            Golden("partial L2, their sum", lambda: partial_l2(s, t), 1.08, "the sum of those six"),
        ]

    def setup(self, run: Run) -> None:
        self.pairs = want_pairs(run, "pre")
        self.connectors = nn.ModuleList()
        self.uncalibrated: dict[int, Tap] = {}
        for i, (student_tap, teacher_tap) in enumerate(self.pairs):
            width = channels(run.teacher, teacher_tap)
            self.connectors.append(connector(channels(run.student, student_tap), width))
            bn = run.teacher.bn_before(teacher_tap)
            if bn is None:
                self.uncalibrated[i] = teacher_tap
                margin = torch.zeros(width)
            else:
                margin = _bn_margins(bn, width)
            self.register_buffer(f"margin{i}", margin.float().view(1, -1, 1, 1))
        # Saved with the margins, so that a resumed run keeps those it started with.
        self.register_buffer("calibrated", torch.tensor(not self.uncalibrated))

    def phases(self, run: Run) -> Sequence[Phase]:
        return [Phase(teacher_bn="batch")]

    def on_phase_start(self, phase: Phase, run: Run) -> None:
        if bool(self.calibrated):
            return
        means = {i: NegativeMean() for i in self.uncalibrated}

        def add(out: Out) -> None:
            for i, tap in self.uncalibrated.items():
                means[i].add(out.feats[tap])

        run.teacher.calibrate(add, self.hp.calibration_batches)
        for i, mean in means.items():
            self.get_buffer(f"margin{i}").copy_(mean.value().view(1, -1, 1, 1))
        self.calibrated.fill_(True)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        maps = [match_size(S.feats[a], T[0].feats[b]) for a, b in self.pairs]
        with run.amp():
            s = [connect(x) for connect, (x, _) in zip(self.connectors, maps, strict=True)]
        margins = [self.get_buffer(f"margin{i}") for i in range(len(maps))]
        distance = overhaul_loss(s, [t for _, t in maps], margins)
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "ofd": self.hp.alpha * distance,
        }


def _bn_margins(bn: nn.Module, width: int) -> Tensor:
    weight, bias = getattr(bn, "weight", None), getattr(bn, "bias", None)
    gamma = torch.ones(width) if weight is None else weight.cpu()
    beta = torch.zeros(width) if bias is None else bias.cpu()
    return margins_from_bn(beta, gamma)
