"""The data file of published accuracies, ``data/published_results.csv``, and what its names mean here.

Columns: ``dataset, teacher, teacher_top1, student, student_top1, method, top1, std`` as the source has them, in
percent; ``protocol``, a name in ``data/published_names.yaml`` or empty where the source's recipe is not known;
``selection``, which epoch the value is of; ``verified``, ``file`` where the value was read in ``source``, and
``from_memory`` where nobody has; ``remark``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, did_you_mean

DATA = Path(__file__).parent / "data"
RESULTS, NAMES = DATA / "published_results.csv", DATA / "published_names.yaml"
COLUMNS = (
    "dataset", "teacher", "teacher_top1", "student", "student_top1", "method", "top1", "std", "protocol",
    "selection", "verified", "source", "remark",
)  # fmt: skip
#: How a source chose the epoch, in words.
SELECTION = {
    "last_epoch": "last epoch",
    "best_epoch": "best epoch",
    "best_epoch?": "best epoch, uncertain",
    "paper": "as in the paper",
    "unknown": "not known",
}
VERIFIED = {"file": True, "from_memory": False}


@dataclass(frozen=True)
class Entry:
    """A line of the file; accuracies are percent, None where the source has none."""

    dataset: str
    teacher: str
    teacher_top1: float | None
    student: str
    student_top1: float | None
    method: str
    top1: float
    sd: float | None
    protocol: str
    selection: str
    verified: bool
    source: str
    remark: str


def read_entries(path: Path = RESULTS) -> list[Entry]:
    """Read and check the file. Raises KdbenchError: one line naming the file, the line and the column."""
    known = names()["protocols"]
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise KdbenchError(f"{path}: line 1: expected the columns {','.join(COLUMNS)}")
            return [_entry(row, f"{path}: line {reader.line_num}", known) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KdbenchError(f"{path}: cannot be read: {error}") from error


def _entry(row: Mapping[str, Any], where: str, protocols: Mapping[str, Any]) -> Entry:
    if None in row.values() or "" in row:
        raise KdbenchError(f"{where}: expected {len(COLUMNS)} columns")
    for column in ("dataset", "teacher", "student", "method", "source"):
        if not row[column].strip():
            raise KdbenchError(f"{where}: {column}: empty")
    allowed = {"selection": SELECTION, "verified": VERIFIED, "protocol": ["", *protocols]}
    for column, values in allowed.items():
        if row[column] not in values:
            near = did_you_mean(row[column], values)
            raise KdbenchError(
                f"{where}: {column}: {row[column]!r:.60} is not one of {', '.join(filter(None, values))}{near}"
            )
    top1 = _percent(row, "top1", where)
    if top1 is None:
        raise KdbenchError(f"{where}: top1: empty")
    return Entry(
        dataset=row["dataset"],
        teacher=row["teacher"],
        teacher_top1=_percent(row, "teacher_top1", where),
        student=row["student"],
        student_top1=_percent(row, "student_top1", where),
        method=row["method"],
        top1=top1,
        sd=_percent(row, "std", where),
        protocol=row["protocol"],
        selection=row["selection"],
        verified=VERIFIED[row["verified"]],
        source=row["source"],
        remark=row["remark"],
    )


def _percent(row: Mapping[str, str], column: str, where: str) -> float | None:
    text = row[column]
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise KdbenchError(f"{where}: {column}: expected percent from 0 to 100, found {text!r:.40}")
    return value


@cache
def entries() -> tuple[Entry, ...]:
    """Return the lines of the shipped file."""
    return tuple(read_entries())


@cache
def names() -> dict[str, Any]:
    """Return ``published_names.yaml``: data sets, architectures, methods and protocols."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(NAMES.read_text(encoding="utf-8"))
    return content


def method_of(published: str) -> tuple[str, Mapping[str, Any]]:
    """Return the method that a published name means, as it is compared, and the hyper-parameters that it needs."""
    meant = names()["methods"].get(published, {"method": published})
    return comparable(meant["method"]), meant.get("params", {})


def comparable(method: str) -> str:
    """Return a method's name without case and hyphens, as publications write it with and without."""
    return method.lower().replace("-", "")
