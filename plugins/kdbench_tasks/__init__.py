"""Tasks: image classification, and the agreement of a student with its teacher as an extra measurement."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hooks import EvaluatorEntry, TaskEntry, hookimpl


@hookimpl
def kdbench_tasks() -> Sequence[TaskEntry]:
    """Return the tasks of this package."""
    return [
        TaskEntry(
            name="classification",
            target="kdbench_tasks.classification:Classification",
            version="1",
            summary="image classification by cross-entropy; top-1, top-5, NLL and calibration error",
            capabilities=frozenset({"supervised", "distillable", "features"}),
            kind="categorical",
            primary="top1",
        )
    ]


@hookimpl
def kdbench_evaluators() -> Sequence[EvaluatorEntry]:
    """Return the evaluators of this package."""
    return [
        EvaluatorEntry(
            name="teacher-agreement",
            target="kdbench_tasks.agreement:evaluate",
            version="1",
            summary="share of images on which student and teacher agree, and the divergence between them",
            needs_teacher=True,
        )
    ]
