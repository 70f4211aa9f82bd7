"""`kdbench show`: one method, architecture, data set, task ... or shipped matrix in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli import Settings
from kdbench.errors import UnknownName

if TYPE_CHECKING:
    from kdbench.registry import Registry


@click.command("show")
@click.argument("words", nargs=-1, required=True, metavar="[KIND] NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(settings: Settings, words: tuple[str, ...], as_json: bool) -> None:
    """Show a method, architecture, data set, task, evaluator, launcher, sink or matrix.

    KIND may be left out when only one kind has the NAME.
    """
    from kdbench.cli._facts import entry_facts, matrix_facts
    from kdbench.cli._matrices import MATRICES, kind_of
    from kdbench.cli._table import print_json

    if len(words) > 2:
        raise click.UsageError(f"expected [KIND] NAME, got {len(words)} words")
    registry = settings.registry()
    name = words[-1]
    kind = kind_of(words[0]) if len(words) == 2 else _find_kind(registry, name)
    facts = matrix_facts(name) if kind == MATRICES else entry_facts(registry, registry.get(kind, name))
    if as_json:
        print_json(facts)
    elif kind == MATRICES:
        click.echo(f"matrix {name}: {facts['summary']}\n{facts['path']}\n\n{facts['text'].rstrip()}")
    else:
        _print(facts)


def _find_kind(registry: Registry, name: str) -> str:
    """Return the only kind that has `name`. Raises UnknownName for none or several."""
    from kdbench.cli._matrices import MATRICES, shipped_matrices
    from kdbench.registry import KINDS, mentioned, suggestion

    key = name.partition(":")[0]
    matrices = [m.name for m in shipped_matrices()]
    # A name in conflict is found too: the registry then tells who gives it.
    taken = {(kind, r.entry.name) for kind in KINDS for r in registry.all(kind)} | set(registry.conflicts())
    found: list[str] = [kind for kind in KINDS if (kind, key if kind == "architectures" else name) in taken]
    if name in matrices:
        found.append(MATRICES)
    if len(found) > 1:
        choices = " or ".join(f"`kdbench show {kind} {name}`" for kind in found)
        raise UnknownName(f"{name!r} is the name of several things: use {choices}")
    if found:
        return found[0]
    if ":" in name:
        return "architectures"
    for kind in KINDS:
        if registry.withheld(kind, name):
            return kind
    known = [*(n for kind in KINDS for n in registry.names(kind)), *matrices]
    hint = suggestion(name, known) or mentioned(name, (r.entry for kind in KINDS for r in registry.all(kind)))
    raise UnknownName(f"nothing is named {name!r}{hint or ': see `kdbench list`'}")


#: Keys of the first block, in order, with the words they are shown under.
_HEAD = {
    "summary": "summary",
    "paper": "paper",
    "needs_text": "needs",
    "fidelity": "fidelity",
    "task": "task",
    "output_kind": "output",
    "params_count": "parameter count",
    "counted_at": "counted at",
    "capabilities": "capabilities",
    "primary": "primary metric",
    "tags": "tags",
    "target": "target",
    "version": "version",
}


def _print(facts: dict[str, Any]) -> None:
    from kdbench.cli._table import print_table, range_text
    from kdbench.registry import singular

    git = f", git {facts['plugin_git']}" if facts["plugin_git"] else ""
    provider = f"{facts['distribution']} {facts['distribution_version']} (plug-in {facts['plugin']}{git})"
    told = {key: label for key, label in _HEAD.items() if facts.get(key) not in (None, "", [])}
    head = [(label, _text(facts[key])) for key, label in told.items()]
    print_table((singular(facts["kind"]), facts["name"]), [*head, ("provider", provider)])
    if facts["documentation"]:
        click.echo(f"\n{facts['documentation']}")
    if facts.get("parameters"):
        rows = [
            [p["name"], p["type"], "required" if p["required"] else repr(p["default"]), p["description"]]
            for p in facts["parameters"]
        ]
        _section("parameters", ("name", "type", "default", "description"), rows)
    if facts.get("presets"):
        rows = [[n, ", ".join(f"{k}={v!r}" for k, v in over.items())] for n, over in facts["presets"].items()]
        _section("presets", ("preset", "overrides"), rows)
    if facts.get("search"):
        rows = [[n, range_text(where), where["source"]] for n, where in facts["search"].items()]
        _section("where `kdbench tune` searches", ("name", "range", "source"), rows)
    if facts.get("metrics"):
        better = {True: "higher", False: "lower", None: "-"}
        rows = [
            [m["name"], better[m["higher_is_better"]], m["unit"], "yes" if m["primary"] else "", m["variant"]]
            for m in facts["metrics"]
        ]
        _section("metrics", ("name", "better", "unit", "primary", "variant"), rows)
    if isinstance(facts.get("facts"), dict):
        _section("facts", ("fact", "value"), [[k, _text(v)] for k, v in facts["facts"].items()])
    elif facts.get("facts"):
        click.echo(f"\nfacts: {facts['facts']}")


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from kdbench.cli._table import print_table

    click.echo()
    used = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    print_table([columns[i] for i in used], [[row[i] for i in used] for row in rows], title=title)


def _text(value: Any) -> str:
    if isinstance(value, list):
        shown = [str(v) for v in value]
        return ", ".join(shown if len(shown) <= 12 else [*shown[:10], f"... ({len(shown)} in all)"])
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
