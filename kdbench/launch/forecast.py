"""How long a cell will take: from cells like it that are done or run, else from the operations of its networks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kdbench.engine.cellspec import CellFile


@dataclass(frozen=True)
class Size:
    """What the time of a cell depends on.

    Attributes:
        method, params: the method and its hyper-parameters.
        pair: the architectures of student, teachers and assistant.
        data: the data set, as far as it makes batches dear or cheap.
        step: batch size, precision and the like.
        epochs: of the recipe; a method with several phases may do more.
        images: training images of an epoch; None where nobody knows.
        macs: multiply-accumulates of a training step, for one image; None where they cannot be counted.
        teachers: how many.
    """

    method: str
    params: str
    pair: str
    data: str
    step: str
    epochs: int
    images: int | None = None
    macs: float | None = None
    teachers: int = 0

    @property
    def work(self) -> float:
        """Image passes of the whole training, or epochs where the images are unknown."""
        return float(self.epochs * (self.images or 1))


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one cell: seconds in training and evaluation per image pass, and seconds besides."""

    size: Size
    rate: float
    rest_s: float | None = None


def size_of(cell: CellFile, images: int | None = None, macs: float | None = None) -> Size:
    """Return the size of a cell; the arguments are as in :class:`Size`."""
    recipe = cell.recipe
    nets = [
        cell.student,
        *(t.architecture for t in cell.teachers),
        *([cell.assistant] if cell.assistant else []),
    ]
    data = cell.dataset
    step = [recipe.batch_size, recipe.precision, recipe.channels_last, recipe.compile, recipe.augment.kind]
    return Size(
        method=cell.method,
        params=_text(cell.params),
        pair=_text([net.model_dump() for net in nets]),
        data=_text([data.name, data.args, data.limit_train, data.limit_test, data.storage]),
        step=_text([*step, recipe.eval_every]),
        epochs=recipe.epochs,
        images=images,
        macs=macs,
        teachers=len(cell.teachers),
    )


def seen_in(size: Size, record: Mapping[str, Any], elapsed_s: float | None = None) -> Seen | None:
    """Return what a record tells of a cell of this size; None unless it is done.

    Args:
        elapsed_s: seconds from the start of the cell to its end, where they are known better than the record's.
    """
    cost = record.get("cost")
    if record.get("status") != "done" or not cost or not size.work:
        return None
    busy = float(cost["train_s"] + cost["eval_s"])
    rest = float(cost["setup_s"] + cost["log_s"])
    # cells of a gang take turns: what passed between their start and their end is not theirs
    if elapsed_s is not None and cost.get("peak_memory_mb") is not None:
        rest = max(rest, elapsed_s - busy)
    return Seen(size, busy / size.work, rest if cost.get("attempts", 1) == 1 else None)


Key = Callable[[Size], tuple[Any, ...]]

#: From the nearest cells to the farthest: what has to be equal, and whether the rate is scaled by operations.
_LEVELS: tuple[tuple[Key, bool], ...] = (
    (lambda s: (s.pair, s.data, s.step, s.method, s.params), False),
    (lambda s: (s.pair, s.data, s.step, s.method), False),
    (lambda s: (s.pair, s.data, s.step), False),
    (lambda s: (s.data, s.step, s.method, s.teachers), True),
    (lambda s: (s.data, s.step), True),
    (lambda s: (s.step,), True),
    (lambda s: (), True),
    (lambda s: (s.data,), False),
    (lambda s: (), False),
)


class Forecast:
    """Expected seconds of cells, better with each epoch and each cell that ends."""

    def __init__(
        self,
        sizes: Mapping[str, Size],
        seen: Iterable[Seen] = (),
        begun: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Args:
        begun: by cell id the epochs (rows of the curves) of cells that go on from a checkpoint.
        """
        self._sizes = dict(sizes)
        self._done: dict[Any, Seen] = dict(enumerate(seen))
        self._live: dict[str, Seen] = {}
        self._epochs: dict[str, list[float]] = defaultdict(list)
        self._rates: list[dict[tuple[Any, ...], float]] | None = None
        self._rest = 0.0
        self._counted = all(size.macs for size in self._sizes.values())
        self._before = {cell: [_seconds(row) for row in rows] for cell, rows in (begun or {}).items() if rows}
        for cell in self._before:
            self._pace(cell, self._before[cell])

    @property
    def knows(self) -> bool:
        """Whether there is anything to forecast seconds from."""
        return bool(self._done or self._live)

    def ended(self, cell_id: str, record: Mapping[str, Any], elapsed_s: float | None = None) -> None:
        """Take in the record of a cell that ended; `elapsed_s` is as in :func:`seen_in`."""
        self._before.pop(cell_id, None)
        self.lost(cell_id)
        seen = seen_in(self._sizes[cell_id], record, elapsed_s)
        if seen is not None:
            self._done[cell_id] = seen

    def epoch(self, cell_id: str, row: Mapping[str, Any]) -> None:
        """Take in an epoch of a cell that runs (its row of the curves)."""
        self._epochs[cell_id].append(_seconds(row))
        self._pace(cell_id, self._epochs[cell_id])

    def lost(self, cell_id: str) -> None:
        """Forget the epochs of a cell that does not run any more, but for those before this run."""
        self._live.pop(cell_id, None)
        self._epochs.pop(cell_id, None)
        self._rates = None
        if cell_id in self._before:
            self._pace(cell_id, self._before[cell_id])

    def _pace(self, cell_id: str, epochs: Sequence[float]) -> None:
        # the first epoch warms up; the median forgets it
        size = self._sizes[cell_id]
        self._live[cell_id] = Seen(size, median(epochs) / (size.images or 1))
        self._rates = None

    def seconds(self, cell_id: str) -> float | None:
        """Return how long a cell takes from start to end; None while nothing is known of any cell."""
        size = self._sizes[cell_id]
        for (key, scaled), rates in zip(_LEVELS, self._indexed(), strict=True):
            rate = rates.get(key(size))
            if rate is not None and (size.macs or not scaled):
                return rate * ((size.macs or 1.0) if scaled else 1.0) * size.work + self._rest
        return None

    def cost(self, cell_id: str) -> float:
        """Return the seconds that a cell still takes when it starts, or a number that grows with them.

        The number is for the time when seconds are not known of any cell.
        """
        seconds = self.seconds(cell_id)
        if seconds is not None:
            before = self._before.get(cell_id)
            return seconds if not before else self._rest + self._busy(cell_id, seconds, median(before), 0)
        size = self._sizes[cell_id]
        return size.work * (size.macs or 0.0 if self._counted else 1.0 + size.teachers)

    def left(self, cell_id: str, elapsed_s: float) -> float | None:
        """Return the seconds that are left of a cell that has run for `elapsed_s`."""
        total = self.seconds(cell_id)
        epochs = self._epochs.get(cell_id)
        if total is None or not epochs:
            return None if total is None else max(0.0, self.cost(cell_id) - elapsed_s)
        return self._busy(cell_id, total, median(epochs), len(epochs)) + self._rest / 2

    def _busy(self, cell_id: str, total: float, each: float, ended: int) -> float:
        """Return the seconds of the epochs that are left, after `ended` ones of this run of `each` seconds."""
        # its own pace, unless cells like it are known to do more epochs than the recipe says
        busy = max(total - self._rest, each * self._sizes[cell_id].epochs)
        return max(0.0, busy - each * (len(self._before.get(cell_id, ())) + ended))

    def _indexed(self) -> list[dict[tuple[Any, ...], float]]:
        """Return the rates by key for each level: of cells that are done, or else of those that run."""
        if self._rates is None:
            live, done = _medians(self._live.values()), _medians(self._done.values())
            self._rates = [one | other for one, other in zip(live, done, strict=True)]
            self._rest = median([s.rest_s for s in self._done.values() if s.rest_s is not None] or [0.0])
        return self._rates


def _medians(all_seen: Iterable[Seen]) -> list[dict[tuple[Any, ...], float]]:
    found: list[dict[tuple[Any, ...], list[float]]] = [defaultdict(list) for _ in _LEVELS]
    for seen in all_seen:
        for (key, scaled), rates in zip(_LEVELS, found, strict=True):
            if not scaled:
                rates[key(seen.size)].append(seen.rate)
            elif seen.size.macs:
                rates[key(seen.size)].append(seen.rate / seen.size.macs)
    return [{key: median(values) for key, values in rates.items()} for rates in found]


def _seconds(row: Mapping[str, Any]) -> float:
    return float(row["train_s"]) + float(row.get("eval_s") or 0.0)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
