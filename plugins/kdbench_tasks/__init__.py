"""Tasks: image classification; and how close a student is to its teacher, as extra measurements."""

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
        ),
        EvaluatorEntry(
            name="boundary-similarity",
            target="kdbench_tasks.boundary:evaluate",
            version="1",
            summary="magnitude and angle by which ways to the decision boundaries of student and teacher agree",
            needs_teacher=True,
        ),
        EvaluatorEntry(
            name="activation-similarity",
            target="kdbench_tasks.activation:evaluate",
            version="1",
            summary="share of neurons at the ends of stages that are on in student and teacher alike, or off",
            needs_teacher=True,
        ),
        EvaluatorEntry(
            name="reconstruction-error",
            target="kdbench_tasks.reconstruction:evaluate",
            version="1",
            summary="how badly a small transform, fitted on val, rebuilds teachers' last maps from the student's",
            needs_teacher=True,
        ),
    ]
