"""Feature fusion learning (Kim, Hyun, Chung, Kwak; arXiv:1904.09058; Jangho-Kim/FFL-pytorch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import (
    Batch,
    Golden,
    Handle,
    Method,
    MethodParams,
    Needs,
    NotApplicable,
    Opt,
    Out,
    Phase,
    Run,
    Search,
    Tap,
)
from kdbench_methods._common import channels, full, kl_divergence, require_categorical
from kdbench_methods._golden import BY_FORMULA, student_logits, teacher_logits

LAST = Tap(-1)
#: The ramp published for CIFAR-100: 80 of 300 epochs.
_RAMP_SHARE = 80 / 300


def ramp_up(epoch: float, length: float) -> float:
    """Return ``exp(-5·(1 - min(e, length)/length)²)``; e is the epoch, counted from 0."""
    return math.exp(-5.0 * (1.0 - min(epoch, length) / length) ** 2)


def mutual_losses(subs: Sequence[Tensor], fused: Tensor, temperature: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return ``T²·KL(z_e → z_f)`` and ``Σ_j T²·KL(z_f → z_j)``, two scalars; targets carry no gradient.

    `subs`: logits z_j (B, K) of the networks, `fused`: logits z_f (B, K), ``z_e = mean_j z_j``.
    """
    t2 = temperature**2
    subs, fused = [full(z) for z in subs], full(fused)
    ensemble = torch.stack(list(subs)).mean(0)
    to_fused = t2 * kl_divergence(fused, ensemble.detach(), temperature)
    to_subs = [t2 * kl_divergence(z, fused.detach(), temperature) for z in subs]
    return to_fused, sum(to_subs[1:], start=to_subs[0])


class Fusion(nn.Module):
    """Classifier on the concatenated last maps: (B, J·C, H, W) -> logits (B, K).

    Depthwise 3×3 convolution, BatchNorm, ReLU, 1×1 convolution to C, BatchNorm, ReLU, average pooling,
    linear. Convolutions are drawn from N(0, √(2/(k²·C_out))) (official code).
    """

    def __init__(self, c_in: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
            nn.Conv2d(c_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        for conv in (self.mix[0], self.mix[3]):
            nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / (conv.kernel_size[0] ** 2 * conv.out_channels)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(self.mix(maps).mean((2, 3)))


class Pair:
    """The student and its peer; one call forwards both, with one pass through a trunk that they share."""

    def __init__(self, student: Handle, peer: Handle, trunk_tap: Tap | None) -> None:
        self.student, self.peer, self.trunk_tap = student, peer, trunk_tap

    def __call__(self, x: Tensor) -> tuple[Out, Out]:
        if self.trunk_tap is None:
            return self.student(x, (LAST,)), self.peer(x, (LAST,))
        first = self.student(x, (LAST, self.trunk_tap))
        return first, self.peer.from_trunk(first.feats[self.trunk_tap])


class Joint(nn.Module):
    """Images -> logits of both networks together: of the fusion module, or their mean where there is none."""

    def __init__(self, pair: Pair, fusion: Fusion | None) -> None:
        super().__init__()
        self.pair = pair
        self.networks = nn.ModuleList([pair.student.net, pair.peer.net])
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x)
        if self.fusion is None:
            return (a.logits + b.logits) / 2
        return self.fusion(torch.cat([a.feats[LAST], b.feats[LAST]], 1))


class FFL(Method):
    """``L = Σ_j L_task(z_j) + L_task(z_f) + w(e)·[T²·KL(z_e → z_f) + Σ_j T²·KL(z_f → z_j)]``.

    Two students (logits z_j, mean z_e) and a classifier on their fused maps (z_f) train together, without a
    teacher; no gradient reaches a target, and w is :func:`ramp_up`. As in the official code the two share all
    but the last stage and the head where the architecture can be split, else they are separate networks. The
    code's 1e-7 in the target probabilities is left out. Deploys the student, its peer ``sub2``, the ``fused``
    classifier and the ``ensemble`` (mean logits).
    """

    class Params(MethodParams):
        """Sharing, temperature, ramp and the fusion module's weight decay."""

        share: Literal["all_but_last", "none"] = Field(
            "all_but_last", description="what the two networks share; none where it cannot be"
        )
        temperature: float = Field(3.0, gt=0, description="T of the mutual divergences")
        ramp_epochs: int | None = Field(
            None, ge=1, description="epochs of the ramp-up of the divergences; none: 80 of 300, scaled"
        )
        fusion_weight_decay: float = Field(1e-5, ge=0, description="weight decay of the fusion module")

    needs = Needs(teachers=0, min_batch=2, capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    deploys_extra = True
    presets = {"cifar100": {"ramp_epochs": 80, "temperature": 3.0, "fusion_weight_decay": 1e-5}}
    search = {
        "temperature": Search(low=1.0, high=20.0, log=True, source="arXiv:1904.09058: 3"),
    }
    taps = {"student": (LAST,)}

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def sums() -> Tensor:
            zs, zt = student_logits(), teacher_logits()
            return torch.stack([mutual_losses([zt, zt], zs)[0], mutual_losses([zs, zs], zt)[1]])

        return [
            Golden(
                "T²·KL to the fused classifier, and from it to two networks, T = 3",
                sums,
                [0.3471101, 2 * 0.3471101],
                BY_FORMULA,
            ),
            Golden(
                "ramp-up at epochs 0, 40 and 80 of 80",
                lambda: [ramp_up(epoch, 80) for epoch in (0, 40, 80)],
                [math.exp(-5), math.exp(-1.25), 1.0],
                "exp(-5·1²), exp(-5·(1/2)²), exp(0)",
            ),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "ffl")
        run.student.want(LAST)
        peer, trunk_tap = self._make_peer(run)
        peer.want(LAST)
        self.pair = Pair(run.student, peer, trunk_tap)
        width = channels(run.student, LAST)
        self.fusion = Fusion(2 * width, width, run.data.num_classes)

    def _make_peer(self, run: Run) -> tuple[Handle, Tap | None]:
        if self.hp.share == "all_but_last":
            try:
                peer: Any = run.new_student("peer", share="all_but_last", seed=1)
            except NotApplicable:
                pass
            else:
                run.student.want(peer.trunk_tap)
                return peer, peer.trunk_tap
        return run.new_student("peer", share="none", seed=1), None

    def phases(self, run: Run) -> Sequence[Phase]:
        # A list of modules names a shared parameter once; two modules side by side would name it twice.
        both = nn.ModuleList([run.student.net, self.pair.peer.net])
        decay = {"weight_decay": self.hp.fusion_weight_decay}
        return [Phase(optimizers={"sub": Opt((both,)), "fuse": Opt((self.fusion,), kw=decay)})]

    def ramp(self, epoch: int, phase_epochs: int) -> float:
        """Return w(e) of an epoch counted from 0."""
        return ramp_up(epoch, self.hp.ramp_epochs or max(1.0, phase_epochs * _RAMP_SHARE))

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One backward pass for both networks and the fusion module, and a step of each optimizer."""
        assert batch is not None
        with run.amp():
            first, second = self.pair(batch.x)
            fused = self.fusion(torch.cat([first.feats[LAST], second.feats[LAST]], 1))
        with run.fp32():
            weight = self.ramp(run.epoch, run.phase_epochs)
            to_fused, to_subs = mutual_losses([first.logits, second.logits], fused, self.hp.temperature)
            parts = {
                "task": run.task.loss(first, batch),
                "task_sub2": run.task.loss(second, batch),
                "task_fused": run.task.loss(Out(fused), batch),
                "to_fused": weight * to_fused,
                "to_subs": weight * to_subs,
            }
            total = sum(parts.values(), start=first.logits.new_zeros(()))
        run.optimize(total, "sub", "fuse")
        return {name: part.detach() for name, part in parts.items()}

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        return {
            "student": run.student.net,
            "sub2": self.pair.peer.net,
            "fused": Joint(self.pair, self.fusion),
            "ensemble": Joint(self.pair, None),
        }
