"""Two speed sheets side by side: rows paired by model, mode, precision and batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.results.speed import SpeedRow, SpeedSheet
from kdbench.results.speed_row import DRIFT_LIMIT, drift_factor, median_drift
from kdbench.stats.differences import Difference, ratio_of_medians

#: Settings that must be equal for a comparison to mean something.
_SETTINGS = ("image_size", "num_classes", "channels_last", "threads")
_TOLD = ("kdbench", "torch", "timm", "python", "cuda", "driver")


@dataclass
class SpeedLine:
    """One row of both sheets.

    Attributes:
        name: model, mode, precision and batch size (``auto`` where it was found on both sides).
        speed: ratio B / A of images/s, its interval widened by the row's drift on both sides; None where a side
            is not done.
        broken: status of B where A is done and B is not.
        note: batch sizes where they were found and differ.
    """

    name: tuple[str, str, str, str]
    speed: Difference | None
    broken: str | None = None
    note: str = ""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.speed is not None and self.speed.significant


@dataclass
class SheetComparison:
    """All lines, what only one side has, and how the sides differ as a whole."""

    lines: list[SpeedLine]
    only_a: list[str]
    only_b: list[str]
    notes: list[str]


def compare_sheets(a: SpeedSheet, b: SpeedSheet) -> SheetComparison:
    """Compare the speeds of two sheets. Raises KdbenchError where hardware or settings differ."""
    places = [str(s.environment.get("device_name")) for s in (a, b)]
    if places[0] != places[1]:
        raise KdbenchError(
            f"speeds of different hardware are not compared: A ran on {places[0]}, B on {places[1]}"
        )
    for name in _SETTINGS:
        left, right = getattr(a.settings, name), getattr(b.settings, name)
        if left != right:
            raise KdbenchError(f"the sheets differ in {name}: {left} in A, {right} in B")
    left_rows, right_rows = _by_name(a), _by_name(b)
    notes = [
        f"{name}: {x} in A, {y} in B"
        for name in _TOLD
        if (x := a.environment.get(name)) != (y := b.environment.get(name))
    ]
    for side, sheet in (("A", a), ("B", b)):
        drift = median_drift(sheet.rows) or 0.0
        if drift > DRIFT_LIMIT and not sheet.warnings:
            notes.append(f"{side}: the machine drifted by {drift:.1f} %, the median of the rows")
        notes += [f"{side}: {warning}" for warning in sheet.warnings]
    return SheetComparison(
        lines=[_line(k, left_rows[k], right_rows[k]) for k in left_rows if k in right_rows],
        only_a=[", ".join(k) for k in left_rows if k not in right_rows],
        only_b=[", ".join(k) for k in right_rows if k not in left_rows],
        notes=notes,
    )


def _by_name(sheet: SpeedSheet) -> dict[tuple[str, str, str, str], SpeedRow]:
    return {
        (r.model, r.mode, r.precision, "auto" if r.found_by else str(r.batch_size)): r for r in sheet.rows
    }


def _line(name: Any, a: SpeedRow, b: SpeedRow) -> SpeedLine:
    if a.status != "done" or b.status != "done":
        broken = b.status if a.status == "done" else None
        return SpeedLine(name, None, broken)
    note = f"batch {a.batch_size} in A, {b.batch_size} in B" if a.batch_size != b.batch_size else ""
    # the rounds do not know what happened to the machine meanwhile; its drift is the least that it may have done
    ratio = ratio_of_medians(_speeds(a), _speeds(b)).widened(drift_factor(a) * drift_factor(b))
    return SpeedLine(name, ratio, note=note)


def _speeds(row: SpeedRow) -> list[float]:
    return [1e3 * (row.batch_size or 0) / ms for ms in row.samples_ms]
