"""Schema of a speed sheet: what ``kdbench throughput`` was asked, where it ran and what it measured. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from kdbench.errors import RecordError
from kdbench.results.speed_row import DRIFT_LIMIT, Mode, Precision, SpeedRow, Text
from kdbench.results.store import MAX_RECORD_BYTES, read_limited

__all__ = [
    "DRIFT_LIMIT",
    "MEMORY_NOTES",
    "Mode",
    "Precision",
    "SpeedRow",
    "SpeedSettings",
    "SpeedSheet",
    "Text",
    "flat_rows",
    "read_sheet",
]

BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
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
    #: constructor arguments, by model
    args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    in_chans: int = Field(default=3, ge=1)
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


class SpeedSheet(_Model):
    """The file that ``kdbench throughput --out FILE.json`` writes."""

    kind: Literal["kdbench-speed"] = "kdbench-speed"
    schema_version: Literal[1] = 1
    settings: SpeedSettings
    environment: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    #: what `peak_memory_mb` is on this device
    memory: str = ""
    #: median size of the rows' drift in percent; files of old versions have the median of signed ones
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
        whole = place and not any(e["type"] == "missing" and len(e["loc"]) == 1 for e in error.errors())
        text = " ".join(f"{place}: {first['msg']}".split()) if whole else "expected the .json file of --out"
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
