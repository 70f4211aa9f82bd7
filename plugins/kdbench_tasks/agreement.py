"""How far a student agrees with its (first) teacher on a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.api import Batch, DataError, KdbenchError, Run
from kdbench_tasks.modes import evaluating


def evaluate(run: Run, net: nn.Module, split: Iterable[Batch]) -> dict[str, float]:
    """Compare `net` with the teacher, both in eval mode, without gradient.

    Returns:
        ``agreement``: percent of images with the same top class; ``kl_to_teacher``: mean of
        KL(teacher || student) in nats at temperature 1. Source: the fidelity metrics of Stanton et al., "Does
        Knowledge Distillation Really Work?", arXiv 2106.05945.

    Raises:
        KdbenchError: the cell has no teacher.
        DataError: the split has no images.
    """
    if not run.teachers:
        raise KdbenchError("evaluator 'teacher-agreement': the cell has no teacher")
    teacher = run.teachers[0].net
    sums: Tensor | None = None
    count = 0
    with evaluating(net, teacher):
        for batch in split:
            student_logits, teacher_logits = net(batch.x).float(), teacher(batch.x).float()
            dtype = torch.float32 if student_logits.device.type == "mps" else torch.float64
            same = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).to(dtype).sum()
            log_s = F.log_softmax(student_logits.to(dtype), dim=1)
            log_t = F.log_softmax(teacher_logits.to(dtype), dim=1)
            step = torch.stack([same, F.kl_div(log_s, log_t, reduction="sum", log_target=True)])
            sums = step if sums is None else sums + step
            count += len(batch.x)
    if sums is None:
        raise DataError("evaluator 'teacher-agreement': a split without images")
    agreement, kl = (sums / count).tolist()
    return {"agreement": 100 * agreement, "kl_to_teacher": kl}
