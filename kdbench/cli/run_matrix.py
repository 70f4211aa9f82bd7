"""``kdbench run-matrix``: run every open cell of a matrix, then show the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._options import (
    device_option,
    only_option,
    read_gang,
    read_slots,
    runs_option,
    set_option,
    tracking_option,
    workers_option,
)
from kdbench.cli._outcome import counts, finish, point, print_failures, print_plan
from kdbench.cli._warnings import print_warnings

if TYPE_CHECKING:
    from kdbench.launch.plan import Plan


@click.command("run-matrix")
@click.argument("matrix")
@only_option()
@set_option("Override a key, e.g. recipe.epochs=10.")
@click.option("--dry-run", is_flag=True, help="Say what would run and what cannot, and leave.")
@click.option(
    "--rerun",
    type=click.Choice(["failed", "changed", "all"]),
    help="Run again cells that failed, whose method's code changed, or all.",
)
@workers_option("Cells")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of each worker on the CPU (default: 1; results of other numbers may differ in the last bits).",
)
@click.option(
    "--slots-per-gpu",
    "slots",
    metavar="auto|N",
    callback=lambda ctx, param, value: read_slots(value),
    help="Cells at a time on each GPU; auto: as many as pay (default: as the matrix says).",
)
@click.option(
    "--gang",
    metavar="auto|off|N",
    callback=lambda ctx, param, value: read_gang(value),
    help="Cells that share batches and teacher train in one process (default: as the matrix says).",
)
@click.option(
    "--processes-per-cell",
    "processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that train each cell together, each its part of every batch; on GPUs one GPU each.",
)
@device_option("Where cells run; auto: on GPUs where there are any.")
@click.option(
    "--launcher",
    default="local",
    show_default=True,
    help="What runs the cells; see `kdbench list launchers`.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    default=("mlflow",),
    show_default=True,
    metavar="mlflow|none",
    help="Where results go beside the run folder; may be repeated. none: nowhere, `kdbench sync` does it later.",
)
@tracking_option()
@runs_option()
@click.option(
    "--system-metrics/--no-system-metrics",
    default=True,
    show_default=True,
    help="Sample the load of the machine every 10 s, where psutil is installed; never while speed is measured.",
)
@click.pass_obj
def run_matrix(
    settings: Any,
    matrix: str,
    only: tuple[str, ...],
    sets: tuple[str, ...],
    dry_run: bool,
    rerun: str | None,
    workers: int | None,
    threads: int | None,
    slots: Any,
    gang: Any,
    processes: int,
    device: str,
    launcher: str,
    sinks: tuple[str, ...],
    tracking_uri: str | None,
    runs: Path,
    system_metrics: bool,
) -> None:
    """Run MATRIX, a file or the name of a shipped matrix.

    Finished cells are skipped and interrupted ones resumed, so the same command is also how to go on. Exit code
    1 when a cell is neither done nor not applicable.
    """
    from kdbench.launch.holding import refuse_held
    from kdbench.launch.mirror import prepare
    from kdbench.launch.notes import BOARD_DUE
    from kdbench.launch.plan import Planner
    from kdbench.launch.progress import make_progress
    from kdbench.launch.session import Options, Session
    from kdbench.matrix import load_matrix
    from kdbench.results.store import RunFolder

    registry = settings.registry()
    for kind, name in [("launchers", launcher), *(("sinks", s) for s in sinks if s != "none")]:
        registry.get(kind, name)
    loaded = load_matrix(matrix, sets=sets)
    folder = RunFolder(runs / loaded.matrix.name)
    if not dry_run:
        refuse_held(folder.path)

    def wait() -> None:
        _wait(loaded.matrix.name)
        if not dry_run:
            prepare(registry, sinks)

    planner = Planner(
        registry,
        loaded,
        folder,
        settings.disable,
        device,
        waits=wait,
    )
    plan = planner.plan(only)
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    if processes > 1 and gang not in (None, "off"):
        click.echo(
            "warning: --gang changes nothing: cells of several processes share with no other", err=True
        )
    options = Options(
        launcher=launcher,
        workers=workers,
        device=device,
        sinks=sinks,
        tracking_uri=tracking_uri,
        rerun=rerun,
        disable=tuple(settings.disable),
        gang=gang,
        threads=threads,
        slots_per_gpu=slots,
        processes=processes,
        system_metrics=system_metrics,
        command=_again(),
    )
    session = Session(registry, plan, options, make_progress())
    if dry_run:
        print_plan(plan, session.open_cells())
        for line in session.sharing():
            click.echo(line)
        if session.open_cells():
            click.echo(session.expected())
        return
    stale = sum(c.stale for c in plan.cells)
    if stale and rerun not in ("changed", "all"):
        click.echo(
            f"note: {stale} finished cell(s) were made by other code of their method's plug-in; "
            "--rerun changed runs them again",
            err=True,
        )
    if session.idle() and (folder.path / BOARD_DUE).exists():
        # the run before was cut while it made the board, or just before
        finish(plan, sinks)
        sys.exit(_exit_code(plan))
    if session.idle():
        print_warnings(plan)
        print_failures(plan)
        click.echo(f"{loaded.matrix.name}: nothing to do, {counts(plan)}")
        point(plan, sinks)
        sys.exit(_exit_code(plan))
    interrupted = session.run()
    if interrupted:
        click.echo(f"interrupted; `{_again()}` goes on from here", err=True)
        sys.exit(130)
    finish(plan, sinks)
    sys.exit(_exit_code(plan))


def _wait(name: str) -> None:
    # for who sits before it; elsewhere bad input is told in one line and no other
    if sys.stderr.isatty():
        click.echo(f"{name}: looking at methods and networks", err=True)


def _again() -> str:
    """Return the command that goes on: cells that `--rerun` took up are to run from then on."""
    import shlex

    words = list(sys.argv[1:])
    while "--rerun" in words:
        at = words.index("--rerun")
        del words[at : at + 2]
    return shlex.join(["kdbench", *(w for w in words if not w.startswith("--rerun="))])


def _exit_code(plan: Plan) -> int:
    return 0 if set(plan.counts()) <= {"done", "not_applicable"} else 1
