"""``kdbench status``: how far a run is, from its files; from any machine that sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of run folders.",
)
def status(matrix: str, watch: bool, as_json: bool, every: float, runs: Path) -> None:
    """Show how far the run of MATRIX is: a file, the name of a matrix, or a run folder.

    Only files are read, so it works from any machine that sees the run folder, and disturbs nobody.
    """
    import time

    from kdbench.results.progress import RunWatch
    from kdbench.results.store import RunFolder

    look = RunWatch(RunFolder(_folder(matrix, runs))).look
    while True:
        seen = look()
        if as_json:
            click.echo(json.dumps(seen.as_dict(), indent=None if watch else 2))
        else:
            if watch:
                click.clear()
            _print(seen)
        if not watch or not (seen.running or seen.parent):
            return
        time.sleep(every)


def _folder(matrix: str, runs: Path) -> Path:
    """Return the run folder that `matrix` means. Raises KdbenchError."""
    from kdbench.errors import KdbenchError, did_you_mean

    for folder in (runs / matrix, Path(matrix)):
        if (folder / "matrix.json").exists():
            return folder
    if matrix.endswith((".yaml", ".yml")):
        from kdbench.matrix import load_matrix

        folder = runs / load_matrix(matrix).matrix.name
        if (folder / "matrix.json").exists():
            return folder
    known = [p.parent.name for p in runs.glob("*/matrix.json")]
    raise KdbenchError(f"{runs / Path(matrix).stem}: no run of this matrix{did_you_mean(matrix, known)}")


def _print(seen: RunStatus) -> None:
    counts = ", ".join(f"{n} {name}" for name, n in sorted(seen.counts.items()))
    click.echo(f"{seen.name}: {seen.cells} cells: {counts}")
    click.echo(f"run-matrix: {seen.parent or 'not at work'}")
    if seen.left_s is not None:
        from datetime import timedelta

        click.echo(f"time left: {timedelta(seconds=round(seen.left_s))}, at the pace of now")
    _list([_row(r) for r in seen.running])
    _list([f"{f.status}: {f.label}: {f.message}" for f in seen.failures])


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
