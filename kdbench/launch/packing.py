"""How many cells run at a time on each GPU: grown step by step while they get more done together. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

#: Most cells of a GPU that ``auto`` tries.
MOST = 4
#: A further cell has to bring at least this much more throughput to be kept.
WORTH = 1.1
#: Epochs that each running cell has to show, after one to warm up, before they are judged.
PATIENCE = 2
#: Share of the free memory that may be planned with: what a cell takes varies, and other programs come.
SPARE = 0.9
#: Percent of the time in which the GPU computes, above which another cell is not tried.
BUSY = 95.0

Wish = Literal["auto"] | int


@dataclass
class _Cell:
    gpu: int
    #: images per second of each epoch but the first, evaluation and waiting included
    speeds: list[float] = field(default_factory=list)
    since: float | None = None
    memory_mb: float | None = None


@dataclass
class _Gpu:
    free_mb: float | None = None
    busy: float | None = None


class Packing:
    """Decides how many slots each GPU has, from what is seen of the cells.

    ``slots`` is the same for all GPUs: the cells of a matrix are alike, and what is seen on one holds for the
    others. A number counts as tried when on some GPU that many cells have run together long enough; it is kept
    if their speeds add up to :data:`WORTH` times those of one cell fewer. Once one is not kept, the number stays.

    Args:
        wish: a number, which is taken as it is, or ``auto``.
        most: bound of ``auto``.
    """

    def __init__(self, wish: Wish = "auto", most: int = MOST) -> None:
        self.slots = 1 if wish == "auto" else wish
        self.settled = wish != "auto" or most < 2
        self.why = "as asked" if wish != "auto" else ""
        self._most = most
        self._cells: dict[str, _Cell] = {}
        self._gpus: dict[int, _Gpu] = {}
        self._throughput: dict[int, list[float]] = {}

    def started(self, cell_id: str, gpu: int) -> None:
        """A cell begins on a GPU. Those that run there are judged anew, in its company."""
        self._cells[cell_id] = _Cell(gpu)
        self._forget_speeds(gpu)

    def ended(self, cell_id: str) -> None:
        """A cell has left its GPU."""
        cell = self._cells.pop(cell_id, None)
        if cell is not None:
            self._forget_speeds(cell.gpu)

    def see(self, event: Mapping[str, Any], now: float, cells: int = 1) -> None:
        """Take in that a cell has trained an epoch; other events tell nothing.

        Args:
            event: with the ``row`` of its curves, and in ``gpu`` what its process sees: ``memory_mb`` that it
                takes, ``free_mb`` of the device, ``busy`` in percent; each may be None.
            now: seconds of any clock.
            cells: for how many cells in step it speaks.
        """
        cell = self._cells.get(event["cell_id"])
        if cell is None or event["event"] != "epoch":
            return
        row = event["row"]
        # by the clock on the wall: cells of a gang take turns, and each tells of its own turns only
        if cell.since is not None and now > cell.since:
            images = row.get("images_per_s", 0.0) * row["train_s"] or row["steps"]
            cell.speeds.append(cells * images / (now - cell.since))
        cell.since = now
        state = self._gpus.setdefault(cell.gpu, _Gpu())
        for key, value in (event.get("gpu") or {}).items():
            if key == "memory_mb":
                cell.memory_mb = value
            elif hasattr(state, key):
                setattr(state, key, value)
        self._judge(cell.gpu)

    def starved(self) -> None:
        """A cell ran out of memory in company: one fewer, and no more attempts."""
        self.slots = max(1, self.slots - 1)
        self._settle("a cell ran out of memory in company")

    def _judge(self, gpu: int) -> None:
        here = [cell for cell in self._cells.values() if cell.gpu == gpu]
        ripe = all(len(cell.speeds) >= PATIENCE for cell in here)
        if self.settled or len(here) != self.slots or not ripe:
            return
        together = sum(median(cell.speeds) for cell in here)
        self._throughput.setdefault(len(here), []).append(together)
        fewer = self._throughput.get(self.slots - 1)
        if fewer and together < WORTH * median(fewer):
            gain = together / median(fewer)
            self.slots -= 1
            self._settle(f"{self.slots + 1} together do {gain:.2f} times as much as {self.slots}")
        elif self.slots >= self._most:
            self._settle("the most that is tried")
        elif (reason := self._no_room(gpu, here)) is not None:
            self._settle(reason)
        else:
            self.slots += 1

    def _no_room(self, gpu: int, here: list[_Cell]) -> str | None:
        state = self._gpus[gpu]
        takes = [cell.memory_mb for cell in here if cell.memory_mb is not None]
        if state.free_mb is None or not takes:
            return "the memory of a cell is not known"
        if max(takes) > SPARE * state.free_mb:
            return f"another cell takes {max(takes):.0f} MiB, and {state.free_mb:.0f} are free"
        if state.busy is not None and state.busy > BUSY:
            return f"the GPU computes {state.busy:.0f} % of the time"
        return None

    def _settle(self, why: str) -> None:
        self.settled, self.why = True, why

    def _forget_speeds(self, gpu: int) -> None:
        for cell in self._cells.values():
            if cell.gpu == gpu:
                cell.speeds.clear()
                cell.since = None
