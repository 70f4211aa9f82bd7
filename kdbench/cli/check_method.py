"""``kdbench check-method``: the conformance suite on one method."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click


@click.command("check-method")
@click.argument("name")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="Hyper-parameter; repeatable.")
@click.option("--teacher", default="timm:test_resnet", show_default=True)
@click.option("--student", default="timm:test_resnet", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def check_method(
    settings: Any, name: str, params: tuple[str, ...], teacher: str, student: str, as_json: bool
) -> None:
    """Check the registered method NAME on tiny timm networks, on the CPU. Exit code 1 when a check fails."""
    import yaml

    from kdbench.errors import KdbenchError

    registry = settings.registry()
    registry.get("methods", name)
    values = {}
    for item in params:
        key, separator, text = item.partition("=")
        if not separator:
            raise KdbenchError(f"--param {item}: expected KEY=VALUE")
        values[key] = yaml.safe_load(text)
    from kdbench.testing import check_method as check

    report = check(name, params=values, teacher=teacher, student=student, registry=registry)
    if as_json:
        click.echo(
            json.dumps({"method": report.method, "checks": [asdict(c) for c in report.checks]}, indent=2)
        )
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{report.method} on {teacher} -> {student}")
        for column in ("check", "verdict", "seen", "how to fix it"):
            table.add_column(column)
        for c in report.checks:
            table.add_row(c.name, "pass" if c.passed else "FAIL", c.seen, c.fix)
        Console().print(table)
    sys.exit(0 if report.passed else 1)
