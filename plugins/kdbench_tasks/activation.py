"""In how many neurons at the ends of stages a student and its (first) teacher are on and off alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdbench.api import Batch, DataError, KdbenchError, Run, Tap, pair_stages
from kdbench_tasks.modes import evaluating


def evaluate(run: Run, net: nn.Module, split: Iterable[Batch]) -> dict[str, float]:
    """Compare the signs of values before the activations that end paired stages.

    Returns:
        ``activation_similarity``: 1 minus the mean mismatch of on (value > 0) and off, per stage over all
        neurons and images, then over the stages. ``activation_stages``: how many pairs of stages were
        compared, those where both networks have such an activation and their maps are of one shape; where
        there are none it comes alone. For a deployable that is not the student's own network, nothing.

    The transfer loss of Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", arXiv
    1811.03233, is this mismatch; there the student's values pass a connector, which no longer exists after
    training. So neurons are paired by their number: for methods without such a pairing (through connectors,
    or on logits alone) chance is what the shares of active neurons give, about one half.

    Raises:
        KdbenchError: the cell has no teacher.
        DataError: the split has no images.
    """
    if not run.teachers:
        raise KdbenchError("evaluator 'activation-similarity': the cell has no teacher")
    student, teacher = run.student, run.teachers[0]
    if net is not student.net:
        return {}
    pairs = [
        (s, t)
        for s, t in pair_stages(student, teacher, when="pre")
        if student.has_activation(s) and teacher.has_activation(t) and student.shape(s) == teacher.shape(t)
    ]
    if not pairs:
        return {"activation_stages": 0.0}
    sums: Tensor | None = None
    count = 0
    with evaluating(student.net, teacher.net):
        for batch in split:
            step = _mismatch(run, pairs, batch.x)
            sums = step if sums is None else sums + step
            count += len(batch.x)
    if sums is None:
        raise DataError("evaluator 'activation-similarity': a split without images")
    return {"activation_similarity": 1 - float(sums.mean()) / count, "activation_stages": float(len(pairs))}


def _mismatch(run: Run, pairs: list[tuple[Tap, Tap]], x: Tensor) -> Tensor:
    """Return per pair the sum over images of the share of neurons that differ, (pairs,)."""
    s = run.student(x, [a for a, _ in pairs]).feats
    t = run.teachers[0](x, [b for _, b in pairs]).feats
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    differ = [((s[a] > 0) != (t[b] > 0)).flatten(1).to(dtype).mean(1).sum() for a, b in pairs]
    return torch.stack(differ)
