"""Batches made once for the cells of a gang: equal data set, recipe and seed give equal batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from kdbench.engine.clock import TurnClock, wait
from kdbench.engine.data.context import DataContext
from kdbench.engine.data.resident import ResidentStream
from kdbench.engine.twins import Twins
from kdbench.protocol.types import Batch, Stream

#: Where a cell is: epochs done over the whole run, steps done in this one.
Position = tuple[int, int]


class Common:
    """What several cells have is not a part of any: a copy of a cell's objects refers to it."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Lead:
    """One stream that is read for all cells; keeps the batch that was made last."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._batches: Iterator[Batch] | None = None
        self._next: Position | None = None
        self._last: tuple[Position, Batch, float] | None = None

    def get(self, at: Position) -> tuple[Batch, float]:
        """Return the batch at a position, and the seconds that it took if it was made before, else 0.

        Positions that do not follow each other cost the start of an epoch.
        """
        if self._last is not None and self._last[0] == at:
            return self._last[1], self._last[2]
        if self._batches is None or self._next != at:
            self._batches = None
        began = time.perf_counter()
        batches = self._batches or self.stream.epoch(*at)
        batch = next(batches)
        wait(batch.x.device)
        self._batches, self._next = batches, (at[0], at[1] + 1)
        self._last = at, batch, time.perf_counter() - began
        return batch, 0.0


class Exchange(Common):
    """What the cells of a gang read in common: training streams, by their extra views, and evaluation splits."""

    def __init__(self) -> None:
        self._leads: dict[tuple[str, ...], Lead] = {}
        self._splits: dict[str, Iterable[Batch]] = {}

    def lead(self, views: tuple[str, ...], make: Callable[[], Stream]) -> Lead:
        """Return the stream of images with these views; the first to ask makes it."""
        if views not in self._leads:
            self._leads[views] = Lead(make())
        return self._leads[views]

    def split(self, name: str, make: Callable[[], Iterable[Batch]]) -> Iterable[Batch]:
        """Return an evaluation split; the first to ask makes it."""
        if name not in self._splits:
            self._splits[name] = make()
        return self._splits[name]


@dataclass(frozen=True)
class _Given:
    """Images that a cell has: the name of their view, its copy, the copy's count of writes, the original."""

    view: str
    copy: Tensor
    version: int
    original: Tensor

    def holds(self, x: Tensor) -> bool:
        """Return whether `x` is the unwritten copy, or the same without its history (``detach``)."""
        mine = self.copy
        alias = x is mine or (
            x.data_ptr() == mine.data_ptr()
            and x.shape == mine.shape
            and x.stride() == mine.stride()
            and (x.dtype, x.device) == (mine.dtype, mine.device)
            and not x.requires_grad
        )
        return alias and x._version == mine._version == self.version


class Hand(Common):
    """What a cell holds of the exchange: its place in training, and the images that it was given last."""

    def __init__(self, clock: TurnClock) -> None:
        self.clock = clock
        #: where the cell is in training; None outside
        self.at: Callable[[], Position | None] = lambda: None
        #: whether the settings of the process are those under which all cells compute the same
        self.plain: Callable[[], bool] = lambda: True
        self._step: Position | None = None
        self._given: list[_Given] = []

    def give(self, batch: Batch, at: Position, views: tuple[str, ...], seconds: float) -> Batch:
        """Return a copy of a batch that the cell may write into, and remember which images it holds."""
        self.clock.charge(seconds)
        twin = Twins()
        x, *extra = (twin(t) for t in (batch.x, *batch.views))
        # not twins: an index is a part of the order of the whole epoch, and copies of whole numbers are exact
        y, index = (None if t is None else t.clone() for t in (batch.y, batch.index))
        self._step = at
        made = zip(("", *views), (x, *extra), (batch.x, *batch.views), strict=True)
        self._given = [_Given(name, t, t._version, original) for name, t, original in made]
        more = {key: twin(v) if isinstance(v, Tensor) else v for key, v in batch.extra.items()}
        origin = None if batch.origin is None else batch.origin.of((x, *extra))
        return Batch(x, y, index, tuple(extra), more, origin)

    def find(self, x: Any) -> tuple[Position, str, Tensor] | None:
        """Return which images of which step `x` is, and the original, which no cell can reach.

        None for all others, and where the cell wrote into it.
        """
        for given in self._given:
            if self._step is not None and isinstance(x, Tensor) and given.holds(x):
                return self._step, given.view, given.original
        return None


class _Taken:
    """A training stream of one cell: in common with the others where the cell trains, its own elsewhere."""

    def __init__(self, context: SharedContext, own: Stream, labelled: bool) -> None:
        self._context, self._own, self._labelled = context, own, labelled

    def __len__(self) -> int:
        return len(self._context.lead().stream if self._context.hand.plain() else self._own)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        hand = self._context.hand
        if not hand.plain():
            yield from self._own.epoch(epoch, start)
            return
        lead, views = self._context.lead(), self._context.views
        mine: Iterator[Batch] | None = None
        for step in range(start, len(self)):
            at = (epoch, step)
            if hand.at() == at and hand.plain():
                mine = None
                batch, seconds = lead.get(at)
                batch = hand.give(batch, at, views, seconds)
            else:
                # a look at batches out of turn: a resident stream takes any number of readers, others one
                if mine is None:
                    source = lead.stream if isinstance(lead.stream, ResidentStream) else self._own
                    mine = source.epoch(epoch, step)
                batch = next(mine)
            yield batch if self._labelled else replace(batch, y=None)


class _Lent:
    """An evaluation split of all cells. Images are made anew on each pass; labels are copied."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._split:
            yield Batch(batch.x, None if batch.y is None else batch.y.clone(), batch.index, batch.views)


class SharedContext(Common, DataContext):
    """The data context of a cell in a gang. Its arguments must give the same data as those of the others."""

    def __init__(self, *args: Any, exchange: Exchange, hand: Hand, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hand, self._exchange = hand, exchange

    @property
    def views(self) -> tuple[str, ...]:
        return self._views

    def lead(self) -> Lead:
        return self._exchange.lead(self._views, lambda: self._make_stream(True))

    def image_streams(self) -> Mapping[str, Stream]:
        own = super().image_streams()
        return {name: _Taken(self, stream, name == "train") for name, stream in own.items()}

    def image_split(self, name: str) -> Iterable[Batch]:
        split = self._exchange.split(name, lambda: super(SharedContext, self).image_split(name))
        return _Lent(split) if hasattr(split, "__len__") and len(split) else split
