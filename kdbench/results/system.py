"""``system.jsonl`` in a run folder: how busy the machine was while the matrix ran."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kdbench.errors import RecordError

SYSTEM = "system.jsonl"


def read_samples(folder: Path) -> list[dict[str, float]]:
    """Return the samples in the order of time; empty where there is no file, or psutil was not there.

    Lines that a kill cut off, and what is no finite number, are left out. Raises RecordError for a file that
    cannot be read.
    """
    path = Path(folder) / SYSTEM
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    samples = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            kept = {str(k): float(v) for k, v in row.items() if _finite(v)}
            if "at" in kept:
                samples.append(kept)
    return sorted(samples, key=lambda row: row["at"])


def _finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # an int may be larger than any float
