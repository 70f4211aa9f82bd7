"""``kdbench compare``: two folders of records, or two speed sheets, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from kdbench.leaderboard.compare import Comparison, Line
    from kdbench.leaderboard.compare_sheets import SheetComparison
    from kdbench.results.schema import Record
    from kdbench.stats.differences import Difference


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    default=0.0,
    show_default=True,
    metavar="POINTS",
    type=click.FloatRange(0),
    help="Loss of top-1 that is no regression.",
)
@click.option(
    "--tolerance-speed",
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    type=click.FloatRange(0),
    help="Loss of speed that is no regression.",
)
@click.option("--ignore-speed", is_flag=True, help="Loss of speed is shown, but no regression.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    a: Path, b: Path, tolerance: float, tolerance_speed: float, ignore_speed: bool, as_json: bool
) -> None:
    """Compare B with A: run folders, boards, or two JSON files of `kdbench throughput`.

    Differences that their 95 % interval cannot tell from none are marked with ~. Exit code 1 when B has a
    regression: a loss beyond the tolerance, significant for the number of comparisons, or a cell that is done in A
    and failed in B.
    """
    from kdbench.cli._table import plain, print_json

    _check_paths(a, b)
    limit = None if ignore_speed else tolerance_speed / 100
    if a.is_file() and b.is_file():
        from kdbench.leaderboard.compare_sheets import compare_sheets
        from kdbench.results.speed import read_sheet

        sheets = compare_sheets(read_sheet(a), read_sheet(b))
        if not sheets.lines:
            both = sheets.only_a and sheets.only_b
            _refuse_nothing(a, b, f"A has {sheets.only_a[0]}; B has {sheets.only_b[0]}" if both else "")
        regressions = sheet_regressions(sheets, limit)
        content: Any = plain(sheets)
        for line, found in zip(content["lines"], sheets.lines, strict=True):
            line["significant"] = found.significant
        show = _show_sheets
        shown: Any = sheets
    else:
        from kdbench.leaderboard.compare import compare_records, why_apart

        left, right = _read(a), _read(b)
        records = compare_records(left, right)
        if not records.lines:
            _refuse_nothing(a, b, why_apart(left, right))
        regressions = record_regressions(records, tolerance, limit)
        content, show, shown = plain(records), _show_records, records
    if as_json:
        print_json({"a": str(a), "b": str(b), **content, "regressions": regressions})
    else:
        show(shown)
        _show_rest(shown, regressions)
    sys.exit(1 if regressions else 0)


def record_regressions(found: Comparison, tolerance: float, limit: float | None) -> list[str]:
    """Return a line for each regression of B. `limit` is the loss of speed allowed, None: any.

    Of many comparisons some are significant by chance, so those of accuracy and those of speed are corrected for
    their number.
    """
    from kdbench.stats.differences import holm

    accuracies = holm([line.accuracy for line in found.lines if line.accuracy is not None])
    speeds = holm([speed for line in found.lines for speed in line.speeds.values()])
    out = []
    for line in found.lines:
        name = ", ".join(line.name)
        out += [f"{name}, seed {seed}: done in A, {status} in B" for seed, status in line.broken.items()]
        out += [f"{name}: {lost}" for lost in line.lost]
        top1 = line.accuracy
        if any(top1 is one for one in accuracies) and top1 is not None and top1.value < -tolerance:
            out.append(f"{name}: top-1 {top1.value:+.2f} points")
        if limit is not None:
            for what, speed in line.speeds.items():
                if speed.value < 1 - limit and any(speed is one for one in speeds):
                    out.append(f"{name}: {what} {100 * (speed.value - 1):+.1f} %")
    return out


def sheet_regressions(found: SheetComparison, limit: float | None) -> list[str]:
    """Return a line for each regression of B; speeds are corrected for their number."""
    from kdbench.stats.differences import holm

    speeds = holm([line.speed for line in found.lines if line.speed is not None])
    out = []
    for line in found.lines:
        name = ", ".join(line.name)
        if line.broken is not None:
            out.append(f"{name}: done in A, {line.broken} in B")
        lost = limit is not None and line.speed is not None and line.speed.value < 1 - limit
        if lost and line.speed is not None and any(line.speed is one for one in speeds):
            out.append(f"{name}: {100 * (line.speed.value - 1):+.1f} %")
    return out


def _check_paths(a: Path, b: Path) -> None:
    """Raise KdbenchError for a side that is not there, and for a file beside a folder."""
    from kdbench.errors import KdbenchError

    for path in (a, b):
        if not path.exists():
            raise KdbenchError(f"{path}: no such file or folder{_near(path)}")
    for file, other in ((a, b), (b, a)):
        if file.is_file() and other.is_dir():
            raise KdbenchError(f"{file} is a file and {other} a folder: expected two folders, or two files")


def _near(path: Path) -> str:
    from kdbench.errors import did_you_mean

    if not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])


def _read(folder: Path) -> list[Record]:
    """Return the records of a run folder or a board. Raises KdbenchError, RecordError."""
    from kdbench.errors import RecordError
    from kdbench.leaderboard.folder import read_records
    from kdbench.results.store import RESULT, RunFolder, read_record

    if (folder / "cells").is_dir():
        cells = RunFolder(folder).cell_folders()
        found = [read_record(cell / RESULT) for cell in cells]
    else:
        found = read_records(folder.parent if folder.name == "records" else folder)
    if not found:
        raise RecordError(
            f"{folder}: holds no records (expected a run folder with cells/, or a board with records/)"
        )
    return found


def _refuse_nothing(a: Path, b: Path, example: str) -> NoReturn:
    from kdbench.errors import KdbenchError

    raise KdbenchError(f"{a} and {b} have nothing in common" + (f"; {example}" if example else ""))


def _show_records(found: Comparison) -> None:
    from kdbench.cli._table import print_table

    trained = [line for line in found.lines if line.accuracy is not None or not line.speeds]
    if trained:
        _show_trained(trained)
    if len(trained) < len(found.lines):
        rows = [
            [line.name[0], line.name[1], what, f"{v.a:,.1f}", f"{v.b:,.1f}", _ratio(v)]
            for line in found.lines
            if line.accuracy is None
            for what, v in line.speeds.items()
        ]
        print_table(("data set", "model", "speed", "A images/s", "B images/s", "B/A"), rows)
    for line in found.lines:
        for note in line.notes:
            click.echo(f"{', '.join(line.name)}: {note}")


def _show_trained(lines: list[Line]) -> None:
    from kdbench.cli._table import print_table

    speeds = list(dict.fromkeys(name for line in lines for name in line.speeds))
    columns = (
        "data set",
        "pair",
        "method",
        "n",
        "A top-1",
        "B top-1",
        "B - A",
        *(f"{s} B/A" for s in speeds),
    )
    print_table(columns, [[*line.name, *_cells(line, speeds)] for line in lines])


def _cells(line: Line, speeds: list[str]) -> list[str]:
    top1 = line.accuracy
    if top1 is None:
        return ["0", *["-"] * (3 + len(speeds))]
    interval = "" if top1.low is None or top1.high is None else f" [{top1.low:+.2f}, {top1.high:+.2f}]"
    difference = f"{_mark(top1)}{top1.value:+.2f}{interval}"
    ratios = [_ratio(line.speeds[name]) if name in line.speeds else "-" for name in speeds]
    return [str(top1.n), f"{top1.a:.2f}", f"{top1.b:.2f}", difference, *ratios]


def _mark(found: Difference, significant: bool | None = None) -> str:
    return "" if (found.significant if significant is None else significant) else "~ "


def _ratio(found: Difference, significant: bool | None = None) -> str:
    if found.low is None or found.high is None:
        interval = f"n/a ({found.n} {found.of if found.n > 1 else found.of[:-1]})"
    else:
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
    return f"{_mark(found, significant)}{found.value:.3f} {interval}"


def _show_sheets(found: SheetComparison) -> None:
    from kdbench.cli._table import print_table

    rows = []
    for line in found.lines:
        speed = line.speed
        if speed is None:
            rows.append([*line.name, "-", "-", line.broken or "-", line.note])
        else:
            ratio = _ratio(speed, line.significant)
            rows.append([*line.name, f"{speed.a:,.1f}", f"{speed.b:,.1f}", ratio, line.note])
    print_table(("model", "mode", "precision", "batch", "A images/s", "B images/s", "B/A", "note"), rows)


def _show_rest(found: Comparison | SheetComparison, regressions: list[str]) -> None:
    for note in found.notes:
        click.echo(note)
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            click.echo(f"only in {side}: {'; '.join(names[:3])}{more}")
    click.echo(
        "~: the 95 % interval cannot tell the difference from none, or there is no interval "
        "(too few values, or equal ones)"
    )
    for line in regressions:
        click.echo(f"regression: {line}")
    click.echo(f"{len(regressions)} regression(s)")
