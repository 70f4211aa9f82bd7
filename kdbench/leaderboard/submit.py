"""Bringing the records of a run folder to a board: what is refused, what is new, what changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError
from kdbench.leaderboard.changes import table_changes
from kdbench.leaderboard.folder import Collected, build_folder, collect, read_records, write_records
from kdbench.leaderboard.mixing import mixture
from kdbench.leaderboard.rows import top1
from kdbench.leaderboard.text import number

if TYPE_CHECKING:
    from kdbench.results.schema import Record


@dataclass(frozen=True)
class Submission:
    """What submitting a run folder would do.

    Attributes:
        added, same: cells that the board lacks, and that it has with this content.
        replaced: a line for each cell that the board has with another content.
        changes: the tables, old against new, see :func:`kdbench.leaderboard.changes.table_changes`.
    """

    board: Path
    added: tuple[Collected, ...]
    same: tuple[Collected, ...]
    replacing: tuple[Collected, ...]
    replaced: tuple[str, ...]
    changes: tuple[str, ...]


def plan_submission(run: Path, board: Path) -> Submission:
    """Look at the records of a run folder; nothing is written.

    Raises RecordError for a record (also of the board) that is not valid, edited or without a digest;
    KdbenchError where the records, with those that the board has, mix protocols or revisions of a data set.
    """
    found = collect(run, signed=True)
    existing = {r.cell_id: r for r in read_records(board, signed=True)}
    added, same, replacing, told = [], [], [], []
    for one in found:
        before = existing.get(one.record.cell_id)
        if before is None:
            added.append(one)
        elif _same(before, one.record):
            same.append(one)
        else:
            replacing.append(one)
            told.append(_told(before, one.record))
    after = {**existing, **{c.record.cell_id: c.record for c in (*added, *replacing)}}
    if problem := mixture(after.values()):
        raise KdbenchError(f"{run}: would give {board} {problem}")
    return Submission(
        board=board,
        added=tuple(added),
        same=tuple(same),
        replacing=tuple(replacing),
        replaced=tuple(told),
        changes=tuple(table_changes(list(existing.values()), list(after.values()))),
    )


def submit(plan: Submission, *, replace: bool = False) -> int:
    """Write the records and build the board; return how many records it has then.

    Raises KdbenchError where records would be replaced and `replace` is not set, OSError.
    """
    if plan.replacing and not replace:
        first = plan.replacing[0].record.cell_id[:12]
        raise KdbenchError(
            f"{plan.board}: has {len(plan.replacing)} of these cells with another result (the first: {first}); "
            "--replace puts the new in their place"
        )
    chosen = [*plan.added, *plan.replacing]
    if chosen:
        write_records(plan.board, chosen)
    return build_folder(plan.board)


def _same(a: Record, b: Record) -> bool:
    """Fields that one of the files leaves out make no other result of it, though the digest is another."""
    return a.model_dump(exclude={"content_sha256"}) == b.model_dump(exclude={"content_sha256"})


def _told(before: Record, after: Record) -> str:
    labels = after.labels
    name = f"{labels.variant} | {labels.pair} | {labels.dataset} | seed {labels.seed}"
    return f"{after.cell_id[:12]} {name}: {_result(before)} -> {_result(after)}"


def _result(record: Record) -> str:
    value = top1(record)
    made = f"{record.status}, {record.finished_at}"
    return made if value is None else f"{number(value, 2)} % ({made})"
