"""Published values of a board's rows as a table: for Markdown, and for programs as ``published.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from kdbench.leaderboard.board import Board, pair
from kdbench.leaderboard.published import Published
from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.text import number, spreadsheet

HEAD = ("Method", "Pair", "Data set", "Here, %", "Published, %", "Difference", "Equal protocol", "Source")
RIGHT = (False, False, False, True, True, True, False, False)
_COLUMNS = (
    "dataset", "recipe", "teacher", "student", "variant", "config", "last_top1_mean", "published_as",
    "published_top1", "published_sd", "difference", "protocol_equal", "protocol_differences", "selection",
    "teacher_top1", "published_teacher_top1", "source", "remark",
)  # fmt: skip


def published_rows(rows: Iterable[Row]) -> list[tuple[Row, Published]]:
    """Return each published value beside its row, in the order of the rows."""
    return [(row, value) for row in rows for value in row.published]


def published_lines(board: Board) -> list[list[str]]:
    """Return the table's lines as unescaped texts under :data:`HEAD`."""
    lines = []
    for row, value in published_rows(board.rows):
        theirs = number(value.value, 2) + ("" if value.sd is None else f" ± {number(value.sd, 2)}")
        source = f"{value.method}, {value.source}" + (f"; {value.remark}" if value.remark else "")
        lines.append(
            [
                row.labels.variant,
                pair(row),
                row.labels.dataset,
                number(row.last.mean, 2),
                theirs,
                signed(value.difference),
                equality(value),
                source,
            ]
        )
    return lines


def signed(value: float | None) -> str:
    """Return a difference with its sign, or the dash for null."""
    text = number(value, 2)
    return text if value is None or text.startswith("-") else f"+{text}"


def equality(value: Published) -> str:
    """Return whether the protocols are equal, with what differs."""
    if value.protocol_equal is None:
        return "not known"
    return "yes" if value.protocol_equal else f"no: {'; '.join(value.differences)}"


def render_published_csv(board: Board) -> str | None:
    """Return the text of ``published.csv``; None where nothing is published on the board's rows."""
    found = published_rows(board.rows)
    if not found:
        return None
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row, value in found:
        names = row.labels
        cells: list[object] = [
            names.dataset, names.recipe, names.teacher, names.student, names.variant, row.config,
            row.last.mean, value.method, value.value, value.sd, value.difference,
            "" if value.protocol_equal is None else "yes" if value.protocol_equal else "no",
            "; ".join(value.differences), value.selection, row.teacher_top1, value.teacher_top1, value.source,
            value.remark,
        ]  # fmt: skip
        writer.writerow([_cell(cell) for cell in cells])
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value + 0.0:.4f}" if isinstance(value, float) else spreadsheet(value, 1000)
