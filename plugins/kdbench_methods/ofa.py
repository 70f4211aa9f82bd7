"""One for all, OFA-KD (Hao, Guo, Han, Tang, Hu, Wang, Xu; NeurIPS 2023, arXiv:2310.19444)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, NotApplicable, Out, Run, Search, Tap
from kdbench_methods._common import channels, full, require_categorical


def ofa_loss(zs: Tensor, zt: Tensor, y: Tensor, eps: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Return ``-(1/B) Σ_b Σ_k ((p^t_k + [k = y])^ε - [k = y])·log p^s_k`` with ``p = softmax(z/T)``, a scalar.

    `zs`, `zt`: logits (B, K), `y`: labels (B,) int64. At ε = 1 it is the cross-entropy with the teacher's
    distribution; a larger ε raises the target class and lowers the others (official code; no factor T²).
    """
    log_s = F.log_softmax(full(zs) / temperature, 1)
    hit = torch.zeros_like(log_s).scatter_(1, y[:, None], 1.0)
    enhanced = (F.softmax(full(zt) / temperature, 1) + hit) ** eps - hit
    return -(enhanced * log_s).sum(1).mean()


class Separable(nn.Sequential):
    """Two depthwise-separable 3×3 convolutions, the first with stride 2, each with BatchNorm and ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        layers: list[nn.Module] = []
        for stride, width in ((2, c_in), (1, c_out)):
            layers += [
                nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False),
                nn.Conv2d(c_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class ExitHead(nn.Module):
    """Projects a stage's map to logits: (B, c_in, H, W) -> (B, K).

    `halvings` separable blocks that halve the map and double the channels (at most to `width`, which the last
    one has), or a 1×1 convolution where there are none; then average pooling and a linear layer.
    """

    def __init__(self, c_in: int, width: int, num_classes: int, halvings: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(halvings):
            c_out = width if i == halvings - 1 else min(2 * c_in, width)
            blocks.append(Separable(c_in, c_out))
            c_in = c_out
        self.body = nn.Sequential(*blocks) if blocks else nn.Conv2d(c_in, width, 1)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class OFA(Method):
    """``L = ce_weight·L_task + kd_weight·ofa(z^s, z^t) + weight·Σ_stages ofa(head_i(F^s_i), z^t)``.

    Of the teacher only the logits are used, so any pair of architectures runs. The loss, the weights and the
    heads of convolutional students follow the official code, whose README trains with ε = 1.5 for ResNet-18
    and DeiT-T, while 1 is the default of its command. A reconstruction: for transformer students it builds
    the heads from patch merging and attention blocks with the class token; here every student gets the
    convolutional head, on the tokens as a map. The heads are dropped after training.
    """

    class Params(MethodParams):
        """Weights, ε, temperature and stages."""

        eps: float = Field(1.0, gt=0, description="ε, the exponent that enhances the target class")
        temperature: float = Field(1.0, gt=0, description="T, divides all logits")
        weight: float = Field(1.0, gt=0, description="weight of the stages' losses")
        kd_weight: float = Field(1.0, ge=0, description="weight of the same loss on the student's logits")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        stages: int = Field(4, ge=1, description="how many of the student's last stages get a head")

    needs = Needs(min_batch=2, capabilities=frozenset({"distillable", "features", "supervised"}))
    fidelity = "reconstruction"
    presets = {"cifar100": {"eps": 1.0}, "imagenet": {"eps": 1.5}}
    search = {
        "eps": Search(low=0.8, high=2.0, source="our choice around the default"),
        "weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        zt = torch.zeros(1, 2, dtype=torch.float64)
        zs = torch.tensor([[math.log(3), 0]], dtype=torch.float64)
        y = torch.tensor([0])
        return [
            Golden(
                "ε = 1, p^t = (1/2, 1/2), p^s = (3/4, 1/4): the cross-entropy",
                lambda: ofa_loss(zs, zt, y),
                math.log(4) - math.log(3) / 2,
                "-(log 3/4 + log 1/4)/2 by hand",
            ),
            Golden(
                "the same at ε = 2",
                lambda: ofa_loss(zs, zt, y, 2.0),
                1.25 * math.log(4 / 3) + 0.25 * math.log(4),
                "targets (3/2)² - 1 and (1/2)² by hand",
            ),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "ofa")
        if not run.student.stages:
            raise NotApplicable("student has no stages to take features from")
        self.stage_taps = [Tap(stage) for stage in run.student.stages[-self.hp.stages :]]
        run.student.want(*self.stage_taps)
        widths = [channels(run.student, tap) for tap in self.stage_taps]
        width = max(widths[-1], run.student.num_features, run.teacher.num_features)
        self.heads = nn.ModuleList(
            ExitHead(c, width, run.data.num_classes, len(widths) - 1 - i) for i, c in enumerate(widths)
        )

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp, y = self.hp, batch.y
        assert y is not None
        with run.amp():
            exits = [head(S.feats[tap]) for head, tap in zip(self.heads, self.stage_taps, strict=True)]
        terms = [ofa_loss(z, T[0].logits, y, hp.eps, hp.temperature) for z in exits]
        parts = {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "exits": hp.weight * sum(terms[1:], start=terms[0]),
        }
        if hp.kd_weight:
            parts["kd"] = hp.kd_weight * ofa_loss(S.logits, T[0].logits, y, hp.eps, hp.temperature)
        return parts
