"""What a cell takes from its surroundings where it trains on several processes."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from kdbench.engine.build import data_context
from kdbench.engine.context import CellRun
from kdbench.engine.data.context import DataContext
from kdbench.engine.sharing import Alone
from kdbench.engine.together.divide import Divider
from kdbench.engine.together.group import Group


class Together(Alone):
    """The surroundings of one process of a cell."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def data(self, *args: Any) -> DataContext:
        """Make a data context whose images are read by all processes, each its part."""
        return data_context(*args, make=partial(DataContext, group=self.group))

    def workdir(self, folder: Path) -> Path:
        """Return where the method may write: files of the cell are those of the leading process."""
        if self.group.lead:
            return folder
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="kdbench-")
        return Path(self._scratch.name)

    def join(self, run: CellRun) -> None:
        """Divide the passes of the run's networks from now on, while the group is active."""
        run.divide(Divider(self.group, run.seed, lambda: run.global_step))

    def close(self) -> None:
        """Remove what the method wrote in a process that does not lead."""
        if self._scratch is not None:
            self._scratch.cleanup()
