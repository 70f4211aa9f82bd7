"""Tables of speed: what cells measured that train nothing. One table per hardware, precision and layout."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.columns import Column
from kdbench.leaderboard.rows import Row, hardware, part
from kdbench.leaderboard.text import count, number, rate

if TYPE_CHECKING:
    from kdbench.results.schema import Record
    from kdbench.results.speed_row import SpeedRow


@dataclass(frozen=True)
class Place:
    """What speeds depend on besides the network: rows of two places are never ranked against each other."""

    hardware: str
    precision: str
    channels_last: bool

    @property
    def title(self) -> str:
        """One line for a table's heading."""
        layout = ", channels last" if self.channels_last else ""
        return f"Speed in {self.precision}{layout} on {self.hardware}"


@dataclass(frozen=True)
class SpeedLine:
    """A network in one place, at the batch size with the most images/s of each mode.

    Attributes:
        row: the board's row that it is of.
        speeds: all that was measured of it there; several seeds stand side by side.
    """

    row: Row
    place: Place
    speeds: tuple[SpeedRow, ...]

    @property
    def labels(self) -> Any:
        """Labels of the row."""
        return self.row.labels

    @cached_property
    def infer(self) -> SpeedRow | None:
        """The fastest inference."""
        return _fastest(self.speeds, "infer")

    @cached_property
    def train(self) -> SpeedRow | None:
        """The fastest training."""
        return _fastest(self.speeds, "train")

    @cached_property
    def single(self) -> SpeedRow | None:
        """Inference of one image."""
        return _fastest([s for s in self.speeds if s.batch_size == 1], "infer")

    @property
    def ranked(self) -> float | None:
        """What tables rank by: images/s of inference, of training where only that was measured."""
        chosen = self.infer or self.train
        return None if chosen is None else chosen.images_per_s

    @property
    def drift(self) -> float | None:
        """Median drift of the machine while these were measured, in percent."""
        found = [s.drift_percent for s in self.speeds if s.drift_percent is not None]
        return statistics.median(found) if found else None


def measures_only(row: Row) -> bool:
    """Whether the cells of a row train nothing."""
    return any(record.speeds or part(record, "throughput") for record in row.records)


def speed_lines(rows: Iterable[Row]) -> dict[Place, list[SpeedLine]]:
    """Return the lines of each place, the fastest first."""
    found: dict[Place, list[SpeedLine]] = {}
    for row in rows:
        at: dict[Place, list[SpeedRow]] = {}
        for record in row.done:
            for speed in record.speeds:
                if speed.status == "done":
                    at.setdefault(_place(record, speed.precision), []).append(speed)
        for place, speeds in at.items():
            found.setdefault(place, []).append(SpeedLine(row, place, tuple(speeds)))
    ordered = sorted(found.items(), key=lambda item: item[0].title)
    return {place: sorted(lines, key=_order) for place, lines in ordered}


def speed_ranks(lines: Sequence[SpeedLine]) -> list[int | None]:
    """Return the rank of each line by images/s.

    Raises ValueError for lines of different hardware, precision or layout: such a ranking would mean nothing.
    """
    places = list(dict.fromkeys(line.place for line in lines))
    if len(places) > 1:
        raise ValueError(f"not to be ranked together: {places[0].title}; {places[1].title}")
    speeds = [line.ranked for line in lines]
    return [None if s is None else 1 + sum(o > s for o in speeds if o is not None) for s in speeds]


def _place(record: Record, precision: str) -> Place:
    return Place(hardware(record), precision, record.environment.get("channels_last") is True)


def _fastest(speeds: Iterable[SpeedRow], mode: str) -> SpeedRow | None:
    measured = [s for s in speeds if s.mode == mode and s.images_per_s is not None]
    return max(measured, key=lambda s: s.images_per_s or 0.0, default=None)


def _order(line: SpeedLine) -> tuple[float, str, str]:
    return -(line.ranked or 0.0), line.labels.student, line.row.config


def _of(which: str, name: str) -> Callable[[Any], float | None]:
    def value(line: Any) -> float | None:
        row = getattr(line, which)
        found = None if row is None else getattr(row, name)
        return None if found is None else float(found)

    return value


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _speed_column(title: str, text: str, which: str, name: str) -> Column:
    value = _of(which, name)
    return Column(title, text, "cost", lambda line: rate(value(line)), value)


def _count_column(title: str, text: str, which: str, name: str) -> Column:
    value = _of(which, name)
    return Column(title, text, "cost", lambda line: count(_whole(value(line))), value)


def _fact(name: str) -> Callable[[Any], float | None]:
    return lambda line: next((float(v) for s in line.speeds if (v := getattr(s, name)) is not None), None)


_PARAMS, _MACS = _fact("params"), _fact("macs")

SPEED_COLUMNS: tuple[Column, ...] = (
    Column("Model", "Architecture", "what", lambda line: line.labels.student),
    _speed_column("Images/s", "Inference at the fastest batch size", "infer", "images_per_s"),
    _count_column("Batch", "Batch size of that inference", "infer", "batch_size"),
    Column(
        "IQR, %",
        "Interquartile range over the median of that inference: how steady the machine was",
        "cost",
        lambda line: number(None if (v := _of("infer", "iqr_ratio")(line)) is None else 100 * v, 1),
        _of("infer", "iqr_ratio"),
    ),
    _speed_column("Memory, MB", "Peak memory of that inference", "infer", "peak_memory_mb"),
    _speed_column("p50, ms, b1", "Median latency of one image", "single", "latency_ms_p50"),
    _speed_column("p95, ms, b1", "95th percentile of that latency", "single", "latency_ms_p95"),
    _speed_column("Train images/s", "Training steps at the fastest batch size", "train", "images_per_s"),
    _count_column("Train batch", "Batch size of that training", "train", "batch_size"),
    _speed_column("Train step, ms", "One step of that training", "train", "step_ms"),
    _speed_column("Train memory, MB", "Peak memory of that training", "train", "peak_memory_mb"),
    Column("Params", "Parameters", "cost", lambda line: count(_whole(_PARAMS(line))), _PARAMS),
    Column(
        "MACs",
        "Multiply-accumulate operations of one image's forward pass",
        "cost",
        lambda line: count(_whole(_MACS(line))),
        _MACS,
    ),
    Column(
        "Drift, %",
        "Change of the first rounds when repeated at the end, median",
        "cost",
        lambda line: number(line.drift, 1),
        lambda line: line.drift,
    ),
)
