"""``kdbench reproduce``: run one cell again from its record, and say whether it agrees."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli import Settings
from kdbench.cli._options import device_option, runs_option

if TYPE_CHECKING:
    from kdbench.leaderboard.agreement import Agreement

#: Exit codes.
AGREES, DIFFERS, CANNOT = 0, 1, 2


@click.command("reproduce")
@click.argument("record")
@click.option("--board", metavar="BOARD", help="RECORD is the start of a cell id on this board.")
@click.option(
    "--data", "places", multiple=True, metavar="KEY=PATH", help="Where the data set lies, e.g. root=DIR."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a teacher's weights, found by its sha256; repeatable.",
)
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    metavar="NAME",
    help="Measure this too, if the record has it; repeatable (default: as in the cell.json beside the record).",
)
@device_option("Where it runs; auto: as the record.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads on the CPU (default: as many as the record had)."
)
@runs_option("Folder for the new run folder.")
@click.pass_obj
def reproduce(
    settings: Settings,
    record: str,
    board: str | None,
    places: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    evaluators: tuple[str, ...],
    device: str,
    threads: int | None,
    runs: Path,
) -> None:
    """Run the cell of RECORD again and compare; its teachers are trained again where their weights are not there.

    RECORD is a record's JSON file, a cell's folder, or with --board the start of a cell id. Exit code 0: it
    agrees, or its weights differ and it is compatible: elsewhere than in an equal environment on a CPU, within
    what its row's seeds predict. 1: it differs. 2: it cannot be run again or told.
    """
    from kdbench.launch.rebuild import Here
    from kdbench.launch.reproduce import (
        Reproduction,
        choose_device,
        data_beside,
        evaluators_beside,
        place_of,
    )
    from kdbench.leaderboard.agreement import agreement
    from kdbench.leaderboard.rows import top1
    from kdbench.leaderboard.text import number
    from kdbench.results.store import read_record

    path = _find(record, board)
    old = read_record(path)
    registry = settings.registry()
    if old.status == "not_applicable":
        click.echo(f"{path}: is not applicable: there is nothing to run")
        sys.exit(CANNOT)
    name = str((old.identity.get("dataset") or {}).get("name"))
    location = registry.get("datasets", name).load().location
    known = {key: value for key, value in data_beside(path).items() if key in location}
    here = Here(
        data={**known, **dict(map(_place, places))},
        checkpoints=checkpoints,
        evaluators=evaluators or evaluators_beside(path),
        device=choose_device(registry, old, device, settings.disable),
        threads=threads,
        disable=settings.disable,
    )
    place = place_of(path)
    reproduction = Reproduction(registry, old, place, here)
    again = reproduction.run(_fresh(runs, old.cell_id), lambda line: click.echo(line, err=True))
    for line in again.teachers:
        click.echo(f"teacher: {line}")
    click.echo(f"top-1: {number(top1(old), 2)} % there, {number(top1(again.record), 2)} % here")
    _report(agreement(old, again.record, place.records()))


def _report(verdict: Agreement) -> None:
    for line in verdict.environment:
        click.echo(f"environment: {line}")
    for line in verdict.metrics:
        click.echo(f"metric: {line}")
    if verdict.unmeasured:
        click.echo(f"not measured again (see --evaluator): {', '.join(verdict.unmeasured)}")
    words = {True: ("agrees", AGREES), False: ("differs", DIFFERS), None: ("cannot be told", CANNOT)}
    word, code = words[verdict.agrees]
    if verdict.agrees and not verdict.exact:
        word = "compatible"
    click.echo(f"{word}: {verdict.reason}")
    sys.exit(code)


def _find(record: str, board: str | None) -> Path:
    from kdbench.cli.leaderboard import ROOT
    from kdbench.errors import KdbenchError
    from kdbench.results.store import RESULT

    if board is None:
        path = Path(record)
        path = path / RESULT if path.is_dir() else path
        if not path.is_file():
            raise KdbenchError(f"{record}: no such record; for the start of a cell id give --board")
        return path
    if not re.fullmatch(r"[0-9a-f]{4,64}", record):
        raise KdbenchError(f"{record!r:.80}: expected 4 to 64 hexadecimal digits, the start of a cell id")
    folder = Path(board) if Path(board).is_dir() else ROOT / board
    found = sorted((folder / "records").glob(f"{record}*.json"))
    if len(found) != 1:
        raise KdbenchError(f"{folder}: {len(found) or 'no'} records start with {record}, expected one")
    return found[0]


def _place(text: str) -> tuple[str, str]:
    from kdbench.errors import KdbenchError

    key, sign, value = text.partition("=")
    if not key or not sign:
        raise KdbenchError(f"--data {text}: expected KEY=PATH")
    return key, str(Path(value).expanduser().resolve())


def _fresh(runs: Path, cell_id: str) -> Path:
    """Return the first folder of this name that is not there."""
    first = runs / f"reproduce-{cell_id[:12]}"
    n, folder = 1, first
    while folder.exists():
        n += 1
        folder = first.with_name(f"{first.name}-{n}")
    return folder
