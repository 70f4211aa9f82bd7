"""``python -m scale.simulate run|again|end CELLS FOLDER``: one process of a large matrix, as JSON on stdout.

``run`` plans the matrix and has all its cells ended by :mod:`scale.fake_cells`; ``again`` plans it when all is
done; ``end`` does what a run does at its end: words to the sinks, the board, the table. Memory is the most that
the process took, and the largest of its children, in MiB; times are seconds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

#: Ten methods and two pairs, so that a row has a twentieth of the cells as seeds.
METHODS = ("vanilla", "kd", "dkd", "dist", "at", "fitnet", "sp", "rkd", "pkt", "cc")
PAIRS = 2


class Clock:
    """Seconds of the parts of a run, by name."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self._last = now - self._last, now


class Quiet:
    """A display that shows nothing."""

    def start(self, total: int, done: int, left: Any = None) -> None: ...

    def cell_started(self, cell: Any) -> None: ...

    def epoch(self, cell: Any, row: Any, epochs: int) -> None: ...

    def cell_ended(self, cell: Any, status: str, detail: str) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


def matrix_file(folder: Path, cells: int) -> Path:
    """Write a matrix of about so many cells."""
    from matrices import STUDENT, TEACHER, write_matrix

    pairs = [{"teacher": TEACHER, "student": student} for student in (TEACHER, STUDENT)]
    return write_matrix(
        folder / "large.yaml",
        name="large",
        pairs=pairs,
        methods=list(METHODS),
        seeds=list(range(1, 1 + cells // (len(METHODS) * PAIRS))),
    )


def main(phase: str, cells: int, folder: Path) -> dict[str, float]:
    """Do one phase and return what it took."""
    from kdbench.cli._outcome import finish
    from kdbench.launch.plan import Planner
    from kdbench.launch.session import Options, Session
    from kdbench.launch.whole import told
    from kdbench.matrix import load_matrix
    from kdbench.registry import Registry
    from kdbench.results.store import RunFolder

    clock, run = Clock(), RunFolder(folder / "run")
    path = matrix_file(folder, cells)
    registry = Registry.load()
    clock.lap("registry_s")
    loaded = load_matrix(str(path))
    plan = Planner(registry, loaded, run, (), "cpu").plan()
    clock.lap("plan_s")
    counts = plan.counts()
    assert set(counts) == {"to run" if phase == "run" else "done"}, counts
    if phase == "run":
        options = Options(launcher="fake-cells", sinks=("none",), device="cpu", workers=1000)
        assert not Session(registry, plan, options, Quiet()).run()
        clock.lap("session_s")
        assert set(plan.counts()) == {"done"}
    if phase == "end":
        told(run)
        clock.lap("told_s")
        finish(plan, ("none",))
        clock.lap("finish_s")
    clock.parts["cells"] = len(plan.cells)
    return {
        **clock.parts,
        "memory_mb": most(resource.RUSAGE_SELF),
        "child_mb": most(resource.RUSAGE_CHILDREN),
    }


def most(who: int) -> float:
    """Return the most memory that this process had, or the largest of those that it waited for, in MiB."""
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
