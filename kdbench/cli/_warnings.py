"""The warnings of a matrix's records, told when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdbench.launch.plan import Plan


def print_warnings(plan: Plan) -> None:
    """Print the warnings of cells that only measure speed, and how many the others have and where.

    A speed without a figure has its reason in a warning, as has a machine that drifted; what training warns of
    is the same for many cells. Raises RecordError.
    """
    from kdbench.results.store import RESULT, read_record_dict

    cells, total = 0, 0
    for cell in plan.cells:
        if cell.status != "done":
            continue
        found = read_record_dict(cell.folder / RESULT).get("warnings") or []
        if cell.pattern.file.only_speed:
            for text in found:
                click.echo(f"warning: {cell.label}: {text}")
        else:
            cells, total = cells + bool(found), total + len(found)
    if total:
        where = plan.run.path / "cells" / "*" / RESULT
        click.echo(f"{total} warning(s) in {cells} record(s): see `warnings` in {where}")
