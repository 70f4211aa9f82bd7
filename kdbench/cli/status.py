"""``kdbench status``: how far a run is, from its files; from any machine that sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._options import runs_option

if TYPE_CHECKING:
    from kdbench.results.progress import RunStatus

#: Lines of a list that are shown on a terminal.
MOST = 20


@click.command("status")
@click.argument("matrix")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until nobody works on the run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with --watch one object a line.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds of --watch."
)
@runs_option()
def status(matrix: str, watch: bool, as_json: bool, every: float, runs: Path) -> None:
    """Show how far the run of MATRIX is: a file, the name of a matrix, or a run folder.

    Only files are read, so it works from any machine that sees the run folder, and disturbs nobody.
    """
    import time

    from kdbench.results.progress import RunWatch
    from kdbench.results.store import RunFolder

    folder = _folder(matrix, runs)
    look, again = RunWatch(RunFolder(folder)).look, _again(matrix, folder)
    while True:
        seen = look()
        if as_json:
            click.echo(json.dumps(seen.as_dict(), indent=None if watch else 2))
        else:
            if watch:
                click.clear()
            _print(seen, again)
        if not watch:
            return
        if seen.idle:
            why = "nobody works on this run" if seen.unfinished else "nothing is left to run"
            click.echo(f"{seen.name}: {why}: --watch ends", err=True)
            return
        time.sleep(every)


def _folder(matrix: str, runs: Path) -> Path:
    """Return the run folder that `matrix` means. Raises KdbenchError."""
    from kdbench.errors import KdbenchError, did_you_mean

    for folder in (runs / matrix, Path(matrix)):
        if (folder / "matrix.json").exists():
            return folder
    name = Path(matrix).name
    if matrix.endswith((".yaml", ".yml")):
        from kdbench.matrix import load_matrix

        name = load_matrix(matrix).matrix.name
        if (runs / name / "matrix.json").exists():
            return runs / name
    known = [p.parent.name for p in runs.glob("*/matrix.json")]
    why = "no run of this matrix has begun, or it is still being planned"
    raise KdbenchError(f"{runs / name}: {why}{did_you_mean(name, known)}")


def _again(matrix: str, folder: Path) -> str:
    """Return the command that goes on with the run: the one that began it, as far as it is known."""
    import shlex

    from kdbench.cli._matrices import shipped_matrices
    from kdbench.results.progress import read_command
    from kdbench.results.store import RunFolder

    if (known := read_command(RunFolder(folder))) is not None:
        return known

    shipped = folder.name in [m.name for m in shipped_matrices()]
    file = matrix if Path(matrix).is_file() else folder.name if shipped else "MATRIX"
    runs = [] if folder.parent == Path("runs") else ["--runs", str(folder.parent)]
    return shlex.join(["kdbench", "run-matrix", file, *runs])


def _print(seen: RunStatus, again: str) -> None:
    counts = ", ".join(f"{n} {name}" for name, n in sorted(seen.counts.items()))
    click.echo(f"{seen.name}: {seen.cells} cells: {counts}")
    click.echo(f"run-matrix: {seen.parent or 'not at work'}")
    click.echo(_outlook(seen, again))
    _list([_row(r) for r in seen.running])
    _list([f"{f.status}: {f.label}: {f.message}" for f in seen.failures])


def _outlook(seen: RunStatus, again: str) -> str:
    """Return what is left, in time where somebody works on it."""
    if not seen.unfinished:
        more = f"; `{again} --rerun failed` runs again what failed" if seen.failures else ""
        return f"nothing is left to run{more}"
    if seen.idle:
        return f"nobody works on this run, {seen.unfinished} cell(s) are left: `{again}` goes on"
    if seen.left_s is None:
        return "time left: unknown before the first cells"
    from datetime import timedelta

    return f"time left: {timedelta(seconds=round(seen.left_s))}, at the pace of now"


def _row(cell: Any) -> str:
    epoch = f"epoch {cell.epoch}/{cell.epochs}" if cell.epochs else "starting"
    sign = f"{'SILENT for' if cell.silent else 'sign of life'} {cell.beat_age_s:.0f} s"
    return (
        f"running: {cell.label}: {epoch} on {cell.host} ({cell.pid}), {sign}{'' if cell.silent else ' ago'}"
    )


def _list(lines: list[str]) -> None:
    for line in lines[:MOST]:
        click.echo(line)
    if len(lines) > MOST:
        click.echo(f"... and {len(lines) - MOST} more; --json has all")
