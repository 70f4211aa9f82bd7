"""What training a cell took."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from kdbench.engine.cellspec import CellFile
from kdbench.engine.context import CellRun
from kdbench.engine.phases import extra_parameters
from kdbench.engine.progress import Progress
from kdbench.engine.sharing import Alone
from kdbench.measure.environment import peak_memory_mb
from kdbench.measure.throughput import median_seconds
from kdbench.protocol.method import Method
from kdbench.results.schema import Cost


def teacher_share(run: CellRun, cell: CellFile, at: Progress, processes: int) -> float | None:
    """Return the share of a step that the teachers' forward passes take, None without a teacher or a step."""
    if not run.teachers or not at.global_step:
        return None
    # of several processes each takes a part of the batch through the teacher
    rows = max(1, run.recipe.batch_size // processes)
    (x,) = run.task.throughput(run.task_data, run.device).make_inputs(rows)

    def seconds(images: torch.Tensor) -> float:
        with run.amp():
            return median_seconds(lambda: [run.teach(t, images) for t in run.teachers], run.device)

    if cell.teacher_cache is None:
        return min(1.0, seconds(x) * at.global_step / at.train_s)
    # a table knows training images only
    run.batch = next(iter(run.task_data.streams["train"].epoch(0)))
    spent = at.answered * seconds(run.batch.x) + (at.taught - at.answered) * seconds(x)
    return min(1.0, spent / len(run.teachers) / at.train_s)


def cost_of(
    run: CellRun,
    cell: CellFile,
    at: Progress,
    method: Method,
    *,
    share: float | None,
    sharing: Alone,
    processes: int,
) -> Cost:
    """Return what training took; times of the clocks are those of this process, device time is that of all."""
    rates = [row["images_per_s"] for row in warm(at.rows) if "images_per_s" in row]
    return Cost(
        train_s=at.train_s,
        eval_s=at.eval_s,
        log_s=at.log_s,
        setup_s=at.setup_s,
        train_images_per_s=statistics.median(rates) if rates else None,
        step_ms=statistics.median(row["step_ms"] for row in warm(at.rows)) if at.rows else None,
        teacher_share=share,
        extra_params=extra_parameters(method, run),
        epochs=at.total_epochs,
        steps=at.global_step,
        device_hours=processes
        * (at.train_s + at.eval_s + at.log_s + at.setup_s + at.fill_s + at.compile_s)
        / 3600,
        peak_memory_mb=None if sharing.several else peak_memory_mb(run.device),
        shared_s=at.shared_s or None,
        gang=sharing.gang,
        compile_s=None if cell.recipe.compile == "none" else at.compile_s,
        fill_s=at.fill_s if cell.teacher_cache else None,
        cached_forwards=at.answered if cell.teacher_cache else None,
        online_forwards=at.taught - at.answered if cell.teacher_cache else None,
        attempts=at.attempts,
    )


def warm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the epochs that tell the speed: the first, which has the process's warm-up, only if it is alone."""
    return rows[1:] or rows
