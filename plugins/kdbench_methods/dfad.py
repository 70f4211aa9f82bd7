"""Data-free adversarial distillation (Fang et al., arXiv:1912.11006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, NotApplicable, Opt, Phase, Run, Search
from kdbench_methods._common import full
from kdbench_methods._golden import student_logits, teacher_logits


def discrepancy(zs: Tensor, zt: Tensor) -> Tensor:
    """Return ``mean |z^s - z^t|`` over logits (B, K), a scalar: low for the student, high for the images."""
    return (full(zs) - full(zt)).abs().mean()


class Generator(nn.Module):
    """Noise (B, nz) -> images (B, in_chans, size, size) in the space of normalised inputs.

    Linear to 128 maps of a quarter of the size, BatchNorm, then twice: nearest up-sampling by 2, 3×3
    convolution, BatchNorm, LeakyReLU(0.2); a 3×3 convolution, tanh, and BatchNorm without affine weights,
    which gives each channel mean 0 and variance 1. Larger images start from at most 8 pixels where they can
    be halved so often, with further doublings at 128 channels (ours; the dense layer would grow with the
    area).

    Raises ValueError unless 4 divides `size`.
    """

    def __init__(self, nz: int, size: int, in_chans: int = 3) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f"image size {size} is not divisible by 4")
        base, doublings = size // 4, 2
        while base > 8 and base % 2 == 0:
            base, doublings = base // 2, doublings + 1
        layers: list[nn.Module] = [
            nn.Linear(nz, 128 * base * base),
            nn.Unflatten(1, (128, base, base)),
            nn.BatchNorm2d(128),
        ]
        width = 128
        for i in range(doublings):
            c_out = 64 if i == doublings - 1 else 128
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(width, c_out, 3, padding=1),
                nn.BatchNorm2d(c_out),
                nn.LeakyReLU(0.2),
            ]
            width = c_out
        layers += [
            nn.Conv2d(width, in_chans, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(in_chans, affine=False),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


class DFAD(Method):
    """``min_S D(G(z))`` and ``max_G D(G(z))`` by turns, with ``D(x) = mean |z^s(x) - z^t(x)|``, z ~ N(0, 1).

    D is :func:`discrepancy`, G the :class:`Generator`; after `student_steps` steps of the student comes one of
    the generator. No image of the training set is read. An epoch is `iterations` such rounds; every step draws
    its own noise, and the student stays in train mode in both kinds of step (official code). The method is
    shown at 32 pixels and on small images; at ImageNet's size it is experimental.
    """

    class Params(MethodParams):
        """Sizes of the noise, of the batch and of an epoch."""

        nz: int = Field(256, ge=1, description="dimensions of the noise")
        batch_size: int = Field(256, ge=2, description="generated images per step")
        iterations: int = Field(50, ge=1, description="rounds per epoch")
        student_steps: int = Field(5, ge=1, description="student steps per round, before one generator step")
        generator_lr: float = Field(1e-3, gt=0, description="learning rate of the generator's Adam")

    needs = Needs(data="none", labels=False, capabilities=frozenset({"distillable"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"nz": 256, "batch_size": 256},
        "mnist": {"nz": 100, "batch_size": 512},
        "caltech101": {"batch_size": 64},
        # for the conformance suite: the default epoch is 50 x 6 batches of 256
        "check": {"nz": 16, "batch_size": 8, "iterations": 2, "student_steps": 2},
    }
    search = {
        "generator_lr": Search(
            low=0.0001, high=0.01, log=True, source="a decade each way of the authors' value"
        ),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "discrepancy of two samples of three logits",
                lambda: discrepancy(student_logits(), teacher_logits()),
                5 / 6,
                "by hand: the differences 1, 1, 0, 1, 1, 1",
            )
        ]

    def setup(self, run: Run) -> None:
        try:
            self.generator = Generator(self.hp.nz, run.data.image_size, run.data.in_chans)
        except ValueError as e:
            raise NotApplicable(f"dfad: {e}") from e

    def phases(self, run: Run) -> Sequence[Phase]:
        adam = Opt((self.generator,), "adam", {"lr": self.hp.generator_lr, "weight_decay": 0.0})
        optimizers = {"S": Opt((run.student.net,)), "G": adam}
        return [Phase("adversarial", optimizers=optimizers, source=self.hp.iterations)]

    def noise(self, run: Run) -> Tensor:
        """Return standard normal noise (batch_size, nz) from the run's generator."""
        return torch.randn(self.hp.batch_size, self.hp.nz, generator=run.rng, device=run.device)

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One round."""
        for _ in range(self.hp.student_steps):
            with torch.no_grad(), run.amp():
                images = full(self.generator(self.noise(run)))
            student_loss = self.gap(images, run, grad=False)
            run.optimize(student_loss, "S")
        with run.amp():
            images = full(self.generator(self.noise(run)))
        generator_loss = -self.gap(images, run, grad=True)
        run.optimize(generator_loss, "G")
        return {"student": student_loss.detach(), "generator": generator_loss.detach()}

    def gap(self, images: Tensor, run: Run, *, grad: bool) -> Tensor:
        """Return the discrepancy on images (B, 3, H, W); with `grad` one flows back through the teacher."""
        with run.amp():
            teacher = run.teach(run.teacher, images, grad=grad)
            student = run.student(images)
        with run.fp32():
            return discrepancy(student.logits, teacher.logits)
