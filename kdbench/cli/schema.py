"""`kdbench schema`: the JSON schema of a file format, for editors and other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("schema")
@click.argument("kind", type=click.Choice(["matrix", "recipe", "record"]), default="matrix")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file instead of the terminal.",
)
def schema(kind: str, output: Path | None) -> None:
    """Print the JSON schema of a matrix file, a recipe file or a record (result.json)."""
    import json

    text = json.dumps(_schema(kind), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    from kdbench.errors import KdbenchError
    from kdbench.results.store import atomic_write_bytes

    if not output.absolute().parent.is_dir():
        raise KdbenchError(f"--output {output}: no such folder {output.parent}")
    atomic_write_bytes(output, text.encode())


def _schema(kind: str) -> dict[str, Any]:
    if kind == "record":
        from kdbench.matrix.json_schema import DIALECT
        from kdbench.results.schema import Record

        return {"$schema": DIALECT, **Record.model_json_schema(), "title": "kdbench record"}
    from kdbench.matrix.json_schema import matrix_schema, recipe_schema

    return matrix_schema() if kind == "matrix" else recipe_schema()
