"""Boards of folders and of runs, made ready for the site."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kdbench.leaderboard.board import Board
from kdbench.leaderboard.curves import Curve
from kdbench.leaderboard.site.model import SiteBoard


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
