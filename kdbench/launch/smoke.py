"""One training step of each method of a plan, before days of computing depend on it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.launch.failure import log_tail
from kdbench.launch.planned import PlannedCell
from kdbench.launch.server import context
from kdbench.results.store import atomic_write_bytes

#: Seconds that a step may take, with making the networks and reading the data; less where the matrix says so.
LIMIT_S = 900.0


def first_of_each(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Return one cell for each variant of a method and data set: the first one that can be."""
    found: dict[tuple[str, str], PlannedCell] = {}
    for cell in cells:
        names = cell.pattern.file.labels
        if cell.status != "not_applicable" and names.role == "student" and not cell.pattern.file.only_speed:
            found.setdefault((names.dataset, names.variant), cell)
    return list(found.values())


def smoke(cell: PlannedCell, device: str, threads: int = 1) -> str | None:
    """Train a step of a cell in a process of its own; return what is wrong, or None.

    Nothing of it stays: the cell's own folder is not touched.
    """
    # beside its teachers, under a name that no cell has
    folder = cell.pattern.cells / f".smoke-{cell.id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        file = cell.file.model_copy(update={"device": device, "threads": threads})
        atomic_write_bytes(folder / "cell.json", file.model_dump_json().encode(), durable=False)
        return _one(folder, min(LIMIT_S, cell.pattern.spec.timeout_s or LIMIT_S))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one(folder: Path, limit_s: float) -> str | None:
    ctx = context()
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=step, args=(str(folder), theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            return f"no step within {limit_s:g} s"
        problem: str | None = ours.recv()
        return problem
    except EOFError:
        process.join()
        tail = log_tail(folder, 1)
        return f"the process ended with code {process.exitcode}" + (f": {tail}" if tail else "")
    finally:
        process.kill()
        process.join()


def step(folder: str, connection: Any) -> None:
    """Entry of the process: train one step and send what went wrong, or None."""
    import os

    import torch

    from kdbench.engine.cell import CellTrainer, read_cell
    from kdbench.launch.log import redirect
    from kdbench.launch.worker import what_happened
    from kdbench.registry import Registry

    where = Path(folder)
    redirect(where / "log.txt")
    problem = None
    try:
        cell = read_cell(where)
        if cell.threads is not None:
            torch.set_num_threads(cell.threads)
        turns = CellTrainer(where, Registry.load(disable=cell.disable_plugins)).turns()
        for _ in range(2):  # to the first step, and that one
            next(turns)
        turns.close()
    except Exception as e:
        problem = what_happened(e).splitlines()[0]
    connection.send(problem)
    os._exit(0)
