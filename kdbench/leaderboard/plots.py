"""What the plots of a board show, whatever draws them: axes, points, the frontier, the table of gaps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kdbench.leaderboard.rows import Row, Setting
from kdbench.leaderboard.sections import Section
from kdbench.leaderboard.text import clean


@dataclass(frozen=True)
class Axis:
    """A cost that top-1 is drawn over; `better` is the end that is cheaper, ``"low"`` or ``"high"``."""

    key: str
    title: str
    better: str
    value: Callable[[Row], float | None]


AXES: tuple[Axis, ...] = (
    Axis("step_ms", "Training step, ms", "low", lambda r: r.cost("step_ms")),
    Axis("relative_step", "Training step / baseline's", "low", lambda r: r.relative_step),
    Axis("device_hours", "Device-hours of a seed", "low", lambda r: _per_seed(r.device_hours, len(r.done))),
    Axis("train_images_per_s", "Training, images/s", "high", lambda r: r.cost("train_images_per_s")),
    Axis("infer_images_per_s", "Inference, images/s at batch 64", "high", lambda r: r.infer_images_per_s),
    Axis("latency_ms", "Latency of one image, ms", "low", lambda r: r.latency_ms),
    Axis("params", "Parameters of the student", "low", lambda r: r.params),
    Axis("macs", "Multiply-accumulates of an image", "low", lambda r: r.macs),
)


@dataclass(frozen=True)
class Point:
    """A row in an accuracy-versus-cost plot; `y` is top-1 in percent, `low` and `high` its 95 % interval."""

    name: str
    x: float
    y: float
    low: float | None
    high: float | None
    baseline: bool
    best: bool


def points(section: Section, axis: Axis) -> list[Point]:
    """Return the rows of a table that have a mean and a cost, in the table's order."""
    found = []
    for row in section.rows:
        if isinstance(row, Row) and row.last.mean is not None:
            x = axis.value(row)
            if x is not None:
                found.append((row, float(x), row.last.mean))
    best = frontier([(x, y) for _, x, y in found], axis.better)
    return [
        Point(clean(r.labels.variant, 60), x, y, r.last.ci95_low, r.last.ci95_high, is_baseline(r), n in best)
        for n, (r, x, y) in enumerate(found)
    ]


def is_baseline(row: Row) -> bool:
    """Whether the row is the student alone that others are compared with."""
    return row.baseline is not None and row.baseline is row.row


def usual_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range without values that are far from the rest: more than 2.5 interquartile ranges off.

    One method that failed to train would make the plot of the others flat.
    """
    found = sorted(values)
    if len(found) < 4:
        return found[0], found[-1]
    low, _, high = statistics.quantiles(found, n=4)
    reach = 2.5 * max(high - low, 1e-9)
    kept = [v for v in found if low - reach <= v <= high + reach]
    return kept[0], kept[-1]


def frontier(found: Sequence[tuple[float, float]], better: str) -> set[int]:
    """Return the indices of the points that no other beats in one of cost and accuracy and equals in the other."""
    sign = -1.0 if better == "high" else 1.0
    order = sorted(range(len(found)), key=lambda n: (sign * found[n][0], -found[n][1]))
    best: set[int] = set()
    top, at = float("-inf"), None
    for n in order:
        x, y = found[n]
        if y > top or (y == top and x == at):
            best.add(n)
            top, at = y, x
    return best


@dataclass(frozen=True)
class GapTable:
    """Gap closed of methods (lines, the largest mean first) on pairs (columns)."""

    columns: list[str]
    lines: list[tuple[str, list[float | None]]]


def gap_table(rows: Iterable[Row]) -> GapTable | None:
    """Return the gaps of a board; None where no row has one."""
    columns: dict[tuple[Setting, tuple[str, str], tuple[str, str]], str] = {}
    lines: dict[str, dict[object, float | None]] = {}
    for row in rows:
        if row.labels.role != "student" or not row.teacher_key[0] or is_baseline(row):
            continue
        column = (row.setting, row.student_key, row.teacher_key)
        columns[column] = f"{row.labels.teacher} → {row.labels.student}, {row.setting.dataset}"
        name = clean(row.labels.variant, 60)
        if column in lines.get(name, {}):
            name = f"{name} [{row.config[:6]}]"
        lines.setdefault(name, {})[column] = row.gap_closed
    kept = [c for c in columns if any(values.get(c) is not None for values in lines.values())]
    if not kept:
        return None
    made = [(name, [values.get(c) for c in kept]) for name, values in lines.items()]
    return GapTable([clean(columns[c], 200) for c in kept], sorted(made, key=_order))


def _order(line: tuple[str, list[float | None]]) -> tuple[bool, float, str]:
    there = [v for v in line[1] if v is not None]
    return not there, -statistics.fmean(there) if there else 0.0, line[0]


def _per_seed(total: float | None, seeds: int) -> float | None:
    return total / seeds if total is not None and seeds else None
