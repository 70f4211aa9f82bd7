"""Schema of a speed sheet: what ``kdbench throughput`` was asked, where it ran and what it measured. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from kdbench.errors import RecordError
from kdbench.results.store import MAX_RECORD_BYTES, read_limited

Mode = Literal["infer", "train"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
Text = Annotated[str, StringConstraints(max_length=300)]
#: Drift of the machine during a measurement, in percent, from which on a sheet is warned about.
DRIFT_LIMIT = 5.0
#: What the peak memory of a row is, by the type of the device.
MEMORY_NOTES = {
    "cuda": "GPU memory allocated for the model alone: weights, optimizer state, input, activations",
    "cpu": "bytes of the model's live tensors: weights, optimizer state, input, activations; "
    "what an operation allocates within itself is not seen",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SpeedSettings(_Model):
    """What to measure: every model, mode, precision and batch size with every other."""

    models: list[Text] = Field(min_length=1)
    modes: list[Mode] = Field(min_length=1)
    batch_sizes: list[BatchSize] = Field(min_length=1)
    precisions: list[Precision] = Field(min_length=1)
    #: side of the square input in pixels
    image_size: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    channels_last: bool = False
    device: str = "cpu"
    #: threads of the process on a CPU
    threads: int = Field(default=1, ge=1)
    #: interleaved rounds of each row
    rounds: int = Field(ge=1)
    #: seconds after which a row gets no further round, once it has three
    max_seconds: FiniteFloat = Field(gt=0)


class SpeedRow(_Model):
    """One model in one mode at one precision and batch size. All speeds are None unless it is done."""

    model: Text
    mode: Mode
    precision: Precision
    #: None where it was to be found and not even the smallest one worked
    batch_size: int | None = Field(default=None, ge=1)
    #: why the search for a batch size ended: memory, speed (it no longer rose) or limit; None: it was given
    found_by: Literal["memory", "speed", "limit"] | None = None
    status: Literal["done", "oom", "failed"] = "done"
    message: str | None = Field(default=None, max_length=1000)
    images_per_s: FiniteFloat | None = Field(default=None, gt=0)
    #: milliseconds of one call in an uninterrupted series: the median over the rounds
    step_ms: FiniteFloat | None = Field(default=None, gt=0)
    #: interquartile range of `step_ms` over its median
    iqr_ratio: FiniteFloat | None = Field(default=None, ge=0)
    #: milliseconds of a single call, waited for
    latency_ms_p50: FiniteFloat | None = Field(default=None, gt=0)
    latency_ms_p95: FiniteFloat | None = Field(default=None, gt=0)
    rounds: int = Field(default=0, ge=0)
    #: calls of one round
    calls: int = Field(default=0, ge=0)
    #: change of `step_ms` from the first rounds to their repetition at the end, in percent
    drift_percent: FiniteFloat | None = None
    peak_memory_mb: FiniteFloat | None = Field(default=None, ge=0)
    params: int | None = Field(default=None, ge=0)
    #: multiply-accumulates of one image's forward pass
    macs: int | None = Field(default=None, ge=0)
    #: outputs of convolutions and matrix products of one image's forward pass
    activations: int | None = Field(default=None, ge=0)
    #: `step_ms` of each round, for comparisons
    samples_ms: list[FiniteFloat] = Field(default_factory=list)


class SpeedSheet(_Model):
    """The file that ``kdbench throughput --out FILE.json`` writes."""

    kind: Literal["kdbench-speed"] = "kdbench-speed"
    schema_version: Literal[1] = 1
    settings: SpeedSettings
    environment: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    #: what `peak_memory_mb` is on this device
    memory: str = ""
    #: median of the rows' drift in percent
    drift_percent: FiniteFloat | None = None
    warnings: list[str] = Field(default_factory=list)
    rows: list[SpeedRow] = Field(default_factory=list)
    started_at: str
    finished_at: str


def read_sheet(path: Path) -> SpeedSheet:
    """Read and validate a speed sheet. Raises RecordError: one line naming the file and the first problem."""
    try:
        return SpeedSheet.model_validate_json(read_limited(path, 4 * MAX_RECORD_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = " ".join(f"{place}: {first['msg']}".split())
        raise RecordError(f"{path}: not a speed sheet of `kdbench throughput` ({text[:300]})") from error


def flat_rows(sheet: SpeedSheet) -> list[dict[str, Any]]:
    """Return the rows as flat mappings for a CSV file: all fields but the samples, and where they were made."""
    where = {k: sheet.environment.get(k) for k in ("device_name", "threads", "torch", "timm", "kdbench")}
    extra = {
        "image_size": sheet.settings.image_size,
        "num_classes": sheet.settings.num_classes,
        "channels_last": sheet.settings.channels_last,
        **where,
    }
    return [{**row.model_dump(mode="json", exclude={"samples_ms"}), **extra} for row in sheet.rows]
