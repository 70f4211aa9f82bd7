"""A board: rows, tables and the cells that did not finish, ready to be written in any format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdbench.errors import RecordError
from kdbench.leaderboard.compared import check_references, default_references
from kdbench.leaderboard.gap import relate
from kdbench.leaderboard.overall import Overall, make_overalls
from kdbench.leaderboard.rows import Row, Setting, make_rows, primary
from kdbench.leaderboard.sections import Section, make_sections
from kdbench.leaderboard.text import clean, first_line

if TYPE_CHECKING:
    from kdbench.results.schema import Record


@dataclass(frozen=True)
class Unfinished:
    """A cell without a result, and why."""

    status: str
    variant: str
    pair: str
    dataset: str
    seed: int
    message: str
    cell_id: str


@dataclass
class Board:
    """All that the pages show.

    `overalls` are the methods over several settings, one for each protocol; the one of most settings first.
    """

    title: str
    description: str
    notes: tuple[str, ...]
    rows: list[Row]
    sections: list[Section]
    unfinished: list[Unfinished]
    statuses: list[tuple[str, int]]
    overalls: list[Overall] = field(default_factory=list)

    @property
    def overall(self) -> Overall | None:
        """The first of `overalls`; None where no two settings have methods in common."""
        return self.overalls[0] if self.overalls else None


def make_board(
    records: Sequence[Record],
    *,
    title: str,
    description: str = "",
    notes: Sequence[str] = (),
    references: Sequence[str] | None = None,
) -> Board:
    """Make a board; it depends on the set of records, not on their order.

    `references` are the methods that all rows are compared with; None takes the default ones that are there.
    Raises RecordError when two records have one cell id, KdbenchError for a reference that no row has.
    """
    ids = Counter(r.cell_id for r in records)
    twice = sorted(cell_id for cell_id, n in ids.items() if n > 1)
    if twice:
        raise RecordError(f"cell {twice[0]}: more than one record")
    for record in records:
        if record.labels.role == "trial":
            raise RecordError(
                f"cell {record.cell_id}: a trial of a search is no result, it has no place on a board"
            )
    rows = make_rows(records)
    relate(rows)
    statuses = sorted(Counter(str(r.status) for r in records).items())
    if references is not None:
        check_references(references, rows)
    sections = make_sections(rows, default_references() if references is None else references)
    unfinished = _unfinished(rows)
    return Board(
        title, description, tuple(notes), rows, sections, unfinished, statuses, make_overalls(sections)
    )


def pair(row: Row) -> str:
    """Return the pair of a row, ``teacher → student`` or the student alone."""
    teacher = row.labels.teacher
    return f"{teacher} → {row.labels.student}" if teacher else row.labels.student


def setting_facts(setting: Setting) -> list[tuple[str, str]]:
    """Return what the records of a table share, as (name, value)."""
    version = f" {setting.task_version}" if setting.task_version else ""
    facts = [
        ("task", f"{setting.task}{version}"),
        ("data set", setting.dataset),
        ("revision", setting.revision or "unknown"),
    ]
    if setting.dataset_args:
        facts.append(("data set arguments", setting.dataset_args))
    for name, value in (("training", setting.limit_train), ("test", setting.limit_test)):
        if value:
            facts.append((f"{name} subset", f"{value} images"))
    facts += [
        ("recipe", f"{setting.recipe} ({setting.recipe_digest})"),
        ("protocol", str(setting.protocol)),
    ]
    if setting.budget or setting.track != "default":
        facts += [("track", setting.track), ("search budget of each method", setting.budget or "unknown")]
    return [(name, clean(value, 80)) for name, value in facts]


def _unfinished(rows: Sequence[Row]) -> list[Unfinished]:
    found = []
    for row in rows:
        for record in row.records:
            if primary(record) is not None:
                continue
            labels = record.labels
            message = "the record holds no evaluated network"
            if record.error is not None:
                message = first_line(record.error.message) or clean(record.error.type)
            elif record.status != "done":
                message = "no reason recorded"
            found.append(
                Unfinished(
                    record.status,
                    labels.variant,
                    pair(row),
                    labels.dataset,
                    labels.seed,
                    message,
                    record.cell_id,
                )
            )
    return sorted(found, key=lambda u: (u.status, u.dataset, u.pair, u.variant, u.seed, u.message, u.cell_id))
