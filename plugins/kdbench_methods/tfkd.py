"""Teacher-free KD (Yuan, Tay, Li, Wang, Feng; CVPR 2020, arXiv:1909.11723)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Handle, Method, MethodParams, Needs, Opt, Out, Phase, Run, Search
from kdbench_methods._common import full, require_categorical
from kdbench_methods._golden import BY_FORMULA, labels, student_logits


def virtual_teacher(y: Tensor, num_classes: int, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """Return the hand-made teacher's probabilities (B, K) for labels `y` (B,): ``softmax(u/T)``.

    u has `correct` at the label and ``(1 - correct)/(K - 1)`` elsewhere. As in the official code the softmax is
    taken of these probabilities themselves, so the result is close to uniform.
    """
    rest = (1 - correct) / (num_classes - 1)
    u = torch.full((len(y), num_classes), rest, device=y.device)
    return (u.scatter_(1, y[:, None], correct) / temperature).softmax(1)


def regulariser(zs: Tensor, target: Tensor) -> Tensor:
    """Return ``(1/B) Σ_b KL(target_b ‖ softmax(z_b))``, a scalar; `zs` logits, `target` probabilities (B, K)."""
    zs = full(zs)
    return F.kl_div(F.log_softmax(zs, 1), target.to(zs.dtype), reduction="batchmean")


class TfKD(Method):
    """``L = (1 - alpha)·L_task + alpha·(multiplier/K)·T²·KL(peer ‖ student)``, without a stronger teacher.

    ``variant="self"``: the peer is a network of the student's architecture that was trained alone before.
    ``variant="reg"``: a virtual teacher,
    ``(1 - reg_alpha)·L_task + reg_alpha·(reg_multiplier/K)·KL(softmax(u/T) ‖ p^s)``, the student at T = 1. The
    official code averages KL over samples and classes and multiplies it; without a multiplier it is the batch
    mean. The values for CIFAR-100 are those of the code for ResNet-18. The two phases of "self" share the
    recipe's epochs; the code gives each of them all. Deploys the student, and the self-teacher.
    """

    class Params(MethodParams):
        """Variant, weights, temperatures and the self-teacher's share of the epochs."""

        variant: Literal["self", "reg"] = Field("self", description="self-training or virtual teacher")
        alpha: float = Field(0.95, ge=0, le=1, description="self: weight of the divergence to the peer")
        temperature: float = Field(6.0, gt=0, description="self: T, divides the logits of both networks")
        multiplier: float | None = Field(
            None, gt=0, description="self: factor of the mean over samples and classes; none: K"
        )
        teacher_share: float = Field(0.5, gt=0, lt=1, description="self: the peer's share of the epochs")
        reg_alpha: float = Field(0.1, ge=0, le=1, description="reg: weight of the virtual teacher")
        reg_temperature: float = Field(20.0, gt=0, description="reg: T of the virtual teacher")
        reg_multiplier: float | None = Field(
            None, gt=0, description="reg: factor of the mean over samples and classes; none: K"
        )
        correct_prob: float = Field(0.99, gt=0, lt=1, description="reg: u of the label")

    needs = Needs(teachers=0, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"variant": "self", "alpha": 0.95, "temperature": 6.0, "multiplier": 50.0},
        "cifar100-reg": {
            "variant": "reg",
            "reg_alpha": 0.1,
            "reg_temperature": 20.0,
            "reg_multiplier": 100.0,
        },
        "reg": {"variant": "reg"},
    }
    search = {
        "alpha": Search(low=0.1, high=0.99, source="our choice around the default"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        right = 1 / (1 + 2 * math.exp(-0.985 / 20))
        wrong = (1 - right) / 2
        return [
            Golden(
                "virtual teacher of three classes, correct_prob 0.99, T = 20",
                lambda: virtual_teacher(labels()[:1], 3),
                [[right, wrong, wrong]],
                "1/(1 + 2·exp(-(0.99 - 0.005)/20)), the rest shared",
            ),
            Golden(
                "KL of the virtual teacher to the student",
                lambda: regulariser(student_logits(), virtual_teacher(labels(), 3)),
                0.5099285,
                BY_FORMULA,
            ),
        ]

    def setup(self, run: Run) -> None:
        self.networks: tuple[Handle, ...] = (run.student,)
        if self.hp.variant == "self":
            self.networks = (run.student, run.new_student("self_teacher", seed=1))
        else:
            require_categorical(run, "tfkd's virtual teacher")

    def phases(self, run: Run) -> Sequence[Phase]:
        if self.hp.variant == "reg":
            return [Phase("reg", step=self.reg_step)]
        share, (student, peer) = self.hp.teacher_share, self.networks
        alone = partial(self.alone_step, peer)
        return [
            Phase("teacher", share, optimizers={"main": Opt((peer.net,))}, step=alone, evaluate=False),
            Phase("distil", 1 - share, optimizers={"main": Opt((student.net,))}, step=self.distil_step),
        ]

    def alone_step(self, network: Handle, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train one network on the task alone."""
        assert batch is not None
        with run.amp():
            out = network(batch.x, ())
        with run.fp32():
            task = run.task.loss(out, batch)
        run.optimize(task)
        return {"task": task.detach()}

    def distil_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the student on the task and on the finished peer, which is in eval mode."""
        assert batch is not None
        hp, (student, peer) = self.hp, self.networks
        if peer.net.training:
            peer.net.eval()
        with run.amp():
            with torch.no_grad():
                target = peer(batch.x, ())
            out = student(batch.x, ())
        with run.fp32():
            kd = run.task.divergence(out, target, hp.temperature)
            parts = self._mix(run.task.loss(out, batch), kd, hp.alpha, hp.multiplier, run)
        run.optimize(parts["task"] + parts["kd"])
        return {name: part.detach() for name, part in parts.items()}

    def reg_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the student on the task and on the virtual teacher."""
        assert batch is not None
        assert batch.y is not None
        hp = self.hp
        with run.amp():
            out: Out = run.student(batch.x, ())
        with run.fp32():
            target = virtual_teacher(batch.y, run.data.num_classes, hp.correct_prob, hp.reg_temperature)
            kd = regulariser(out.logits, target)
            parts = self._mix(run.task.loss(out, batch), kd, hp.reg_alpha, hp.reg_multiplier, run)
        run.optimize(parts["task"] + parts["kd"])
        return {name: part.detach() for name, part in parts.items()}

    @staticmethod
    def _mix(task: Tensor, kd: Tensor, alpha: float, multiplier: float | None, run: Run) -> dict[str, Tensor]:
        factor = 1.0 if multiplier is None else multiplier / run.data.num_classes
        return {"task": (1 - alpha) * task, "kd": alpha * factor * kd}

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        return {"student": run.student.net, **{h.name: h.net for h in self.networks[1:]}}
