"""``kdbench prepare``: fetch the data and train the teachers of a matrix before its other cells start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli._options import device_option, only_option, runs_option, set_option, workers_option

if TYPE_CHECKING:
    from kdbench.launch.plan import Plan
    from kdbench.launch.session import Session


@click.command("prepare")
@click.argument("matrix")
@set_option()
@only_option()
@click.option("--data-only", is_flag=True, help="Fetch data, train nothing.")
@click.option("--no-smoke", is_flag=True, help="Leave out the training step of each method.")
@workers_option("Teachers")
@device_option("Where teachers train.")
@runs_option()
@click.pass_obj
def prepare(
    settings: Any,
    matrix: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    data_only: bool,
    no_smoke: bool,
    workers: int | None,
    device: str,
    runs: Path,
) -> None:
    """Fetch the data sets of MATRIX and train its teachers, which run-matrix then finds, and try each method.

    Each method trains one step, of which nothing stays. Exit code 1 when a teacher or a step fails.
    """
    from kdbench.engine.build_dataset import make_dataset
    from kdbench.launch.plan import Planner
    from kdbench.launch.progress import make_progress
    from kdbench.launch.session import Options, Session
    from kdbench.matrix import expand, load_matrix
    from kdbench.matrix.studies import read_studies
    from kdbench.results.store import RunFolder

    registry = settings.registry()
    loaded = load_matrix(matrix, sets=sets)
    folder = RunFolder(runs / loaded.matrix.name)
    found = read_studies(folder.path) if loaded.matrix.tune else None
    seen = []
    for spec in expand(loaded, only=only, found=found).cells:
        key = (spec.dataset.name, str(spec.dataset.args))
        if key not in seen:
            seen.append(key)
            dataset = make_dataset(registry, spec.dataset.name, spec.dataset.args)
            dataset.prepare()
            info = dataset.describe()
            click.echo(
                f"{spec.dataset.label}: {info.n_train} + {info.n_test} images, revision {info.revision}"
            )
    if data_only:
        return
    plan = Planner(registry, loaded, folder, settings.disable, device).plan(only)
    options = Options(workers=workers, device=device, sinks=("none",), only_teachers=True)
    session = Session(registry, plan, options, make_progress())
    cells = session.open_cells()
    if not cells:
        click.echo("teachers: nothing to do")
    elif session.run():
        sys.exit(130)
    bad = [c for c in cells if c.status != "done"]
    for cell in bad:
        click.echo(f"{cell.status}: {cell.label}: {cell.reason}", err=True)
    if not no_smoke and not _smoke(plan, session):
        sys.exit(1)
    sys.exit(1 if bad else 0)


def _smoke(plan: Plan, session: Session) -> bool:
    """Train a step of each method whose teachers are there; return whether all went well."""
    from kdbench.launch.smoke import first_of_each, smoke

    done = {c.id for c in plan.cells if c.status == "done"}
    ready = [c for c in first_of_each(plan.cells) if done.issuperset(c.after)]
    problems = 0
    device = session.device()
    for cell in ready:
        click.echo(f"a step of {cell.label}", err=True)
        problem = smoke(cell, device)
        if problem is not None:
            problems += 1
            click.echo(f"failed: {cell.label}: {problem}", err=True)
    click.echo(f"methods: {len(ready) - problems} of {len(ready)} trained a step")
    return not problems
