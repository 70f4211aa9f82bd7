"""A speed sheet in the columns of timm's own benchmark tables (``results/benchmark-*.csv`` of its repository)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.results.speed import SpeedRow, SpeedSheet

#: timm's columns per mode, after the prefix ``infer_`` or ``train_``.
_COLUMNS = {
    "infer": ("samples_per_sec", "step_time", "batch_size", "img_size", "gmacs", "macts"),
    "train": ("samples_per_sec", "step_time", "batch_size", "img_size"),
}


def timm_columns(sheet: SpeedSheet) -> list[str]:
    """Return the header: ``model``, the columns of each mode that was measured, ``param_count``."""
    modes = [mode for mode in _COLUMNS if mode in sheet.settings.modes]
    return ["model", *(f"{mode}_{name}" for mode in modes for name in _COLUMNS[mode]), "param_count"]


def timm_rows(sheet: SpeedSheet) -> list[dict[str, Any]]:
    """Return one mapping per model and batch size, the fastest first, as timm sorts them.

    timm's tables have one precision each: the names of models get `` (PRECISION)`` where a sheet has several.
    Rows that are not done are left out. Times are milliseconds, ``gmacs`` 1e9 multiply-accumulates, ``macts``
    1e6 activations, ``param_count`` 1e6 parameters, rounded as timm rounds them.
    """
    several = len(sheet.settings.precisions) > 1
    merged: dict[tuple[str, str, Any], dict[str, Any]] = {}
    for row in sheet.rows:
        if row.status != "done":
            continue
        name = row.model.removeprefix("timm:") + (f" ({row.precision})" if several else "")
        # found batch sizes differ between modes: both belong to the one row that timm would have
        batch = "auto" if row.found_by else row.batch_size
        line = merged.setdefault((row.model, row.precision, batch), {"model": name})
        values = _values(row, sheet.settings.image_size)
        line |= {f"{row.mode}_{column}": values[column] for column in _COLUMNS[row.mode]}
        line["param_count"] = _scaled(row.params, 1e6)
    speed = f"{'infer' if 'infer' in sheet.settings.modes else 'train'}_samples_per_sec"
    ordered = sorted(merged.values(), key=lambda line: -(line.get(speed) or 0.0))
    return [{column: line.get(column) for column in timm_columns(sheet)} for line in ordered]


def _values(row: SpeedRow, image_size: int) -> Mapping[str, Any]:
    return {
        "samples_per_sec": round(row.images_per_s or 0.0, 2),
        "step_time": round(row.step_ms or 0.0, 3),
        "batch_size": row.batch_size,
        "img_size": image_size,
        "gmacs": _scaled(row.macs, 1e9),
        "macts": _scaled(row.activations, 1e6),
    }


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 2)
