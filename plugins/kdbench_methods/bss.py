"""Boundary supporting samples (Heo, Lee, Yun, Choi; AAAI 2019, arXiv:1805.05532; bhheo/BSS_distillation)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import full, require_categorical
from kdbench_methods._golden import BY_FORMULA, student_logits, teacher_logits

#: Added to the gap between two logits, so that a step crosses the boundary and does not end on it.
_OVERSHOOT = 1e-4


def soft_cross_entropy(
    zs: Tensor, zt: Tensor, temperature: float = 3.0, weight: Tensor | None = None
) -> Tensor:
    """Return ``H_T = -(1/Σw) Σ_b w_b Σ_k p_T(z^t)_k log p_T(z^s)_k``, a scalar; there is no factor T².

    `zs` (student) and `zt` (teacher) are logits (B, K); `weight` (B,) is 0 or more, by default 1 for all;
    weights that are all 0 give 0. Source: official code.
    """
    log_s = F.log_softmax(full(zs) / temperature, 1)
    p_t = F.softmax(full(zt) / temperature, 1)
    each = -(p_t * log_s).sum(1)
    if weight is None:
        return each.mean()
    # where() keeps a sample of weight 0 out even when its term is not finite
    return torch.where(weight > 0, weight * each, 0.0).sum() / weight.sum().clamp_min(1.0)


def schedule(epoch: int, epochs: int, high: float, low: float, share: float) -> float:
    """Return the weight at an epoch counted from 1: ``low + (high - low)·max(1 - epoch/(share·epochs), 0)``.

    With `epochs` = E the official code has 4 to 1 over share 1 for the clean images (alpha), and 2 to 0 over
    share 3/4 for the boundary supporting samples (beta).
    """
    return low + (high - low) * max(1 - epoch / (share * epochs), 0.0)


def disagreement(zs: Tensor, zt: Tensor, y: Tensor) -> Tensor:
    """Return ``Σ_{k != y} (q^t_k - q^s_k)²`` per sample (B,), q the softmax at T = 1 (official code)."""
    gap = (F.softmax(full(zt), 1) - F.softmax(full(zs), 1)).square()
    return gap.scatter(1, y[:, None], 0.0).sum(1)


def draw_target(zt: Tensor, base: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a class k != base with probability ``q^t_k / Σ_{j != base} q^t_j``; (B,) int64.

    Drawn as the largest ``log q_k - log E_k`` with E_k exponential: the same law as a multinomial draw, but
    it needs no look at the values from the host and works for teachers whose other q_k are all 0 in float32.
    """
    z = full(zt).scatter(1, base[:, None], -torch.inf)
    noise = torch.empty_like(z).exponential_(generator=generator).clamp_min(torch.finfo(z.dtype).tiny)
    return (z - noise.log()).argmax(1)


def boundary_attack(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    base: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    step_size: float = 0.3,
    low: Tensor | float = -2.5,
    high: Tensor | float = 2.5,
    active: Tensor | None = None,
    pairwise: bool = False,
) -> Tensor:
    """Move images over the boundary between two classes of a network.

    At most `steps` times, with ``d = z_b - z_k`` and ``g = ∇_x (z_k - z_b)`` for each sample that the network
    still takes for its class b: ``x <- clamp(x + η·(d + 1e-4)·g/‖g‖₂, low, high)``. A sample rests as soon as
    another class than b, be it k or a third, has the largest logit (official code).

    With `pairwise` the step is divided by ‖g‖² instead, which makes it independent of the logits' scale and
    with η = 1 lands on the boundary of a linear network, and a sample rests as soon as ``z_k > z_b``,
    whatever a third class does.

    Args:
        logits: the network, (B, C, H, W) -> (B, K), in eval mode; only the gradient of `x` is taken.
        x: images (B, ...), not changed.
        base, target: classes b and k, (B,) int64.
        low, high: bounds of the pixels in the space of the network's input; tensors must broadcast to `x`.
        active: which samples may move, (B,) bool; default all.

    Returns:
        The moved images, without gradient.
    """
    x = x.detach()
    moving = torch.ones_like(base, dtype=torch.bool) if active is None else active
    tail = (-1,) + (1,) * (x.dim() - 1)
    for _ in range(steps):
        with torch.enable_grad():
            at = x.requires_grad_(True)
            z = full(logits(at))
            gap = z.gather(1, base[:, None]) - z.gather(1, target[:, None])
            # Samples do not meet in eval mode, so one sum gives every sample its own gradient.
            (slope,) = torch.autograd.grad(-gap.sum(), at)
        x = x.detach()
        gap = gap.detach().squeeze(1)
        moving = moving & (gap >= 0 if pairwise else z.argmax(1) == base)
        norm = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
        length = step_size * (gap + _OVERSHOOT) / (norm.square() if pairwise else norm)
        moved = torch.clamp(x + length.view(tail) * slope, min=_bound(low, x), max=_bound(high, x))
        x = torch.where(moving.view(tail), moved, x)
    return x


def _bound(value: Tensor | float, x: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)


def choose(score: Tensor, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` eligible samples with the largest scores: indices and which of them count, (count,).

    Where fewer are eligible, they are repeated to fill the batch and the repetitions do not count; where there
    are fewer than two, none counts and the indices are the samples themselves. The shapes never depend on the
    values, so the host need not wait for the device.
    """
    order = score.masked_fill(~eligible, -torch.inf).argsort(descending=True, stable=True)
    n = eligible.sum()
    slots = torch.arange(count, device=score.device)
    index = order[slots % torch.where(n >= 2, n, len(score))]
    return index, (slots < n) & (n >= 2)


class BSS(Method):
    """``L = L_task + alpha(e)·H_T(x) + beta(e)·H_T(x̊)`` with boundary supporting samples x̊ of the teacher.

    H_T is :func:`soft_cross_entropy`. The samples x̊ come from images that teacher and student classify
    correctly: those of largest :func:`disagreement`, moved by :func:`boundary_attack` towards a drawn class.
    alpha falls from ``kd_start`` to ``kd_end`` over the training; beta from ``bss_weight`` to 0 over the first
    ``bss_share`` of it, after which no attack runs. At least two images must be eligible in a batch.

    Follows the official code, with these differences: pixels are kept within the data set's own range (the
    preset ``paper`` keeps the code's ±2.5 in normalised space); the number of attacked images is a share of
    the batch, with the code's 64 of 256 as default; and where fewer are eligible, repeated images fill the
    student's batch without weight. The attack runs in float32 with the teacher in eval mode. The student's
    BatchNorm sees the moved images. Each step costs up to ``attack_steps`` forward and backward passes of the
    teacher on that share of the batch. Preset ``paper`` is for CIFAR-10 at batch 256.
    """

    class Params(MethodParams):
        """Weights over the epochs, temperature, and the attack."""

        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        temperature: float = Field(3.0, gt=0, description="T, divides the logits of both networks")
        kd_start: float = Field(4.0, ge=0, description="weight of the clean images' term at the start")
        kd_end: float = Field(1.0, ge=0, description="weight of the clean images' term at the end")
        bss_weight: float = Field(2.0, ge=0, description="weight of the moved images' term at the start")
        bss_share: float = Field(
            0.75, gt=0, le=1, description="share of the epochs after which no images are moved"
        )
        attack_share: float = Field(0.25, gt=0, le=1, description="moved images, relative to the batch")
        attack_steps: int = Field(10, ge=1, description="largest number of steps of the attack")
        step_size: float = Field(0.3, gt=0, description="length of a step, relative to the logit gap")
        clip: float | None = Field(
            None, gt=0, description="bound of normalised pixels, ±clip; none: the data set's own range"
        )

    needs = Needs(min_batch=2, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {
        "paper": {"clip": 2.5, "attack_share": 0.25, "bss_share": 0.75},
        "cifar100": {"attack_share": 0.25},
    }
    search = {
        "kd_start": Search(low=0.4, high=40.0, log=True, source="a decade each way of the authors' value"),
        "bss_weight": Search(low=0.2, high=20.0, log=True, source="a decade each way of the authors' value"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
        x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
        base, target = torch.tensor([0]), torch.tensor([1])
        return [
            Golden(
                "soft cross-entropy at T = 3",
                lambda: soft_cross_entropy(student_logits(), teacher_logits(), 3.0),
                1.0350566,
                BY_FORMULA,
            ),
            Golden(
                "one step of the attack on a linear network",
                lambda: boundary_attack(lambda z: z @ rows.T, x, base, target, steps=1),
                [[2 - 0.3 * 1.0001 / math.sqrt(2), 1 + 0.3 * 1.0001 / math.sqrt(2)]],
                "by hand: logits 2, 1, -3, gap 1, gradient (-1, 1)",
            ),
            Golden(
                "alpha and beta at epoch 40 of 80",
                lambda: cls().weights(39, 80),
                [2.5, 2 / 3],
                "1 + 3·(1 - 40/80) and 2·(1 - 160/240)",
            ),
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "bss")
        low, high = run.data.bounds
        if self.hp.clip is not None:
            low, high = (tuple(sign * self.hp.clip for _ in low) for sign in (-1.0, 1.0))
        self.register_buffer("low", torch.tensor(low).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("high", torch.tensor(high).view(1, -1, 1, 1), persistent=False)

    def weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """Return alpha and beta of an epoch counted from 0."""
        hp = self.hp
        alpha = schedule(epoch + 1, epochs, hp.kd_start, hp.kd_end, 1.0)
        return alpha, schedule(epoch + 1, epochs, hp.bss_weight, 0.0, hp.bss_share)

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        hp = self.hp
        alpha, beta = self.weights(run.epoch, run.phase_epochs)
        parts = {
            "task": hp.ce_weight * run.task.loss(S, batch),
            "kd": alpha * soft_cross_entropy(S.logits, T[0].logits, hp.temperature),
        }
        if beta > 0:
            x, counts = self.boundary_samples(S, T[0], batch, run)
            with run.amp():
                teacher, student = run.teach(run.teacher, x), run.student(x, ())
            run.log({"bss_samples": counts.sum()})
            parts["bss"] = beta * soft_cross_entropy(
                student.logits, teacher.logits, hp.temperature, counts.float()
            )
        return parts

    def boundary_samples(self, S: Out, T: Out, batch: Batch, run: Run) -> tuple[Tensor, Tensor]:
        """Return moved images (n, C, H, W) and which of them count (n,); n is the same for every full batch."""
        assert batch.y is not None
        hp, y = self.hp, batch.y
        with torch.no_grad():
            zs, zt = full(S.logits), full(T.logits)
            eligible = (zs.argmax(1) == y) & (zt.argmax(1) == y)
            count = min(len(y), max(2, round(hp.attack_share * len(y))))
            index, counts = choose(disagreement(zs, zt, y), eligible, count)
            base = y[index]
            target = draw_target(zt[index], base, run.rng)
            moving = eligible[index] & (eligible.sum() >= 2)
        x = boundary_attack(
            lambda x: run.teach(run.teacher, x, grad=True, bn="eval").logits,
            batch.x[index].float(),
            base,
            target,
            steps=hp.attack_steps,
            step_size=hp.step_size,
            low=self.low,
            high=self.high,
            active=moving,
        )
        return x, counts
