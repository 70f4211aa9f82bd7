"""Published accuracies of a method, from the project's data file."""

from __future__ import annotations

import re

from kdbench.leaderboard.published_file import SELECTION, Entry, comparable, entries, method_of
from kdbench_docs.markup import escape, table


def published_rows() -> list[Entry]:
    """Return the lines of the data file that were read in the source that they name.

    Lines written down from memory are left out: nobody has checked them.
    """
    return [entry for entry in entries() if entry.verified]


def is_of(published_name: str, method: str) -> bool:
    """Return whether a published name means a method, see ``published_names.yaml``."""
    return method_of(published_name)[0] == comparable(method)


def published_table(method: str, rows: list[Entry]) -> str:
    """Return the table for a method, or an empty string."""
    mine = [row for row in rows if is_of(row.method, method)]
    if not mine:
        return ""
    head = ("Data set", "Teacher", "Student alone", "Named", "Top-1, %", "Epoch", "Source")
    body = [
        [
            escape(row.dataset),
            _network(row.teacher, row.teacher_top1),
            _network(row.student, row.student_top1),
            escape(row.method),
            escape(
                _number(row.top1)
                + (f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{_number(row.sd)}" if row.sd is not None else "")
            ),
            escape(SELECTION.get(row.selection, row.selection)),
            _source(row.source) + (f"; {escape(row.remark)}" if row.remark else ""),
        ]
        for row in mine
    ]
    return table(head, body, right=(4,))


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _network(name: str, top1: float | None) -> str:
    return escape(name if top1 is None else f"{name} ({_number(top1)})")


def _source(text: str) -> str:
    match = re.fullmatch(r"github\.com/([\w.-]+/[\w.-]+) (\S+)@([0-9a-f]{7,40})( .*)?", text)
    if not match:
        return escape(text)
    repository, path, commit, remark = match.groups()
    url = f"https://github.com/{repository}/blob/{commit}/{path}"
    return f"[{escape(repository)}]({url}){escape(remark or '')}"
