"""What takes all records of a run at once: the board, and words to the sinks.

A record takes 13 kB in memory. Of many cells that is more than all else that a run holds, so then it happens in a
process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.launch.apart import apart
from kdbench.results.store import RunFolder

if TYPE_CHECKING:
    from kdbench.leaderboard.mirrored import Told

#: Cells from which on a process of its own is worth the half second that it takes to start.
MANY = 2000


def build(run: RunFolder, known: Collection[str], title: str, description: str) -> list[str]:
    """Build the board of a run; returns a line for each record that is left out of it.

    `known` are the cells of the matrix: failures of others are history. Raises KdbenchError, OSError.
    """
    made: list[str] = _do(f"{run.path / 'board'}", run, _build, run, frozenset(known), title, description)
    return made


def told(run: RunFolder) -> Told:
    """Return what all records of a run tell together."""
    found: Told = _do(f"{run.path}: what seeds tell together", run, _told, run)
    return found


def _do(what: str, run: RunFolder, action: Callable[..., Any], *arguments: Any) -> Any:
    if len(run.cell_names()) < MANY:
        return action(*arguments)
    return apart(what, action, *arguments)


def _build(run: RunFolder, known: frozenset[str], title: str, description: str) -> list[str]:
    from kdbench.leaderboard import build_board

    left_out: list[KdbenchError] = []
    # failures of cells that the matrix no longer has (a mended image folder is another revision) are history
    found = (r for _, r in run.records(on_error=left_out.append))
    records = (r for r in found if r["status"] == "done" or r["cell_id"] in known)
    build_board(records, run.path / "board", title=title, description=description, run=run.path)
    return [f"warning: {error}; it is left out of the board" for error in left_out]


def _told(run: RunFolder) -> Told:
    from kdbench.leaderboard.mirrored import tell

    return tell(run.good_records())
