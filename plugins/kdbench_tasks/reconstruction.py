"""How well the last feature maps of the teachers can be rebuilt from a student's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from kdbench.api import Batch, DataError, KdbenchError, Run, Tap
from kdbench_methods._common import match_size
from kdbench_methods.feed import nonlinear_transform, unit_l1
from kdbench_tasks.modes import evaluating

#: Steps of Adam that each transform is trained for, whatever the size of the split, and its learning rate.
STEPS, LR = 200, 1e-3
LAST = Tap(-1)


def evaluate(run: Run, net: nn.Module, split: Iterable[Batch]) -> dict[str, float]:
    """Train a small transform from the student's last map to each teacher's, and measure its error.

    The networks are frozen. Each transform (three 3x3 convolutions with BatchNorm and LeakyReLU, FEED's) is
    trained from fixed initial weights for :data:`STEPS` steps on the validation split, never on training
    images, for those the student has seen with its teachers; then the error is taken on `split`.

    Returns:
        ``reconstruction_error``: mean absolute difference of the maps, each divided by its norm (the distance
        that FEED minimises), over images and teachers; with several teachers also
        ``reconstruction_error_0``, ... one by one. It depends on the size of the teacher's maps, so students
        compare under one teacher only. For a deployable that is not the student's own network, nothing.

    Source: the reconstruction-error probe of Park and Kwak, "FEED: Feature-level Ensemble for Knowledge
    Distillation", arXiv 1909.10754; steps, optimizer and split are ours.

    Raises:
        KdbenchError: the cell has no teacher or no validation split.
        DataError: a split has no images.
    """
    if not run.teachers:
        raise KdbenchError("evaluator 'reconstruction-error': the cell has no teacher")
    if net is not run.student.net:
        return {}
    try:
        val = run.split("val")
    except KeyError:
        message = (
            "evaluator 'reconstruction-error': the recipe holds out no validation split (val_fraction 0)"
        )
        raise KdbenchError(message) from None
    with evaluating(run.student.net, *(t.net for t in run.teachers)):
        transforms = _fit(run, val)
        errors = _measure(run, transforms, split)
    mean = {"reconstruction_error": sum(errors) / len(errors)}
    if len(errors) == 1:
        return mean
    return mean | {f"reconstruction_error_{k}": error for k, error in enumerate(errors)}


def _maps(run: Run, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the student's map with each teacher's, (B, C, H, W) in float32, pooled to the smaller size."""
    student = run.student(x, [LAST]).feats[LAST].float()
    return [match_size(student, t(x, [LAST]).feats[LAST].float()) for t in run.teachers]


def _fit(run: Run, val: Iterable[Batch]) -> nn.ModuleList:
    width = run.student.shape(LAST)[1]
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        transforms = nn.ModuleList(nonlinear_transform(width, t.shape(LAST)[1]) for t in run.teachers)
    transforms.to(run.device).train()
    optimizer = torch.optim.Adam(transforms.parameters(), lr=LR)
    for batch in _cycle(val, STEPS):
        maps = _maps(run, batch.x)
        with torch.enable_grad():
            losses = [unit_l1(f(s), t) for f, (s, t) in zip(transforms, maps, strict=True)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
        optimizer.step()
    return transforms.eval()


def _cycle(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield `count` batches, from the start again where the split ends; skips batches of one image."""
    done = 0
    while done < count:
        before = done
        for batch in batches:
            if done == count:
                return
            if len(batch.x) > 1:
                done += 1
                yield batch
        if done == before:
            raise DataError("evaluator 'reconstruction-error': a validation split without images")


def _measure(run: Run, transforms: nn.ModuleList, split: Iterable[Batch]) -> list[float]:
    sums: Tensor | None = None
    count = 0
    for batch in split:
        maps = _maps(run, batch.x)
        step = torch.stack([unit_l1(f(s), t) for f, (s, t) in zip(transforms, maps, strict=True)])
        step = step * len(batch.x)
        sums = step if sums is None else sums + step
        count += len(batch.x)
    if sums is None:
        raise DataError("evaluator 'reconstruction-error': a split without images")
    return [float(v) for v in (sums / count).tolist()]
