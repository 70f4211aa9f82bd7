"""Tables and JSON on standard output."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kdbench.registry import Registry


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print aligned columns; on a terminal they are wrapped to its width, in a pipe each row is one line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 100_000)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        # The last column wraps first: it is the prose.
        table.add_column(column, overflow="fold", no_wrap=i == 0, justify="left")
    for row in rows:
        # Text objects: a plug-in's "[...]" is no markup.
        table.add_row(*(Text(" ".join(str(cell).split())) for cell in row))
    if title:
        console.print(Text(title, style="bold"))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_json(value: Any) -> None:
    """Print a value as indented JSON; dataclasses, sets, paths and types are written as plain values."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def entry_row(kind: str, entry: Any) -> dict[str, Any]:
    """Return the fields of a registry entry as plain values; its own ``kind`` becomes ``output_kind``."""
    fields = plain(entry)
    if "kind" in fields:
        fields["output_kind"] = fields.pop("kind")
    return {"kind": kind, **fields}


def ordinary_capabilities(registry: Registry) -> frozenset[str]:
    """Return the capabilities that every task has, so that to need one tells nothing."""
    each: list[frozenset[str]] = [r.entry.capabilities for r in registry.all("tasks")]  # type: ignore[attr-defined]
    return frozenset.intersection(*each) if each else frozenset()


def plain(value: Any) -> Any:
    """Return `value` made of what JSON has; sets become sorted lists, anything unknown its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    return value.as_posix() if isinstance(value, Path) else str(value)


def range_text(where: Mapping[str, Any]) -> str:
    """Return where a hyper-parameter is searched: ``0.1 to 10 (log)``, or ``a, b``."""
    if "choices" in where:
        return ", ".join(map(str, where["choices"]))
    return f"{where['low']:g} to {where['high']:g}" + (" (log)" if where["log"] else "")
