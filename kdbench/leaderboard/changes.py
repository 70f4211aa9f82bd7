"""What new records change in the tables of a board, as a diff that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.board import make_board, setting_facts
from kdbench.leaderboard.rows import Setting
from kdbench.leaderboard.speeds import SpeedLine
from kdbench.leaderboard.text import clean, number, rate

if TYPE_CHECKING:
    from kdbench.results.schema import Record

Table = tuple[Setting, str]
Line = tuple[str, ...]


def table_changes(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Return the difference between the tables of two sets of records; empty where they show the same.

    A line per table, and under it one per row: ``+`` for a new row, ``-`` for one that is gone, ``~`` for one
    whose mean, seeds or rank changed. A row stands in the table of each pair that its student has.
    """
    before, after = _tables(old), _tables(new)
    out: list[str] = []
    for table in sorted({*before, *after}):
        a, b = before.get(table, {}), after.get(table, {})
        lines = [*_rows(a, b)]
        if lines:
            facts = dict(setting_facts(table[0]))
            out += [f"{clean(table[1])} · {facts['data set']} · {facts['recipe']}", *lines]
    return out


def _rows(a: dict[Line, str], b: dict[Line, str]) -> list[str]:
    lines = [f"  + {_name(key)}: {text}" for key, text in b.items() if key not in a]
    lines += [
        f"  ~ {_name(key)}: {a[key]} -> {text}" for key, text in b.items() if key in a and a[key] != text
    ]
    return lines + [f"  - {_name(key)}: {text}" for key, text in a.items() if key not in b]


def _name(key: Line) -> str:
    return clean(key[0])


def _tables(records: Sequence[Record]) -> dict[Table, dict[Line, str]]:
    found: dict[Table, dict[Line, str]] = {}
    if not records:
        return found
    for section in make_board(records, title="").sections:
        rows = found.setdefault((section.setting, section.title), {})
        for rank, row in zip(section.ranks, section.rows, strict=True):
            place = "no rank" if rank is None else f"rank {rank}"
            rows[_key(row)] = f"{_value(row)}, {place}"
    return found


def _key(row: Any) -> Line:
    whole = row.row if isinstance(row, SpeedLine) else row
    name = whole.labels.student if isinstance(row, SpeedLine) else whole.labels.variant
    return (name, whole.config, *whole.student_key, *whole.teacher_key)


def _value(row: Any) -> str:
    if isinstance(row, SpeedLine):
        return f"{rate(row.ranked)} images/s"
    spread = "" if row.last.sd is None else f" ± {number(row.last.sd, 2)}"
    return f"{number(row.last.mean, 2)}{spread} ({len(row.done)}/{len(row.records)} seeds)"
