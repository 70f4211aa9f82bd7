"""A gang: cells of equal data set, recipe and seed that train in lockstep in one process.

Who is furthest behind goes next, so cells that are at the same step take it one after the other, and a batch or
a teacher's forward that is the same for all is made once. Everything that a cell could notice is its own:
networks (the teacher's, too), global random state, clock, checkpoint, record, log. So its result is that of a
lone run, bit for bit on the CPU.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.engine.build import data_context
from kdbench.engine.cell import Hooks
from kdbench.engine.clock import TurnClock
from kdbench.engine.context import CellRun
from kdbench.engine.data.context import DataContext
from kdbench.engine.exchange import Common, Exchange, Hand, Position, SharedContext
from kdbench.engine.forwards import Forwards, Seal, Wish
from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.progress import Interrupted
from kdbench.engine.settings import put_back, settings
from kdbench.engine.sharing import Alone
from kdbench.engine.taps import Site
from kdbench.engine.trial import trainer_of
from kdbench.measure.footprint import peak_bytes, reset_peak, used_bytes
from kdbench.measure.memory import free_bytes
from kdbench.registry import Registry

_OF_A_BLOCK = ("torch.is_grad_enabled()", "autocast on the CPU")


class Member(Common, Alone):
    """One cell of a gang and what it shares."""

    several = True

    def __init__(self, gang: Gang, folder: Path, registry: Registry, hooks: Hooks) -> None:
        self._gang = gang
        self.folder, self.hooks = folder, hooks
        self.trainer = trainer_of(folder)(folder, registry, hooks, sharing=self)
        self.clock: TurnClock = TurnClock(self.trainer.device)
        self.hand = Hand(self.clock)
        self.hand.at, self.hand.plain = self.position, self.plain
        self.teachers: list[tuple[NetHandle, Any]] = []
        self.turns: Generator[None, None, Any] = self.trainer.turns()
        self._run: CellRun | None = None
        self._random: tuple[Any, ...] | None = None
        self._settings = gang.settings

    def position(self) -> Position | None:
        """Return where the cell is in training; None before."""
        loop = self.trainer.loop
        return None if loop is None else (loop.at.total_epochs, loop.at.step)

    def plain(self) -> bool:
        """Return whether the cell left the settings of the process as they were before its method was made."""
        return self._gang.plain is None or _lasting() == self._gang.plain

    def data(self, *args: Any) -> DataContext:
        """Make a data context whose batches are in common with the others."""
        make = partial(SharedContext, exchange=self._gang.exchange, hand=self.hand)
        return data_context(*args, make=make)

    def join(self, run: CellRun) -> None:
        """Seal the teachers, and ask the gang for what they say."""
        gang = self._gang
        if gang.plain is None:
            gang.plain = _lasting()
        sources = self.trainer.cell.teachers
        self.teachers = [(h, Seal(h, source)) for h, source in zip(run.teachers, sources, strict=True)]
        for handle, seal in self.teachers:
            if gang.left > 1:
                gang.forwards.adopt(handle, seal.digest)
        self._run = run
        run.lookup, run.batch_lookup = self.lookup, partial(self.lookup, by_batch=True)

    def lookup(
        self, handle: NetHandle, x: Tensor, sites: tuple[Site, ...], head: bool, *, by_batch: bool = False
    ) -> Captured | None:
        """Return what a teacher gives for `x`, or None where the gang cannot know."""
        forwards = self._gang.forwards
        found = self.hand.find(x)
        seal = next((s for h, s in self.teachers if h is handle), None)
        if found is None or seal is None:
            return None
        if self._gang.left < 2 and forwards.step != found[0]:
            forwards.clear()  # the last one takes what is there, and no more
            return None
        if not (forwards.shareable(seal.digest) and self.plain() and seal.holds()):
            return None
        got, seconds = forwards.ask(seal.digest, *found, Wish(sites, head or not sites, by_batch))
        self.clock.charge(seconds)
        return got

    def wanted(self, digest: str) -> Iterator[Wish]:
        """Return what the cell reads on a teacher."""
        for handle, seal in self.teachers:
            if seal.digest == digest:
                by_batch = self._run is not None and self._run.teacher_bn == "batch"
                yield Wish(tuple(handle.sites().values()), self.head, by_batch)

    @property
    def head(self) -> bool:
        """Whether the method reads what the teacher's head gives."""
        needs = None if self._run is None else self._run.needs
        return needs is None or needs.reads != "taps"

    def resume(self) -> None:
        """Put the cell's global state in place; its turn begins."""
        self.hooks.enter()
        put_back(self._settings)
        if self._random is not None:
            _set_random(self._random)
        self.clock.resume()

    def pause(self) -> None:
        """Take the cell's global state away; its turn ends."""
        self.clock.pause()
        self._random, self._settings = _get_random(self.trainer.device), settings()


class Gang:
    """Runs the cells of several folders in lockstep.

    Args:
        folders: of the cells; their data set, recipe and seed must be equal.
        hooks: makes the hooks of a cell.
        ended: told of every cell that ended, with what it raised, or None when its record is written. False
            ends the gang.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        registry: Registry,
        hooks: Callable[[Path], Hooks] = lambda folder: Hooks(),
        ended: Callable[[Path, BaseException | None], bool] = lambda folder, error: True,
    ) -> None:
        self.waiting = list(folders)
        self.exchange = Exchange()
        self.forwards = Forwards(self._wanted)
        self._registry, self._hooks, self._ended = registry, hooks, ended
        self._live: list[Member] = []
        self._active: Member | None = None
        self._open = True
        #: of the process, as every cell finds them when it begins
        self.settings = settings()
        #: the same, once a cell's recipe has chosen its kernels; None before
        self.plain: dict[str, Any] | None = None

    @property
    def left(self) -> int:
        """Cells that train or wait to begin."""
        return len(self._live) + len(self.waiting)

    def run(self) -> list[Path]:
        """Run the cells to their ends. Returns the folders of those that were not begun.

        A cell is begun only while the memory that the hungriest so far took is within half of what is free; the
        first one always is.
        """
        hungriest = 0
        while self._open and self.waiting:
            member = self._begin(self.waiting.pop(0))
            if member is None:
                continue
            device = member.trainer.device
            before = used_bytes(device)
            reset_peak(device)
            for _ in range(2):  # to its first step, and that one: what it takes then is what it takes
                if member in self._live:
                    self._turn(member)
            hungriest = max(hungriest, peak_bytes(device) - before)
            free = free_bytes(device)
            if free is not None and hungriest > free / 2:
                break
            if member.hooks.should_stop():
                break
        not_begun, self.waiting = self.waiting, []
        while self._open and self._live:
            self._turn(min(self._live, key=_behind))
        for member in self._live:
            member.turns.close()
        self.forwards.clear()
        put_back(self.settings)
        return not_begun

    def _begin(self, folder: Path) -> Member | None:
        try:
            member = Member(self, folder, self._registry, self._hooks(folder))
        except Exception as e:
            self._open = self._ended(folder, e)
            return None
        self._live.append(member)
        if len(self._live) > 1:
            for one in self._live:
                one.gang = max(one.gang or 0, len(self._live))
        return member

    def _turn(self, member: Member) -> None:
        if self._active is not member:
            if self._active is not None:
                self._active.pause()
            member.resume()
            self._active = member
        try:
            next(member.turns)
        except StopIteration:
            self._leave(member, None)
        except Exception as e:
            self._leave(member, e)

    def _leave(self, member: Member, error: Exception | None) -> None:
        self._active = None
        self._live.remove(member)
        self._open = self._ended(member.folder, error)
        member.trainer.loop = None
        if error is not None and not isinstance(error, Interrupted):  # when one is to stop, all are
            # its networks hang on the traceback and in cycles; the others may need the room
            _unhook(error)
            gc.collect()
            if member.trainer.device.type == "cuda":
                torch.cuda.empty_cache()

    def _wanted(self, digest: str) -> Iterable[Wish]:
        return [wish for member in self._live for wish in member.wanted(digest)]


def _behind(member: Member) -> Position:
    return member.position() or (-1, 0)


def _lasting() -> dict[str, Any]:
    """Return the settings but for those that hold for a block: a forward is asked for without grad, and its
    autocast state is known to :class:`kdbench.engine.forwards.Forwards`; images depend on neither."""
    return {name: value for name, value in settings().items() if name not in _OF_A_BLOCK}


def _unhook(error: BaseException | None) -> None:
    """Take the frames away from an error and from what led to it."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _get_random(device: torch.device) -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, device


def _set_random(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda, device = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
