"""``kdbench tune``: search hyper-parameters, with the same number of trials for every method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._options import device_option, runs_option, set_option, workers_option

if TYPE_CHECKING:
    from kdbench.launch.search import Search


@click.command("tune")
@click.argument("matrix")
@click.option(
    "--method", "methods", multiple=True, metavar="M", help="Only this method, by name or label; repeatable."
)
@click.option(
    "--trials", type=click.IntRange(min=1), help="Trials of each method in all (default: tune.trials)."
)
@set_option()
@click.option("--dry-run", is_flag=True, help="Say what would be searched, and leave.")
@workers_option("Trials")
@device_option("Where trials run.")
@runs_option()
@click.pass_obj
def tune(
    settings: Any,
    matrix: str,
    methods: tuple[str, ...],
    trials: int | None,
    sets: tuple[str, ...],
    dry_run: bool,
    workers: int | None,
    device: str,
    runs: Path,
) -> None:
    """Search hyper-parameters of the methods of MATRIX, as its `tune` block says.

    No trial sees a test image. Finished trials are kept, so the same command is also how to go on, and a larger
    --trials how to search further. `kdbench run-matrix MATRIX` then has the cells with what was found.
    """
    from kdbench.launch.progress import make_progress
    from kdbench.launch.session import Options
    from kdbench.launch.tune import Tuner
    from kdbench.matrix import load_matrix
    from kdbench.matrix.studies import TUNED, read_studies
    from kdbench.results.store import RunFolder

    registry = settings.registry()
    loaded = load_matrix(matrix, sets=sets)
    folder = RunFolder(runs / loaded.matrix.name)
    options = Options(workers=workers, device=device, disable=tuple(settings.disable))
    tuner = Tuner(registry, loaded, folder, options, make_progress, methods)
    for warning in tuner.warnings:
        click.echo(f"warning: {warning}", err=True)
    assert loaded.matrix.tune is not None
    budget = trials or loaded.matrix.tune.trials
    if dry_run:
        _print(tuner.searches, {}, budget)
        return
    interrupted = tuner.run(budget)
    _print(tuner.searches, read_studies(folder.path), budget)
    if interrupted:
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    click.echo(f"found:   {folder.path / TUNED}")
    click.echo(f"next:    kdbench run-matrix {matrix}")


def _print(searches: list[Search], found: dict[str, Any], budget: int) -> None:
    from kdbench.cli._table import print_table

    rows = []
    for search in searches:
        study = found.get(search.spec.key)
        trials = study.trials[:budget] if study else []
        best = study.best(budget) if study else None
        state = f"{len(trials)}/{budget if search.searchable else 0}"
        rows.append(
            [
                search.spec.variant,
                search.spec.trial.pair,
                search.spec.trial.dataset.label,
                state,
                str(sum(t.value is None for t in trials)),
                "-" if best is None else f"{best.value:.2f}",
                _told(search, best),
            ]
        )
    columns = ("method", "pair", "data set", "trials", "failed", "best on validation", "hyper-parameters")
    print_table(columns, rows, title="searches")


def _told(search: Search, best: Any) -> str:
    from kdbench.cli._table import range_text

    if search.reason is not None:
        return f"not applicable: {search.reason}"
    if not search.space:
        return "nothing to search: as given"
    if best is not None:
        values = best.params.items()
        return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
    return "searched: " + ", ".join(f"{k} {range_text(where)}" for k, where in search.space.items())
