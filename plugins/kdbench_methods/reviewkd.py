"""Knowledge review (Chen, Liu, Zhao, Jia; CVPR 2021, arXiv:2104.09044)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import channels, full, stage_pairs
from kdbench_methods._feature_tools import pool_to, pooled

#: The warm-up published for CIFAR-100: 20 of 240 epochs.
_WARMUP_SHARE = 20 / 240


def hierarchical_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return the hierarchical context loss of two (B, C, H, W) maps, a scalar.

    ``Σ_l w_l·mean((pool_l(s) - pool_l(t))²) / Σ_l w_l``: the full map with weight 1, then average-pooled to 4,
    2 and 1 rows and columns with weights 1/2, 1/4, 1/8; sizes that are no smaller than the map are left out
    and take no weight.
    """
    s, t = full(s), full(t)
    value, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= min(s.shape[2:]):
            continue
        weight /= 2
        total += weight
        value = value + weight * F.mse_loss(pool_to(s, side), pool_to(t, side))
    return value / total


class Fusion(nn.Module):
    """Attention-based fusion of one level with the deeper ones.

    1×1 convolution and BatchNorm to `mid` channels; with a deeper result, an attention of two maps weighs
    both; then 3×3 convolution and BatchNorm to the teacher's channels, at the teacher's size.
    """

    def __init__(self, c_in: int, mid: int, c_out: int, size: tuple[int, int], *, fuse: bool) -> None:
        super().__init__()
        self.size = size
        self.reduce = nn.Sequential(nn.Conv2d(c_in, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.expand = nn.Sequential(nn.Conv2d(mid, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out))
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(block[0].weight, a=1)
        self.attention = nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the map for the teacher (B, c_out, *size) and the fused one for the next level."""
        x = self.reduce(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = _resize(deeper, tuple(x.shape[2:]))
            weights = self.attention(torch.cat([x, deeper], 1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        x = _resize(x, self.size)
        return self.expand(x), x


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")


class ReviewKD(Method):
    """``L = ce_weight·L_task + w(e)·weight·Σ_i hierarchical_loss(fused_i, F^t_i)``, w = min((e + 1)/warmup, 1).

    Each level of the student is fused with all deeper ones and then compared with the teacher's values before
    the activation; levels are the paired stages and, where both networks have one, the pooled feature. All
    sizes come from the taps, so any input size runs. e counts epochs from 0.

    Official code: fusions of (B, C, H, W) maps, ``min(mid_channels, student's deepest level)`` wide; weights of
    its CIFAR-100 script and, for ImageNet, of mdistiller. Pairs that neither names (with VGG or MobileNetV2)
    have no published weight here; ``cifar100`` is that of most pairs.
    """

    class Params(MethodParams):
        """Weights, warm-up and width of the fusions; the weight is tuned per pair."""

        weight: float = Field(1.0, gt=0, description="weight of the review loss")
        warmup: int | None = Field(
            None, ge=1, description="epochs of the linear ramp of the review loss; none: 20 of 240, scaled"
        )
        mid_channels: int = Field(512, ge=1, description="largest width of the fusions")
        student_pre: bool = Field(False, description="read the student's stages before their activation")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")

    needs = Needs(min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"weight": 5.0, "warmup": 20},
        "resnet32x4-resnet8x4": {"weight": 5.0, "warmup": 20},
        "wrn_40_2-wrn_16_2": {"weight": 5.0, "warmup": 20},
        "wrn_40_2-wrn_40_1": {"weight": 5.0, "warmup": 20},
        "wrn_40_2-shufflenetv1": {"weight": 5.0, "warmup": 20},
        "resnet32x4-shufflenetv1": {"weight": 5.0, "warmup": 20},
        "resnet32x4-shufflenetv2": {"weight": 8.0, "warmup": 20},
        "resnet56-resnet20": {"weight": 0.6, "warmup": 20},
        "resnet110-resnet32": {"weight": 1.0, "warmup": 20},
        "imagenet": {"weight": 1.0, "warmup": 1, "student_pre": True},
        "imagenet-resnet50-mobilenetv1": {
            "weight": 8.0,
            "warmup": 1,
            "student_pre": True,
            "mid_channels": 256,
        },
    }
    search = {
        "weight": Search(low=0.1, high=20.0, log=True, source="arXiv:2104.09044 and its code: 0.6 to 8"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        grid = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
        return [
            Golden(
                "hierarchical loss of 0..15 as 4x4 and of ones",
                lambda: hierarchical_loss(grid, torch.ones_like(grid)),
                59.25,
                "(63.5 + 59.25/2 + 42.25/4)/(1 + 1/2 + 1/4) by hand: mean squares at 4, 2 and 1 rows",
            )
        ]

    def setup(self, run: Run) -> None:
        student, teacher = run.student, run.teacher
        post, pre = stage_pairs(run, "post"), stage_pairs(run, "pre")
        own = pre if self.hp.student_pre else post
        self.pairs = [(s, t) for (s, _), (_, t) in zip(own, pre, strict=True)]
        student.want(*(s for s, _ in self.pairs))
        teacher.want(*(t for _, t in self.pairs))
        levels = [
            (channels(student, s), channels(teacher, t), tuple(teacher.shape(t)[2:])) for s, t in self.pairs
        ]
        self.with_pooled = bool(student.num_features and teacher.num_features)
        if self.with_pooled:
            levels.append((student.num_features, teacher.num_features, (1, 1)))
        mid, deepest = min(self.hp.mid_channels, levels[-1][0]), len(levels) - 1
        self.fusions = nn.ModuleList(
            Fusion(c_in, mid, c_out, (size[0], size[1]), fuse=i < deepest)
            for i, (c_in, c_out, size) in enumerate(levels)
        )

    def ramp(self, epoch: int, phase_epochs: int) -> float:
        """Return w(e) of an epoch counted from 0."""
        warmup = self.hp.warmup or max(1, round(phase_epochs * _WARMUP_SHARE))
        return min((epoch + 1) / warmup, 1.0)

    def review(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the student's maps for the teacher, one a level, from its own, earliest level first."""
        made: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, x in zip(reversed(self.fusions), reversed(maps), strict=True):
            result, deeper = fusion(x, deeper)
            made.insert(0, result)
        return made

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        s, t = [S.feats[a] for a, _ in self.pairs], [T[0].feats[b] for _, b in self.pairs]
        if self.with_pooled:
            s.append(pooled(S)[:, :, None, None])
            t.append(pooled(T[0])[:, :, None, None])
        with run.amp():
            made = self.review(s)
        terms = [hierarchical_loss(a, b) for a, b in zip(made, t, strict=True)]
        weight = self.ramp(run.epoch, run.phase_epochs) * self.hp.weight
        return {
            "task": self.hp.ce_weight * run.task.loss(S, batch),
            "review": weight * sum(terms[1:], start=terms[0]),
        }
