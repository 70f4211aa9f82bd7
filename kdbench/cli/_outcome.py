"""What ``kdbench run-matrix`` shows: the plan, and what became of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._warnings import print_warnings

if TYPE_CHECKING:
    from kdbench.launch.plan import Plan, PlannedCell
    from kdbench.results.schema import Labels


def counts(plan: Plan) -> str:
    """Return how many cells have which status."""
    return ", ".join(f"{n} {status}" for status, n in sorted(plan.counts().items()))


def print_plan(plan: Plan, open_cells: list[PlannedCell]) -> None:
    """Print every cell with its status, why some cannot be, and how many would run."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{plan.matrix.matrix.name}: {len(plan.cells)} cells, {counts(plan)}")
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


def finish(plan: Plan, sinks: tuple[str, ...]) -> None:
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
    print_failures(plan)
    click.echo(counts(plan))
    point(plan, sinks)


def print_failures(plan: Plan) -> None:
    """Print the cells that are not done, and what runs them again."""
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


def point(plan: Plan, sinks: tuple[str, ...]) -> None:
    """Print where the board is, and what comes next."""
    name = plan.matrix.matrix.name
    click.echo(f"board:   {plan.run.path / 'board' / 'index.html'}")
    click.echo(f"publish: kdbench submit {plan.run.path} --board {name}")
    if "mlflow" in sinks:
        click.echo("mlflow:  kdbench ui")


def _console() -> Any:
    """Return a console that does not fold tables where the output is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
