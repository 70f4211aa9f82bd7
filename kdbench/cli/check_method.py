"""``kdbench check-method``: the conformance suite on one method."""

from __future__ import annotations

import sys
from typing import Any

import click

from kdbench.cli._table import print_json, print_table


@click.command("check-method")
@click.argument("name")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="Hyper-parameter; repeatable.")
@click.option("--preset", default=None, metavar="NAME", help="A preset of the method; --param goes over it.")
@click.option("--teacher", default="timm:test_resnet", show_default=True, help="Architecture of teachers.")
@click.option(
    "--student", help="Architecture of the student (default: the method entry's, mostly timm:test_resnet)."
)
@click.option("--check", "only", multiple=True, metavar="CHECK", help="Run this check only; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def check_method(
    settings: Any,
    name: str,
    params: tuple[str, ...],
    preset: str | None,
    teacher: str,
    student: str | None,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check the registered method NAME on tiny timm networks, on the CPU. Exit code 1 when a check fails."""
    registry = settings.registry()
    registry.get("methods", name)
    values = dict(_parsed(item) for item in params)
    from kdbench.testing import check_method as check

    report = check(
        name,
        params=values,
        preset=preset,
        teacher=teacher,
        student=student,
        only=only,
        registry=registry,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print_table(
            ("check", "verdict", "seconds", "seen", "how to fix it"),
            [
                (c.name, "pass" if c.passed else "FAIL", f"{c.seconds:.2f}", c.seen, c.fix)
                for c in report.checks
            ],
            title=report.title(),
        )
    sys.exit(0 if report.passed else 1)


def _parsed(item: str) -> tuple[str, Any]:
    """Return key and value of ``KEY=VALUE``, the value read as YAML. Raises KdbenchError."""
    import yaml

    from kdbench.errors import KdbenchError

    key, separator, text = item.partition("=")
    if not separator or not key:
        raise KdbenchError(f"--param {item}: expected KEY=VALUE")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as e:
        reason = str(e).splitlines()[0]
        raise KdbenchError(f"--param {key}: '{text}' is not a YAML value ({reason})") from e
