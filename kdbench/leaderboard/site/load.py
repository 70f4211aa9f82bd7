"""Boards of folders and of runs, made ready for the site."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench.leaderboard.board import Board
from kdbench.leaderboard.csv_file import render_csv
from kdbench.leaderboard.curves import Curve, read_board_curves
from kdbench.leaderboard.folder import Loaded
from kdbench.leaderboard.site.model import SiteBoard
from kdbench.leaderboard.site.write import MANIFEST, write_site


def build_site(boards: Sequence[Loaded], out: Path) -> Path:
    """Write the site over boards that were read into the folder `out`; return its first page.

    Raises KdbenchError for curves that are not valid, OSError.
    """
    return write_site([site_board(one) for one in boards], out)


def site_board(one: Loaded) -> SiteBoard:
    """Return a board that was read, with its curves, as one of several. Raises KdbenchError for broken curves."""
    curves = read_board_curves(one.folder, [r.cell_id for row in one.board.rows for r in row.records])
    return folder_board(one.folder, one.board, curves, render_csv(one.board).encode())


def site_is_stale(boards: Sequence[Path], site: Path) -> bool:
    """Whether a file of the boards is newer than the site, or there is none."""
    try:
        built = (site / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return True
    for board in boards:
        for path in (board, board / "records", board / "curves"):
            if path.is_dir():
                # the folder's own time tells of files that went
                times = [path.stat().st_mtime, *(entry.stat().st_mtime for entry in os.scandir(path))]
                if max(times) > built:
                    return True
    return False


def folder_board(folder: Path, board: Board, curves: Mapping[str, Curve], csv: bytes) -> SiteBoard:
    """Return a board of ``leaderboards/``, as one of several."""
    name = folder.resolve().name
    return SiteBoard(
        name=name,
        board=board,
        curves=curves,
        # as a clone of the project has it; where this machine keeps it is nobody's business
        records=f"{folder.resolve().parent.name}/{name}/records/{{id}}.json",
        csv_sha256=hashlib.sha256(csv).hexdigest(),
        commit=_commit(folder),
        home=f"boards/{name}",
    )


def run_board(run: Path, board: Board, curves: Mapping[str, Curve], csv: bytes) -> SiteBoard:
    """Return the board of a run folder, which is a site of its own."""
    run = run.resolve()
    return SiteBoard(
        name=run.name,
        board=board,
        curves=curves,
        records=f"{run.parent.name}/{run.name}/cells/{{id}}/result.json",
        csv_sha256=hashlib.sha256(csv).hexdigest(),
    )


def _commit(folder: Path) -> str:
    """Return the commit that last changed a board; empty where git has none or the board has changed since."""
    try:
        made = [
            subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
            for arguments in (["status", "--porcelain", "--", "."], ["log", "-1", "--format=%h", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    if any(one.returncode for one in made) or made[0].stdout.strip():
        return ""
    return made[1].stdout.strip()
