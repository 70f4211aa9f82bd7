"""How alike the decision boundaries of a student and its (first) teacher are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kdbench.api import Batch, DataError, KdbenchError, Run
from kdbench_methods.bss import boundary_attack
from kdbench_tasks.modes import evaluating

#: Images that are attacked, spread evenly over the classes.
IMAGES = 100
#: Other classes towards which each image is moved: all of ten classes; of more, the teacher's likeliest ones.
TARGETS = 9
#: Largest number of steps of each attack, their length relative to the distance of a linear network's
#: boundary, and images moved at once.
STEPS, STEP_SIZE, CHUNK = 20, 0.7, 128


def evaluate(run: Run, net: nn.Module, split: Iterable[Batch]) -> dict[str, float]:
    """Compare the ways from images to the boundaries of `net` and of the teacher.

    Up to :data:`IMAGES` images that both networks classify correctly (an equal quota of each class, the first
    ones of the split) are moved towards each of up to :data:`TARGETS` other classes, by the ``pairwise`` attack
    of :mod:`kdbench_methods.bss` within the data set's range, on each network for itself in float32. Pairs of
    image and class count where on both networks that class overtook the image's own; with v = moved - original,

    - ``magsim``: mean of ``min(‖v_t‖, ‖v_s‖) / max(‖v_t‖, ‖v_s‖)``,
    - ``angsim``: mean of ``<v_t, v_s> / (‖v_t‖·‖v_s‖)``, both 1 for equal boundaries,
    - ``boundary_coverage``: share of the pairs that count; where it is 0 it comes alone.

    Source: Heo et al., "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", arXiv
    1805.05532. A reconstruction: the body of the text was not at hand. The limits, and steps that do not
    depend on the scale of a network's logits (the training attack's do, and often end short), are ours.

    Raises:
        KdbenchError: the cell has no teacher, or the task's outputs are no class logits.
        DataError: the split has no images or no labels, or none that both networks classify correctly.
    """
    if not run.teachers:
        raise KdbenchError("evaluator 'boundary-similarity': the cell has no teacher")
    if run.task.kind != "categorical":
        raise KdbenchError(f"evaluator 'boundary-similarity': the task's outputs are {run.task.kind}")
    teacher = run.teachers[0].net
    with evaluating(net, teacher):
        x, base, targets = _select(net, teacher, split, run.data.num_classes)
        per_image = targets.shape[1]
        x = x.repeat_interleave(per_image, 0)
        base, target = base.repeat_interleave(per_image), targets.flatten()
        bounds = [torch.tensor(b, device=x.device).view(1, -1, 1, 1) for b in run.data.bounds]
        sums = torch.zeros(3, dtype=torch.float64)
        for part in torch.arange(len(x), device=x.device).split(CHUNK):
            ways = [_way(n, x[part], base[part], target[part], *bounds) for n in (teacher, net)]
            sums += _compare(*ways)
    magnitude, angle, count = sums.tolist()
    coverage = count / len(x)
    if not count:
        return {"boundary_coverage": coverage}
    return {"magsim": magnitude / count, "angsim": angle / count, "boundary_coverage": coverage}


def similarities(v_t: Tensor, v_s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ratio of lengths and the cosine of pairs of vectors (N, D): two tensors (N,)."""
    a, b = v_t.norm(dim=1), v_s.norm(dim=1)
    tiny = torch.finfo(v_t.dtype).tiny
    ratio = torch.minimum(a, b) / torch.maximum(a, b).clamp_min(tiny)
    return ratio, (v_t * v_s).sum(1) / (a * b).clamp_min(tiny)


def _way(
    net: Callable[[Tensor], Tensor], x: Tensor, base: Tensor, target: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Return moved - original (N, D), and whether the target class overtook the base class (N,)."""
    moved = boundary_attack(
        net, x, base, target, steps=STEPS, step_size=STEP_SIZE, low=low, high=high, pairwise=True
    )
    z = net(moved)
    over = z.gather(1, target[:, None]) > z.gather(1, base[:, None])
    return (moved - x).flatten(1).cpu().double(), over.squeeze(1).cpu()


def _compare(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> Tensor:
    both = teacher[1] & student[1]
    ratio, cosine = similarities(teacher[0][both], student[0][both])
    return torch.stack([ratio.sum(), cosine.sum(), both.sum().double()])


def _select(
    net: nn.Module, teacher: nn.Module, split: Iterable[Batch], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, C, H, W), their classes (N,), and the classes to move them to (N, targets)."""
    quota = math.ceil(IMAGES / num_classes)
    taken = [0] * num_classes
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = total = 0
    for batch in split:
        if batch.y is None:
            raise DataError("evaluator 'boundary-similarity': the split has no labels")
        seen += len(batch.x)
        z = teacher(batch.x).float()
        right = (z.argmax(1) == batch.y) & (net(batch.x).argmax(1) == batch.y)
        rows = []
        for row in right.nonzero().flatten().tolist():
            label = int(batch.y[row])
            if taken[label] < quota and total < IMAGES:
                taken[label] += 1
                total += 1
                rows.append(row)
        if rows:
            y = batch.y[rows]
            others = z[rows].scatter(1, y[:, None], -torch.inf)
            rivals = others.topk(min(TARGETS, num_classes - 1), dim=1).indices
            found.append((batch.x[rows].float(), y, rivals))
        if total == IMAGES:
            break
    if not seen:
        raise DataError("evaluator 'boundary-similarity': a split without images")
    if not found:
        raise DataError("evaluator 'boundary-similarity': no image that both networks classify correctly")
    x, y, rivals = (torch.cat(parts) for parts in zip(*found, strict=True))
    return x, y, rivals
