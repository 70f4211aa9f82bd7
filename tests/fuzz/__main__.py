"""``python -m tests.fuzz``: many inputs for everything that reads what strangers give, with counts."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE.parents[1] / "plugins")]

from . import engine, guided  # noqa: E402
from .targets import TARGETS  # noqa: E402


@click.command()
@click.option("--runs", default=50_000, show_default=True, help="Inputs over all targets.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal inputs.")
@click.option(
    "--only", "names", multiple=True, type=click.Choice([t.name for t in TARGETS]), help="Repeatable."
)
@click.option(
    "--engine",
    "kind",
    type=click.Choice(["mutate", "atheris"]),
    default="mutate",
    show_default=True,
    help="atheris: guided by coverage, where it is installed.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), default="fuzz-found", help="Where inputs that broke go."
)
def main(runs: int, seed: int, names: tuple[str, ...], kind: str, keep: Path) -> None:
    """Exit code 1 where an input raised, hung, wrote elsewhere, ran something or gave an unclear error."""
    chosen = [t for t in TARGETS if not names or t.name in names]
    shares = sum(t.share for t in chosen)
    if kind == "atheris":
        sys.exit(_guided([(t.name, -(-runs * t.share // shares)) for t in chosen], seed, keep))
    outcomes = []
    heads = (
        ("inputs", 8),
        ("good", 8),
        ("refused", 9),
        ("errors", 8),
        ("slowest", 9),
        ("time", 8),
        ("broken", 8),
    )
    click.echo(f"{'target':<16}" + "".join(f"{name:>{width}}" for name, width in heads))
    for target in chosen:
        outcomes.append(one := engine.run(target, -(-runs * target.share // shares), seed))
        click.echo(
            f"{one.name:<16}{one.good + one.refused:>8}{one.good:>8}{one.refused:>9}{len(one.messages):>8}"
            f"{one.slowest_s:>8.2f}s{one.seconds:>7.0f}s{len(one.found):>8}"
        )
    total = sum(o.good + o.refused for o in outcomes)
    broken = sum(len(o.found) for o in outcomes)
    click.echo(f"seed {seed}: {total} inputs read, {broken} broken")
    for outcome in outcomes:
        for problem in dict.fromkeys(p for _, p in outcome.found):
            click.echo(f"\n{outcome.name}: {problem}")
    for path in engine.keep(outcomes, keep) if broken else ():
        click.echo(f"kept: {path}")
    sys.exit(1 if broken else 0)


def _guided(targets: list[tuple[str, int]], seed: int, keep: Path) -> int:
    if not guided.available():
        raise click.ClickException("atheris is not installed; `pip install atheris` where it has a wheel")
    total = broken = 0
    for name, count in targets:
        read, problem = guided.run_guided(name, count, seed, keep)
        total, broken = total + read, broken + bool(problem)
        click.echo(f"{name:<16}{read:>8} inputs  {'BROKEN' if problem else 'ok'}")
        if problem:
            click.echo(problem)
    click.echo(f"seed {seed}, guided by coverage: {total} inputs read, {broken} targets broken")
    return 1 if broken else 0


if __name__ == "__main__":
    main()
