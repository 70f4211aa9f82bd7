"""`kdbench list`: everything that a matrix file can name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli import Settings

if TYPE_CHECKING:
    from kdbench.registry import Registered


@click.command("list")
@click.argument("kind", required=False)
@click.option(
    "--filter",
    "pattern",
    metavar="TEXT",
    help="Only entries with TEXT in any column, or whose name fits a pattern with * and ?.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@click.pass_obj
def list_(settings: Settings, kind: str | None, pattern: str | None, as_json: bool) -> None:
    """List what plug-ins provide, and the shipped matrices.

    KIND is one of methods, architectures, datasets, tasks, evaluators, launchers, sinks, matrices; without it
    all are listed.
    """
    from kdbench.cli._matrices import MATRICES, kind_of
    from kdbench.cli._table import print_json
    from kdbench.registry import KINDS, suggestion

    kinds = [kind_of(kind)] if kind else [*KINDS, MATRICES]
    keep = _matcher(pattern)
    rows: list[dict[str, Any]] = []
    for each in kinds:
        rows += _matrix_rows(keep) if each == MATRICES else _entry_rows(settings, each, keep, bool(pattern))
    if as_json:
        print_json(rows)
        return
    _print(rows, kinds, sections=kind is None)
    if kinds != [MATRICES] and not settings.registry().plugins():
        click.echo("no plug-ins: is kdbench installed? (see `kdbench plugins`)", err=True)
    elif not rows:
        what = kind_of(kind) if kind else "entries"
        near = (
            suggestion(pattern, (n for k in kinds if k != MATRICES for n in settings.registry().names(k)))
            if pattern
            else ""
        )
        click.echo(f"no {what} match {pattern!r}{near}" if pattern else f"no {what}", err=True)


def _matcher(pattern: str | None) -> Callable[..., bool]:
    """Return a test whether any of some texts has the pattern; the first text is the name."""
    if not pattern:
        return lambda *texts: True
    wanted = pattern.lower()
    if any(c in wanted for c in "*?["):
        return lambda name, *texts: (
            fnmatchcase(name.lower(), wanted) or fnmatchcase(name.lower().rpartition(":")[2], wanted)
        )
    return lambda *texts: any(wanted in text.lower() for text in texts)


def _entry_rows(
    settings: Settings, kind: str, keep: Callable[..., bool], filtered: bool
) -> Iterable[dict[str, Any]]:
    from kdbench.cli._table import ordinary_capabilities

    registry = settings.registry()
    ordinary = ordinary_capabilities(registry)
    for item in registry.all(kind):
        if getattr(item.entry, "namespace", False):
            yield from _namespace_rows(item, keep, filtered)
        elif keep(item.name, *_texts(row := _row(item, ordinary))):
            yield row


def _namespace_rows(item: Registered, keep: Callable[..., bool], filtered: bool) -> Iterable[dict[str, Any]]:
    from kdbench.errors import PluginError

    try:
        models = item.models()
    except PluginError as error:
        click.echo(f"kdbench: warning: {error}", err=True)
        models = []
    if filtered:
        for name in models:
            if keep(name):
                yield {**_row(item), "name": name, "summary": "", "namespace": False}
        return
    count = f"{len(models):,} " if models else ""
    yield {
        **_row(item),
        "name": f"{item.name}:*",
        "summary": f"any of {item.name}'s {count}models",
        "models": len(models) or None,
    }


def _texts(row: dict[str, Any]) -> list[str]:
    """Return every text of a row that a user sees, or that says what the entry is."""
    return [
        _text(row.get(key)) for key in ("summary", "tags", "paper", "needs_text", "distribution", "target")
    ]


def _row(item: Registered, ordinary: Collection[str] = ()) -> dict[str, Any]:
    from kdbench.cli._table import entry_row

    return {
        **entry_row(item.kind, item.entry),
        "version": item.version,
        "plugin": item.plugin.name,
        "distribution": item.plugin.distribution,
        **({"needs_text": needs.describe(ordinary)} if (needs := getattr(item.entry, "needs", None)) else {}),
    }


def _matrix_rows(keep: Callable[..., bool]) -> Iterable[dict[str, Any]]:
    from kdbench.cli._matrices import MATRICES, shipped_matrices

    for m in shipped_matrices():
        if keep(m.name, m.summary):
            yield {"kind": MATRICES, "name": m.name, "summary": m.summary, "path": m.path.as_posix()}


def _print(rows: list[dict[str, Any]], kinds: list[str], *, sections: bool) -> None:
    from kdbench.cli._matrices import MATRICES
    from kdbench.cli._table import print_table

    first = True
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        if not mine:
            continue
        columns = {"name": "name", "summary": "summary"}
        if kind == "methods":
            columns |= {"paper": "paper", "needs": "needs_text"}
        # on a terminal, room is for what differs between the rows
        if kind != MATRICES and not (sys.stdout.isatty() and len({r["distribution"] for r in mine}) == 1):
            columns["plug-in"] = "distribution"
        if not first:
            click.echo()
        first = False
        cells = [[_text(row.get(key)) for key in columns.values()] for row in mine]
        print_table(list(columns), cells, title=kind if sections else "")


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "")
