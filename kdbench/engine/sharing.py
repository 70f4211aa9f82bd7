"""What a cell takes from its surroundings: a clock, its data, and whether others help with the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdbench.engine.build import data_context
from kdbench.engine.clock import Clock
from kdbench.engine.context import CellRun
from kdbench.engine.data.context import DataContext
from kdbench.engine.together.group import Group


class Alone:
    """The surroundings of a cell that shares nothing."""

    #: whether the process has other cells, so that its memory is not the cell's
    several = False
    #: most cells that trained beside it, itself included; None: no other
    gang: int | None = None
    #: the processes that train the cell; None: this one alone
    group: Group | None = None

    def __init__(self) -> None:
        self.clock = Clock()

    def data(self, *args: Any) -> DataContext:
        """Make the data context; the arguments are those of :func:`kdbench.engine.build.data_context`."""
        return data_context(*args)

    def workdir(self, folder: Path) -> Path:
        """Return where the method may write, given the folder of the cell."""
        return folder

    def join(self, run: CellRun) -> None:
        """Called with the run once its networks have their weights, before the method sets up."""

    def close(self) -> None:
        """Called when the cell is over."""
