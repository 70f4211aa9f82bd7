"""Launchers whose cells run on other machines: what they are told, and what each of their cells gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.hooks import Place
from kdbench.launch.plan import Plan
from kdbench.launch.shares import Shares, share_out
from kdbench.registry import Registry


def known_options(registry: Registry, plan: Plan, launcher: str) -> dict[str, Any]:
    """Return what a launcher is told before the run. Raises KdbenchError for options of no launcher."""
    given = plan.matrix.matrix.launcher_options
    for name in given:
        registry.get("launchers", name)
    methods = {cell.file.method for cell in plan.cells}
    return {"settings": given.get(launcher, {}), "methods": methods, "run": plan.run.path}


def place_of(launcher: type, options: dict[str, Any], device: str) -> Place | None:
    """Return where the launcher's cells run, None for this machine. Raises KdbenchError as the launcher does."""
    find: Callable[..., Place] | None = getattr(launcher, "place", None)
    return None if find is None else find(options, device)


def shares_at(place: Place, cells: int, workers: int | None, threads: int | None) -> Shares:
    """Return what each of the cells gets: the cores that `place` has for one, and not a part of this machine's."""
    own = share_out(place.cores, 1, workers=1, threads=threads, gpus=int(place.device != "cpu"))
    return replace(own, workers=workers or max(1, cells))


def check_processes(launcher: type, name: str, processes: int) -> None:
    """Raise KdbenchError for several processes a cell where the launcher starts one."""
    if processes > 1 and not getattr(launcher, "processes", False):
        raise KdbenchError(
            f"--processes-per-cell {processes}: the launcher '{name}' starts one process for a cell; expected the "
            "launcher 'local', or torchrun on the folder of the cell"
        )
