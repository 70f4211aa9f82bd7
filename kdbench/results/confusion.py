"""``confusion.csv`` in a cell's folder: test images by class and answer, after the last epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import RecordError
from kdbench.results.store import atomic_write_bytes, read_limited

CONFUSION = "confusion.csv"
#: Most classes of which a matrix is kept; of more, the file would be larger than the weights of small networks.
MAX_CLASSES = 1000
_MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class ClassResult:
    """One class of the test split.

    Attributes:
        images: of this class.
        answered: images of any class that were taken for this one.
        correct: images of this class that were taken for it.
    """

    name: str
    images: int
    answered: int
    correct: int

    @property
    def top1(self) -> float | None:
        """Percent of its images that were recognised (recall); None without images."""
        return 100 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Percent of the images taken for it that are of it; None where there were none."""
        return 100 * self.correct / self.answered if self.answered else None


def write_confusion(folder: Path, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Write the file: a row for each true class, a column for each answer. Raises OSError.

    Classes are numbered where there is not one name for each.
    """
    if len(names) != len(counts):
        names = [str(k) for k in range(len(counts))]
    rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
    atomic_write_bytes(folder / CONFUSION, table([["true", *names], *rows]))


def read_confusion(folder: Path) -> tuple[list[str], list[list[int]]] | None:
    """Return (class names, counts) of a cell's folder, None where there is no file. Raises RecordError."""
    path = folder / CONFUSION
    if not path.exists():
        return None
    try:
        head, *rows = csv.reader(io.StringIO(read_limited(path, _MAX_BYTES).decode()))
        names = head[1:]
        counts = [[int(value) for value in row[1:]] for row in rows]
        if [row[0] for row in rows] != names or any(len(row) != len(names) for row in counts):
            raise ValueError("expected a row and a column for each class")
    except (ValueError, IndexError, csv.Error) as error:
        raise RecordError(f"{path}: not a confusion matrix ({error})") from error
    return names, counts


def by_class(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[ClassResult]:
    """Return what a confusion matrix says of each class, in the order of the labels."""
    answered = [sum(column) for column in zip(*counts, strict=True)]
    rows = zip(names, counts, strict=True)
    return [ClassResult(name, sum(row), answered[k], row[k]) for k, (name, row) in enumerate(rows)]


def table(rows: Sequence[Sequence[object]]) -> bytes:
    """Return rows as CSV in UTF-8; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
