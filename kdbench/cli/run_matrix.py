"""``kdbench run-matrix``: run every open cell of a matrix, then show the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._warnings import print_warnings

if TYPE_CHECKING:
    from kdbench.launch.plan import Plan, PlannedCell
    from kdbench.matrix.word_or_number import WordOrNumber
    from kdbench.results.schema import Labels


@click.command("run-matrix")
@click.argument("matrix")
@click.option(
    "--only", multiple=True, metavar="AXIS=A,B", help="Keep only cells with these values; repeatable."
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. recipe.epochs=10."
)
@click.option("--dry-run", is_flag=True, help="Say what would run and what cannot, and leave.")
@click.option(
    "--rerun",
    type=click.Choice(["failed", "changed", "all"]),
    help="Run again cells that failed, whose method's code changed, or all.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Cells at a time (default: one per core, or GPU)."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of each worker on the CPU (default: 1; results of other numbers may differ in the last bits).",
)
@click.option(
    "--slots-per-gpu",
    "slots",
    metavar="auto|N",
    callback=lambda ctx, param, value: _slots(value),
    help="Cells at a time on each GPU; auto: as many as pay (default: as the matrix says).",
)
@click.option(
    "--gang",
    metavar="auto|off|N",
    callback=lambda ctx, param, value: _gang(value),
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
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda",
    help="Where cells run; auto: on GPUs where there are any.",
)
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
@click.option("--tracking-uri", help="MLflow store (default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db).")
@click.option(
    "--runs",
    "runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of run folders.",
)
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

    _check_device(device)
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
    )
    session = Session(registry, plan, options, make_progress())
    if dry_run:
        _print_plan(plan, session.open_cells())
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
        _finish(plan, sinks)
        sys.exit(_exit_code(plan))
    if session.idle():
        print_warnings(plan)
        _print_failures(plan)
        click.echo(f"{loaded.matrix.name}: nothing to do, {_counts(plan)}")
        _point(plan, sinks)
        sys.exit(_exit_code(plan))
    interrupted = session.run()
    if interrupted:
        click.echo(f"interrupted; `{_again()}` goes on from here", err=True)
        sys.exit(130)
    _finish(plan, sinks)
    sys.exit(_exit_code(plan))


def _console() -> Any:
    """Return a console that does not fold tables where the output is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def _wait(name: str) -> None:
    # for who sits before it; elsewhere bad input is told in one line and no other
    if sys.stderr.isatty():
        click.echo(f"{name}: looking at methods and networks", err=True)


def _slots(value: str | None) -> Any:
    from kdbench.matrix.word_or_number import SLOTS

    return _read("--slots-per-gpu", SLOTS, value)


def _gang(value: str | None) -> Any:
    from kdbench.matrix.word_or_number import GANG

    return _read("--gang", GANG, value)


def _read(option: str, known: WordOrNumber, value: str | None) -> str | int | None:
    from kdbench.errors import KdbenchError

    try:
        return None if value is None else known.read(value)
    except ValueError as e:
        raise KdbenchError(f"{option} {value}: {e}") from e


def _check_device(device: str) -> None:
    from kdbench.errors import KdbenchError, did_you_mean

    kind = device.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        near = did_you_mean("cuda" if kind in ("gpu", "nvidia") else kind, ["auto", "cpu", "cuda"])
        raise KdbenchError(f"--device {device}: expected auto, cpu or cuda{near}")


def _again() -> str:
    import shlex

    return shlex.join(["kdbench", *sys.argv[1:]])


def _counts(plan: Plan) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(plan.counts().items()))


def _exit_code(plan: Plan) -> int:
    return 0 if set(plan.counts()) <= {"done", "not_applicable"} else 1


def _print_plan(plan: Plan, open_cells: list[PlannedCell]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{plan.matrix.matrix.name}: {len(plan.cells)} cells, {_counts(plan)}")
    for column in ("status", "method", "pair", "data set", "seed", "cell"):
        table.add_column(column)
    chosen = {cell.id for cell in open_cells}
    for cell in plan.cells:
        names = cell.pattern.file.labels
        role = _kind(names)
        again = cell.status not in ("to run", "interrupted") and cell.id in chosen
        status = f"{cell.status}, again" if again else cell.status
        # as text: labels may have square brackets, which rich takes for markup
        cells = (status, names.variant + role, names.pair, names.dataset, str(cell.seed), cell.id[:12])
        table.add_row(*map(Text, cells))
    _console().print(table)
    for cell in plan.cells:
        if cell.status == "not_applicable":
            click.echo(f"not applicable: {cell.label}: {cell.reason}")
        elif cell.damaged:
            click.echo(f"note: {cell.label}: {cell.reason}; it would be put aside, and the cell run again")
    click.echo(f"{len(open_cells)} cell(s) would run")


def _kind(names: Labels) -> str:
    track = "" if names.track == "default" else f" ({names.track})"
    return track if names.role == "student" else f" ({names.role}){track}"


def _finish(plan: Plan, sinks: tuple[str, ...]) -> None:
    """Build the run's board and print its table, the failures and where everything is."""
    from kdbench.launch.notes import BOARD_DUE
    from kdbench.launch.whole import build

    matrix = plan.matrix.matrix
    for line in build(plan.run, {c.id for c in plan.cells}, matrix.title or matrix.name, matrix.description):
        click.echo(line, err=True)
    (plan.run.path / BOARD_DUE).unlink(missing_ok=True)
    if all(cell.pattern.file.only_speed for cell in plan.cells):
        _print_speeds(plan)
    else:
        _print_table(plan)
    print_warnings(plan)
    _print_failures(plan)
    click.echo(_counts(plan))
    _point(plan, sinks)


def _print_failures(plan: Plan) -> None:
    failed = cut = False
    for cell in plan.cells:
        if cell.status in ("done", "to run"):
            continue
        first = (cell.reason or "").splitlines()[:1]
        log = cell.folder / "log.txt"
        where = f" (log: {log})" if log.exists() and cell.status != "not_applicable" else ""
        click.echo(f"{cell.status}: {cell.label}: {first[0] if first else ''}{where}")
        cut = cut or cell.status == "interrupted"
        failed = failed or cell.status not in ("not_applicable", "interrupted")
    if cut:
        click.echo("the same command resumes what was interrupted")
    if failed:
        click.echo("--rerun failed runs the others again" if cut else "--rerun failed runs them again")


def _print_speeds(plan: Plan) -> None:
    from kdbench.cli._table import print_table
    from kdbench.cli.throughput import COLUMNS, speed_cells
    from kdbench.results.store import read_record

    rows = []
    for cell in plan.cells:
        if cell.status == "done":
            rows += [speed_cells(row) for row in read_record(cell.folder / "result.json").speeds]
    print_table(COLUMNS, rows, title=f"{plan.matrix.matrix.name}: speed of untrained networks")


def _print_table(plan: Plan) -> None:
    from rich.table import Table
    from rich.text import Text

    from kdbench.results.store import read_record_dict
    from kdbench.stats.summary import summarise

    rows: dict[tuple[str, ...], list[float | None]] = {}
    for cell in plan.cells:
        names = cell.pattern.file.labels
        role = _kind(names)
        value = None
        if cell.status == "done":
            record = read_record_dict(cell.folder / "result.json")
            value = record["deployables"][record["primary"]]["last"].get("top1")
        if cell.status != "not_applicable":
            # cells of one row differ in nothing but the seed, whatever their labels say
            same = cell.pattern.id_of(0)
            rows.setdefault((names.dataset, names.pair, names.variant + role, same), []).append(value)
    table = Table(title=f"{plan.matrix.matrix.name}: top-1 after the last epoch, %")
    for column in ("data set", "pair", "method", "n", "mean", "sd"):
        table.add_column(column, justify="right" if column in ("n", "mean", "sd") else "left")
    for (data, pair, method, _), values in rows.items():
        s = summarise(values)
        show = ["-" if v is None else f"{v:.2f}" for v in (s.mean, s.sd)]
        done = f"{sum(v is not None for v in values)}/{len(values)}"
        table.add_row(*map(Text, (data, pair, method, done, *show)))
    _console().print(table)


def _point(plan: Plan, sinks: tuple[str, ...]) -> None:
    name = plan.matrix.matrix.name
    click.echo(f"board:   {plan.run.path / 'board' / 'index.html'}")
    click.echo(f"publish: kdbench submit {plan.run.path} --board {name}")
    if "mlflow" in sinks:
        click.echo("mlflow:  kdbench ui")
