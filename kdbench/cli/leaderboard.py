"""``kdbench leaderboard``: build boards and their site, check committed ones, audit published values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdbench.leaderboard.folder import Loaded

ROOT = Path("leaderboards")
#: Folder of the site beside the boards; no board, for it has no records.
SITE = "_site"


@click.group("leaderboard")
def leaderboard() -> None:
    """Build, check, show or audit leaderboards, folders with records/*.json."""


@leaderboard.command("build")
@click.argument("board", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--from",
    "runs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN_DIR",
    multiple=True,
    help="Add the records of a run folder to the board first; repeatable.",
)
@click.option(
    "--site",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the site goes; by default _site beside the boards.",
)
@click.option("--no-site", is_flag=True, help="Write the files of the boards only.")
def build(board: Path | None, runs: tuple[Path, ...], site: Path | None, no_site: bool) -> None:
    """Write README.md, leaderboard.csv and plots of BOARD, or of every folder under leaderboards/, and the site.

    The site is over all boards beside BOARD. With --from and without BOARD the board is leaderboards/<name of the
    matrix>. Records that the board has already stay: to drop one, remove its file from the board's records/.
    """
    from kdbench.leaderboard.build import write_forms
    from kdbench.leaderboard.folder import copy_records, load_folder
    from kdbench.results.store import RunFolder

    named = [board] if board else []
    for run in runs:
        into = board or ROOT / folder_name(str(RunFolder(run).matrix()["name"]), run / "matrix.json")
        copied, given = copy_records(run, into)
        told = f"; {given} had no digest of their content and were given it" if given else ""
        click.echo(f"{into}: {copied} records copied from {run}{told}")
        if into not in named:
            named.append(into)
    loaded = []
    for folder in _boards(named):
        loaded.append(load_folder(folder))
        write_forms(loaded[-1].board, folder)
        click.echo(f"{folder}: built from {loaded[-1].records} records")
    if not no_site:
        click.echo(f"site: {_site(loaded[0].folder.parent, site, loaded)}")


@leaderboard.command("check")
@click.argument("boards", nargs=-1, type=click.Path(file_okay=False, path_type=Path))
def check(boards: tuple[Path, ...]) -> None:
    """Check BOARDS, by path or name, or all under leaderboards/: exit code 1 and a line for each difference.

    A difference is a record that is not valid, was edited or carries no digest of its content, records that mix
    protocols or revisions of a data set, or a generated file that is not byte for byte what the records give. The
    file of published values is checked too.
    """
    from kdbench.errors import KdbenchError
    from kdbench.leaderboard.folder import check_folder
    from kdbench.leaderboard.published_file import read_entries

    bad = False
    for folder in _boards(list(boards)):
        problems = check_folder(folder)
        bad = bad or bool(problems)
        for line in problems or [f"{folder}: ok"]:
            click.echo(line)
    try:
        read_entries()
    except KdbenchError as error:
        bad = True
        click.echo(str(error))
    if bad:
        sys.exit(1)


@leaderboard.command("open")
@click.option(
    "--site", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where the site is."
)
def open_site(site: Path | None) -> None:
    """Open the site over leaderboards/ in the browser; it is built first where records are newer."""
    import webbrowser

    page = _fresh_site(site)
    click.echo(page)
    if not webbrowser.open(page.resolve().as_uri()):
        click.echo("no browser found: open the file above")


@leaderboard.command("serve")
@click.option(
    "--site", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where the site is."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
def serve(site: Path | None, port: int) -> None:
    """Serve the site over leaderboards/ on this machine only; it is built first where records are newer."""
    from kdbench.leaderboard.site.serve import serve as serve_folder

    folder = _fresh_site(site).parent
    serve_folder(folder, port, lambda address: click.echo(f"{folder}: {address} (Ctrl-C ends)"))


def _fresh_site(site: Path | None) -> Path:
    from kdbench.leaderboard.site.load import site_is_stale

    out = site or ROOT / SITE
    if site_is_stale(_boards([]), out):
        return _site(ROOT, site, [])
    return out / "index.html"


def _site(root: Path, site: Path | None, loaded: list[Loaded]) -> Path:
    """Build the site over all boards under `root`; those that were read already are given."""
    from kdbench.leaderboard.folder import board_folders, load_folder
    from kdbench.leaderboard.site.load import build_site

    known = {one.folder.resolve(): one for one in loaded}
    boards = [known.get(folder.resolve()) or load_folder(folder) for folder in board_folders(root)]
    return build_site(boards, site or root / SITE)


@leaderboard.command("audit")
@click.argument("boards", nargs=-1, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Most lines of each list."
)
def audit(boards: tuple[Path, ...], top: int) -> None:
    """List the largest gaps between published values and BOARDS, or every folder under leaderboards/.

    Then the published values that mix protocols: given differently by several sources, copied into tables of
    another selection rule, with other teachers. Works without any board.
    """
    from kdbench.leaderboard.audit import gaps, mixed, numbered
    from kdbench.leaderboard.board import pair
    from kdbench.leaderboard.folder import board_folders, read_records
    from kdbench.leaderboard.published_file import entries
    from kdbench.leaderboard.published_table import equality, signed
    from kdbench.leaderboard.rows import make_rows
    from kdbench.leaderboard.text import clean, number

    folders = _boards(list(boards)) if boards else board_folders(ROOT)
    lines, sources = [], {e.source for e in entries()}
    for folder in folders:
        for gap in gaps(make_rows(read_records(folder))):
            row, p = gap.row, gap.published
            sources.add(p.source)
            text = f"{number(row.last.mean, 2)} here, {p.value:g} in {p.source}"
            what = f"{folder.name}: {row.labels.variant} on {pair(row)}, {row.labels.dataset}"
            line = f"{signed(p.difference)}: {what}: {text}; equal protocol: {equality(p)}"
            lines.append((-abs(p.difference or 0.0), clean(line, 1000)))
    found = {"gaps between published and measured": [line for _, line in sorted(lines)], **mixed(entries())}
    shown, used = numbered([each[:top] for each in found.values()], sources)
    for (title, each), texts in zip(found.items(), shown, strict=True):
        click.echo(f"{title}: {len(each) or 'none'}")
        for line in texts:
            click.echo(f"  {line}")
        if len(each) > top:
            click.echo(f"  and {len(each) - top} more (--top)")
    for n, source in enumerate(used, 1):
        click.echo(f"{'sources:' if n == 1 else '        '} [{n}] {source}")


def _boards(named: list[Path]) -> list[Path]:
    from kdbench.errors import KdbenchError, did_you_mean
    from kdbench.leaderboard.folder import board_folders

    # a bare name is a board under leaderboards/, as for `submit --board`
    named = [ROOT / f if not f.is_dir() and len(f.parts) == 1 and (ROOT / f).is_dir() else f for f in named]
    for folder in named:
        if not folder.is_dir():
            bare = len(folder.parts) == 1
            known = [p.name if bare else str(p) for p in board_folders(ROOT if bare else folder.parent)]
            raise KdbenchError(f"{folder}: no such board{did_you_mean(str(folder), known)}")
    found = named or board_folders(ROOT)
    if not found:
        raise KdbenchError(f"no boards under {ROOT}/ (a board is a folder with records/<cell id>.json)")
    return found


def folder_name(name: str, where: Path) -> str:
    """Return `name`, which may not lead out of the folder of boards. Raises KdbenchError naming `where`."""
    import re

    from kdbench.errors import KdbenchError

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise KdbenchError(f"{where}: the name cannot be a folder's: {name!r:.80}; give the board's path")
    return name
