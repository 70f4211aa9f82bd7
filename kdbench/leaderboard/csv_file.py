"""``leaderboard.csv``: every row of a board once, for programs. Empty cells are null."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from kdbench.leaderboard.board import Board
from kdbench.leaderboard.rows import Row, hardware
from kdbench.leaderboard.text import spreadsheet
from kdbench.stats import Paired


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.4f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _paired(name: str, get: Callable[[Row], Paired | None]) -> dict[str, Callable[[Row], str]]:
    """Return the columns of a paired difference."""

    def of(field: str) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            found = get(row)
            value = None if found is None else getattr(found, field)
            return _fixed(value) if isinstance(value, float) else "" if value is None else str(value)

        return text

    fields = {"n": "n", "mean": "mean", "ci95_low": "low", "ci95_high": "high", "share_above": "better"}
    return {f"{name}_{key}": of(field) for key, field in fields.items()}


_TEXTS: dict[str, Callable[[Row], object]] = {
    "task": lambda r: r.setting.task,
    "task_version": lambda r: r.setting.task_version,
    "dataset": lambda r: r.setting.dataset,
    "dataset_args_digest": lambda r: r.setting.dataset_args,
    "dataset_revision": lambda r: r.setting.revision,
    "limit_train": lambda r: r.setting.limit_train,
    "limit_test": lambda r: r.setting.limit_test,
    "recipe": lambda r: r.setting.recipe,
    "recipe_digest": lambda r: r.setting.recipe_digest,
    "protocol": lambda r: r.setting.protocol,
    "track": lambda r: r.setting.track,
    "search_budget": lambda r: r.setting.budget,
    "search": lambda r: r.search,
    "role": lambda r: r.labels.role,
    "teacher": lambda r: r.labels.teacher or "",
    "student": lambda r: r.labels.student,
    "method": lambda r: r.labels.method,
    "variant": lambda r: r.labels.variant,
    "fidelity": lambda r: r.labels.fidelity,
    "preset": lambda r: r.labels.preset or "",
    "config": lambda r: r.config,
    "hardware": lambda r: "; ".join(r.hardware),
    "precision": lambda r: "; ".join(r.precision),
    "plugin": lambda r: "; ".join(r.plugins),
    "baseline": lambda r: r.baseline.labels.variant if r.baseline is not None else "",
}
_NUMBERS: dict[str, Callable[[Row], str]] = {
    "n_done": lambda r: str(len(r.done)),
    "n_planned": lambda r: str(len(r.records)),
    "last_top1_mean": lambda r: _fixed(r.last.mean),
    "last_top1_sd": lambda r: _fixed(r.last.sd),
    "last_top1_ci95_low": lambda r: _fixed(r.last.ci95_low),
    "last_top1_ci95_high": lambda r: _fixed(r.last.ci95_high),
    "best_val_top1_mean": lambda r: _fixed(r.best_val),
    "best_test_oracle_top1_mean": lambda r: _fixed(r.best_test),
    "teacher_top1": lambda r: _fixed(r.teacher_top1),
    "gap_closed": lambda r: _fixed(r.gap_closed),
    "infer_images_per_s_b64": lambda r: _fixed(r.infer_images_per_s),
    "latency_ms_p50_b1": lambda r: _fixed(r.latency_ms),
    "train_images_per_s": lambda r: _fixed(r.cost("train_images_per_s")),
    "step_ms": lambda r: _fixed(r.cost("step_ms")),
    "step_relative_to_baseline": lambda r: _fixed(r.relative_step),
    "teacher_share": lambda r: _fixed(r.cost("teacher_share")),
    "extra_params": lambda r: _whole(r.extra_params),
    "device_hours": lambda r: _fixed(r.device_hours),
    "params": lambda r: _whole(r.params),
    "macs": lambda r: _whole(r.macs),
    "gap_closed_ci95_low": lambda r: _fixed(r.gap_interval and r.gap_interval[0]),
    "gap_closed_ci95_high": lambda r: _fixed(r.gap_interval and r.gap_interval[1]),
    "best_val_minus_last": lambda r: _fixed(r.differences.val.mean),
    "best_test_oracle_minus_last": lambda r: _fixed(r.differences.oracle.mean),
    "best_test_oracle_minus_best_val": lambda r: _fixed(r.differences.oracle_over_val.mean),
    "tied_with_best": lambda r: "" if r.tied is None else str(r.tied).lower(),
    **_paired("to_best", lambda r: r.to_best),
}


_SPEED = (
    "model", "mode", "precision", "batch_size", "found_by", "status", "images_per_s", "step_ms", "iqr_ratio",
    "latency_ms_p50", "latency_ms_p95", "peak_memory_mb", "params", "macs", "activations", "rounds",
    "drift_percent",
)  # fmt: skip


def render_speed_csv(board: Board) -> str | None:
    """Return the text of ``speeds.csv``: each measured speed once; None where there are none."""
    facts = ("image_size", "channels_last", "torch", "timm")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_SPEED, *facts, "hardware", "dataset", "seed", "cell_id"])
    records = [record for row in board.rows for record in row.records]
    for record in records:
        where = [record.environment.get(name) for name in facts]
        where += [hardware(record), record.labels.dataset, record.labels.seed, record.cell_id]
        for speed in record.speeds:
            writer.writerow([_plain(v) for v in (*(getattr(speed, name) for name in _SPEED), *where)])
    return out.getvalue() if any(record.speeds for record in records) else None


def _plain(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value + 0.0:.4f}"
    return spreadsheet(value) if isinstance(value, str) else value


def render_csv(board: Board) -> str:
    """Return the file's text: comma-separated, quoted as needed, ``\\n`` line ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = dict(_NUMBERS)
    for name in sorted({name for row in board.rows for name in row.against}):
        numbers |= _paired(f"minus_{name}", lambda r, name=name: r.against.get(name))  # type: ignore[misc]
    writer.writerow([spreadsheet(name) for name in [*_TEXTS, "why_null", *numbers]])
    for row in board.rows:
        texts = [spreadsheet(get(row)) for get in [*_TEXTS.values(), lambda r: r.why_null]]
        writer.writerow([*texts, *(get(row) for get in numbers.values())])
    return out.getvalue()
