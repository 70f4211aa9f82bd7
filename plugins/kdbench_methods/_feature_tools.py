"""What the methods on features share beyond :mod:`._common`: chosen stages, pooled features, teacher heads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.api import NotApplicable, Out, Run, Tap
from kdbench_methods._common import full, match_size, stage_pairs

LAST = Tap(-1)


def want_last_stages(
    run: Run, when: Literal["post", "pre"], count: int | None = None
) -> list[tuple[Tap, Tap]]:
    """Ask both networks for their last `count` paired stages (None: all) and return the pairs, last one last."""
    pairs = stage_pairs(run, when)
    pairs = pairs if count is None else pairs[-count:]
    run.student.want(*(s for s, _ in pairs))
    run.teacher.want(*(t for _, t in pairs))
    return pairs


def require_spatial(run: Run, pairs: Sequence[tuple[Tap, Tap]], method: str) -> None:
    """Raise NotApplicable when no pair has a common map of more than one position: its loss would be 0."""
    sizes = []
    for s, t in pairs:
        a, b = run.student.shape(s)[2:], run.teacher.shape(t)[2:]
        sizes.append(min(a[0], b[0]) * min(a[1], b[1]))
    if max(sizes) < 2:
        raise NotApplicable(f"{method} compares positions of maps, and every paired map is 1x1")


def pool_to(x: Tensor, side: int) -> Tensor:
    """Average-pool (B, C, H, W) to at most `side` rows and columns."""
    return match_size(x, x.new_empty(1, 1, side, side))[0]


def require_pooled(run: Run, method: str) -> tuple[int, int]:
    """Return the widths of the student's and the teacher's pooled features; NotApplicable without them."""
    for handle in (run.student, run.teacher):
        if not handle.num_features:
            raise NotApplicable(f"{method} needs the classifier's input; {handle.name} has no pooled feature")
    return run.student.num_features, run.teacher.num_features


def pooled(out: Out) -> Tensor:
    """Return the classifier's input (B, D) in at least float32."""
    if out.pooled is None:
        raise NotApplicable("the input of a network's classifier is not one vector an image")
    return full(out.pooled)


@dataclass(frozen=True)
class TeacherHead:
    """The teacher's classifier and what enters it.

    Attributes:
        classifier: a frozen copy of the linear layer, (B, D) -> (B, K).
        width: D.
        averages: whether its input is the spatial mean of the last stage's map.
        nonnegative: whether that map (else that input) has no negative value, so that a ReLU may end a
            projector onto it.
    """

    classifier: nn.Linear
    width: int
    averages: bool
    nonnegative: bool


def teacher_head(run: Run, method: str) -> TeacherHead:
    """Find out, by one forward of random images, how the teacher gets from its last map to its logits.

    Raises NotApplicable unless the logits are a single linear layer of the pooled feature.
    """
    teacher = run.teacher
    get = getattr(teacher.net, "get_classifier", None)
    layer = get() if get is not None else None
    if not isinstance(layer, nn.Linear):
        raise NotApplicable(
            f"{method} reuses the teacher's classifier, which is not a single linear layer here"
        )
    with torch.no_grad():
        out, last = _last_map(run)
        if out.pooled is None or not _close(layer(out.pooled), out.logits):
            raise NotApplicable(f"{method}: the teacher's logits are not its classifier's output alone")
        averages = (
            last is not None
            and last.shape[1] == out.pooled.shape[1]
            and _close(last.mean((2, 3)), out.pooled)
        )
        seen = last if averages and last is not None else out.pooled
        nonnegative = bool((seen >= 0).all())
    frozen = copy.deepcopy(layer).requires_grad_(False)
    return TeacherHead(frozen, layer.in_features, averages, nonnegative)


def _last_map(run: Run) -> tuple[Out, Tensor | None]:
    side = run.data.image_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, run.data.in_chans, side, side), generator=generator).to(run.device)
    try:
        out = run.teacher(x, (LAST,))
    except NotApplicable:
        return run.teacher(x, ()), None
    last = out.feats[LAST]
    return out, last if last.dim() == 4 else None


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)
