"""``kdbench submit``: bring the records of a run to a board, and say what changes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("submit")
@click.argument("run", metavar="RUN_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--board",
    metavar="BOARD",
    help="Name of a folder under leaderboards/, or its path (default: the name of the matrix).",
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and leave.")
@click.option(
    "--replace", is_flag=True, help="Replace records of cells that the board has with another result."
)
def submit(run: Path, board: str | None, dry_run: bool, replace: bool) -> None:
    """Collect the records of RUN_DIR into a board and build it.

    Refused are records that are not valid, not finite or edited after they were written, and those that would
    mix protocols or revisions of a data set. What changes in the tables is printed as a diff.
    """
    from kdbench.cli.leaderboard import ROOT, folder_name
    from kdbench.leaderboard.submit import plan_submission
    from kdbench.leaderboard.submit import submit as write
    from kdbench.results.store import RunFolder

    if board is None:
        folder = ROOT / folder_name(str(RunFolder(run).matrix()["name"]), run / "matrix.json")
    else:
        path = Path(board)
        folder = path if path.is_dir() or len(path.parts) > 1 else ROOT / folder_name(board, Path("--board"))
    plan = plan_submission(run, folder)
    for line in plan.replaced:
        click.echo(f"other result: {line}")
    for line in plan.changes or ["the tables stay as they are"]:
        click.echo(line)
    counts = f"{len(plan.added)} new, {len(plan.replacing)} other results, {len(plan.same)} there already"
    if dry_run:
        hint = "; --replace is needed for the other results" if plan.replacing and not replace else ""
        click.echo(f"{folder}: {counts}; nothing written{hint}")
        return
    total = write(plan, replace=replace)
    click.echo(f"{folder}: {counts}; built from {total} records")
