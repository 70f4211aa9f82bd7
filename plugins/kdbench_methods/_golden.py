"""Logits small enough to work by hand, and a run without an engine, for the golden values of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.api import Batch, Method, Out

_STUDENT = ((1, 2, 0), (0, 1, 3), (2, 0, 1))
_TEACHER = ((2, 1, 0), (1, 0, 4), (3, 1, 0))
_LABELS = (0, 2, 0)

#: Mean cross-entropy of the student's first two logits, ``(log(1 + e + e^-1) + log(1 + e^-2 + e^-3))/2``.
TASK_LOSS = 0.7887260
#: How the values that follow from the formula on these logits were found.
BY_FORMULA = "the formula on these logits, worked out with numpy in float64"


def student_logits(samples: int = 2) -> Tensor:
    """Return logits (samples, 3) in float64, at most three samples."""
    return torch.tensor(_STUDENT[:samples], dtype=torch.float64)


def teacher_logits(samples: int = 2) -> Tensor:
    """Return logits (samples, 3) in float64, at most three samples."""
    return torch.tensor(_TEACHER[:samples], dtype=torch.float64)


def labels(samples: int = 2) -> Tensor:
    """Return labels (samples,) int64, at most three."""
    return torch.tensor(_LABELS[:samples])


class _Fixed:
    """A handle whose network gives the same output for all images."""

    def __init__(self, name: str, out: Out, width: int) -> None:
        self.name, self.out, self.num_features = name, out, width
        self.net = nn.Module()
        # what timm's token distillation looks for
        self.net.set_distilled_training = lambda enable=True: None  # type: ignore[assignment]

    def __call__(self, x: Tensor, taps: Any = None) -> Out:
        return self.out


def fixed_run(student: Out | None = None, teacher: Out | None = None, epoch: int = 0, epochs: int = 1) -> Any:
    """Return a run on classification whose networks give fixed outputs, by default the logits of this module.

    `epoch` counts from 0 of `epochs`. ``run.optimize`` does nothing.
    """
    from kdbench_tasks.classification import Classification

    outs = (student or Out(student_logits()), teacher or Out(teacher_logits()))
    handles = [
        _Fixed(name, out, 0 if out.pooled is None else out.pooled.shape[1])
        for name, out in zip(("student", "teacher0"), outs, strict=True)
    ]
    return SimpleNamespace(
        student=handles[0],
        teacher=handles[1],
        teachers=handles[1:],
        task=Classification(),
        data=SimpleNamespace(num_classes=3, in_chans=3, mean=(0.0,) * 3, std=(1.0,) * 3),
        device=torch.device("cpu"),
        epoch=epoch,
        phase_epochs=epochs,
        teach=lambda handle, x: handle(x),
        optimize=lambda *args: None,
        log=lambda values: None,
        amp=nullcontext,
        fp32=nullcontext,
    )


def fixed_batch() -> Batch:
    """Return a batch of two images of one pixel, with labels."""
    return Batch(torch.zeros(2, 3, 1, 1), labels())


def total(method: Method, epoch: int = 0, epochs: int = 1) -> Callable[[], Tensor]:
    """Return what computes the sum of the losses of a method on the two samples' logits, a scalar."""

    def value() -> Tensor:
        run = fixed_run(epoch=epoch, epochs=epochs)
        method.setup(run)
        return _sum(method.loss(run.student.out, [run.teacher.out], fixed_batch(), run))

    return value


def stepped(method: Method, student: Out | None = None, teacher: Out | None = None) -> Callable[[], Tensor]:
    """Return what computes the sum of the losses of one step of a method on fixed outputs, a scalar."""

    def value() -> Tensor:
        run = fixed_run(student, teacher)
        method.setup(run)
        return _sum(method.step(fixed_batch(), run))

    return value


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part.detach().double() for part in parts.values()]).sum()
