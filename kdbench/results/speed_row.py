"""Schema of one measured speed: a network in one mode at one precision and batch size. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Mode = Literal["infer", "train"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Text = Annotated[str, StringConstraints(max_length=300)]
#: Larger ones would overflow in a board's sums and squares, and whole ones beyond 64 bits in its divisions.
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e100, le=1e100)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
#: Drift of the machine during a measurement, in percent, from which on it is warned about.
DRIFT_LIMIT = 5.0


class SpeedRow(BaseModel):
    """One model in one mode at one precision and batch size. All speeds are None unless it is done."""

    model_config = ConfigDict(extra="forbid")

    model: Text
    mode: Mode
    precision: Precision
    #: None where it was to be found and not even the smallest one worked
    batch_size: Whole | None = Field(default=None, ge=1)
    #: why the search for a batch size ended: memory, speed (it no longer rose) or limit; None: it was given
    found_by: Literal["memory", "speed", "limit"] | None = None
    status: Literal["done", "oom", "failed"] = "done"
    message: str | None = Field(default=None, max_length=1000)
    images_per_s: Number | None = Field(default=None, gt=0)
    #: milliseconds of one call in an uninterrupted series: the median over the rounds
    step_ms: Number | None = Field(default=None, gt=0)
    #: interquartile range of `step_ms` over its median
    iqr_ratio: Number | None = Field(default=None, ge=0)
    #: milliseconds of a single call, waited for
    latency_ms_p50: Number | None = Field(default=None, gt=0)
    latency_ms_p95: Number | None = Field(default=None, gt=0)
    rounds: Whole = Field(default=0, ge=0)
    #: calls of one round
    calls: Whole = Field(default=0, ge=0)
    #: change of `step_ms` from the first rounds to their repetition at the end, in percent
    drift_percent: Number | None = None
    peak_memory_mb: Number | None = Field(default=None, ge=0)
    params: Whole | None = Field(default=None, ge=0)
    #: multiply-accumulates of one image's forward pass
    macs: Whole | None = Field(default=None, ge=0)
    #: outputs of convolutions and matrix products of one image's forward pass
    activations: Whole | None = Field(default=None, ge=0)
    #: `step_ms` of each round, for comparisons
    samples_ms: list[Number] = Field(default_factory=list)


def drift_factor(row: SpeedRow) -> float:
    """Return the factor, 1 or more, by which the machine changed while a row was measured.

    Twice as fast and half as fast are the same factor.
    """
    change = max(1 + (row.drift_percent or 0.0) / 100, 1e-3)
    return max(change, 1 / change)


def median_drift(rows: Iterable[SpeedRow]) -> float | None:
    """Return the median size of the rows' drift in percent, whichever way each went; None where none has any."""
    found = [abs(row.drift_percent) for row in rows if row.drift_percent is not None]
    return statistics.median(found) if found else None


def fastest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line with the most images/s of each mode in a record's ``speeds``."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["images_per_s"] is not None:
            held = best.get(row["mode"])
            if held is None or row["images_per_s"] > held["images_per_s"]:
                best[row["mode"]] = row
    return ", ".join(
        f"{mode} {row['images_per_s']:,.1f} images/s ({row['precision']}, batch {row['batch_size']})"
        for mode, row in best.items()
    )
