"""Launchers whose cells run on other machines: what they are told, and what each of their cells gets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from kdbench.errors import KdbenchError, MatrixError, OptionError, PluginError, UnknownName
from kdbench.hooks import Place
from kdbench.launch.plan import Plan
from kdbench.launch.shares import Shares, share_out
from kdbench.matrix.document import format_path
from kdbench.registry import Registry


def known_options(registry: Registry, plan: Plan, launcher: str) -> dict[str, Any]:
    """Return what a launcher is told before the run.

    Raises MatrixError, with file and line, for options that their launcher does not take, whether it is the chosen
    one or not, and for those of no launcher.
    """
    loaded = plan.matrix
    given = loaded.matrix.launcher_options
    methods = _methods(plan)
    for name, settings in given.items():
        try:
            _check(registry, name, settings, methods)
        except OptionError as e:
            where, key = loaded.where(*e.path), format_path(e.path)
            told = str(e).removeprefix(f"{key}: ") if where == f"--set {key}" else str(e)
            raise MatrixError(f"{where}: {told}") from e
    return {"settings": given.get(launcher, {}), "methods": methods, "run": plan.run.path}


def _methods(plan: Plan) -> set[str]:
    """Return the methods of the whole matrix, of which a plan with ``--only`` has a part."""
    matrix = plan.matrix.matrix
    listed = [*matrix.methods, *(item for include in matrix.include for item in include.method or ())]
    return {
        matrix.teacher_method,
        *(item.name for item in listed),
        *(pattern.file.method for pattern in {cell.pattern for cell in plan.cells}),
    }


def _check(registry: Registry, name: str, settings: Mapping[str, Any], methods: Collection[str]) -> None:
    try:
        found = registry.get("launchers", name)
    except UnknownName as e:
        raise OptionError(f"launcher_options.{name}: {e}", "launcher_options", name) from e
    try:
        check: Callable[..., None] | None = getattr(found.load(), "check", None)
    except PluginError:  # the chosen one is loaded before; of another that is broken nobody can tell
        return
    if check is not None:
        check(settings, methods)


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
