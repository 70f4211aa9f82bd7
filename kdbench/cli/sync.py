"""``kdbench sync``: replay the records of a run folder into MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kdbench.cli._options import runs_option, tracking_option


@click.command("sync")
@click.argument("run", metavar="RUN_DIR|MATRIX_NAME")
@tracking_option()
@runs_option("Folder of run folders, for a matrix name.")
def sync(run: str, tracking_uri: str | None, runs: Path) -> None:
    """Write every record of a run to MLflow; safe to repeat.

    Records that MLflow holds already are left alone, changed ones replace their run. A broken record is
    reported and skipped, and the exit code is then 1.
    """
    from kdbench.leaderboard.mirrored import tell
    from kdbench.redact import redact
    from kdbench.results.mlflow_sink import MlflowSink
    from kdbench.results.store import RunFolder
    from kdbench.results.sync import sync as replay

    folder = _find(run, runs)
    sink = MlflowSink(synced=True)
    told = tell(RunFolder(folder).good_records())
    counts = replay(folder, sink, uri=tracking_uri, annotations=told.annotations, summaries=told.summaries)
    fresh = counts.summaries_written or 0
    for line in (*counts.problems, *sink.artifact_warnings):
        click.echo(line, err=True)
    click.echo(
        f"{folder} -> {redact(sink.uri)}: cells: {counts.written} written, {counts.unchanged} unchanged, "
        f"{counts.failed} failed; summaries: {fresh} written, {counts.summaries - fresh} unchanged"
    )
    if counts.failed:
        sys.exit(1)


def _find(run: str, runs: Path) -> Path:
    """Return the run folder of a path or of a matrix name."""
    from kdbench.errors import UnknownName, did_you_mean

    path = Path(run)
    if (path / "cells").is_dir():
        return path
    if len(path.parts) == 1 and (runs / run / "cells").is_dir():
        return runs / run
    known = sorted(p.name for p in runs.iterdir() if (p / "cells").is_dir()) if runs.is_dir() else []
    raise UnknownName(f"{run}: neither a run folder nor a matrix under {runs}/{did_you_mean(run, known)}")
