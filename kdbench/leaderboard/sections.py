"""Rows to ranking tables: one per setting and pair, so that nothing in a table differs but the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kdbench.leaderboard.columns import Column, columns
from kdbench.leaderboard.compared import compare_rows, ranked
from kdbench.leaderboard.gap import nothing_to_close
from kdbench.leaderboard.rows import INFER_BATCH, Row, Setting
from kdbench.leaderboard.speeds import SPEED_COLUMNS, SpeedLine, measures_only, speed_lines, speed_ranks
from kdbench.leaderboard.text import number, rate


@dataclass
class Section:
    """A ranking table.

    Attributes:
        title: the pair, or what kind of rows these are.
        rows: best first, rows without a mean last.
        ranks: per row, None where a row has too few seeds.
        shown: the columns.
        notes: sentences about the table.
        by: what the ranks go by.
        is_pair: whether the rows share teacher and student, so that the table is a setting of an overall ranking.
        references: variants that rows are compared with, as in their `against`.
    """

    title: str
    setting: Setting
    rows: Sequence[Row | SpeedLine]
    ranks: list[int | None]
    shown: tuple[Column, ...]
    notes: list[str] = field(default_factory=list)
    by: str = "the mean of top-1 after the last epoch"
    is_pair: bool = False
    references: list[str] = field(default_factory=list)


def make_sections(rows: Sequence[Row], references: Sequence[str] = ()) -> list[Section]:
    """Return the tables in the order of settings, then pairs, then lone students, then teachers.

    Rows are compared within each table. A student without a teacher stands in the tables of all its teachers; as
    the best row of each is another, these hold copies of the row.
    """
    sections: list[Section] = []
    for setting in sorted({r.setting for r in rows}):
        every = [r for r in rows if r.setting == setting]
        here = [r for r in every if not measures_only(r)]
        sections += _speed_sections(setting, [r for r in every if measures_only(r)])
        track = (
            "" if setting.track == "default" else f" ({setting.track}, {setting.budget or 'budget unknown'})"
        )
        students = [r for r in here if r.labels.role == "student"]
        pairs = sorted({(r.student_key, r.teacher_key) for r in students if r.teacher_key[0]})
        paired = {student for student, _ in pairs}
        titles = [f"{teacher[0]} → {student[0]}" for student, teacher in pairs]
        tables = Counter(student for student, _ in pairs)
        by_student: dict[tuple[str, str], list[Row]] = {}
        for row in students:
            by_student.setdefault(row.student_key, []).append(row)
        for (student, teacher), title in zip(pairs, titles, strict=True):
            if titles.count(title) > 1:
                title += f" (teacher {teacher[1]}, student {student[1]})"
            members = [r for r in by_student[student] if r.teacher_key in (teacher, ("", ""))]
            if tables[student] > 1:
                members = [r if r.teacher_key[0] else replace(r, against={}, origin=r) for r in members]
            sections.append(_section(title + track, setting, members, references, is_pair=True))
        lone = [r for r in students if r.student_key not in paired]
        if lone:
            sections.append(
                _section("Students without a teacher" + track, setting, lone, references, with_student=True)
            )
        teachers = [r for r in here if r.labels.role == "teacher"]
        if teachers:
            sections.append(_section("Teachers", setting, teachers, references, with_student=True))
    return sections


def _speed_sections(setting: Setting, rows: Sequence[Row]) -> list[Section]:
    sections = []
    for place, lines in speed_lines(rows).items():
        section = Section(place.title, setting, lines, speed_ranks(lines), SPEED_COLUMNS, by="images/s")
        section.notes.append(
            "Untrained networks, each by itself. Ranked by images/s of inference at the fastest batch size "
            "measured; other hardware, precisions and memory layouts have tables of their own."
        )
        versions = {f"torch {r.environment.get('torch')}" for line in lines for r in line.row.done}
        if len(versions) > 1:
            section.notes.append(f"Versions differ between rows: {', '.join(sorted(versions))}.")
        sections.append(section)
    return sections


def _section(
    title: str,
    setting: Setting,
    rows: list[Row],
    references: Sequence[str],
    *,
    with_student: bool = False,
    is_pair: bool = False,
) -> Section:
    def order(row: Row) -> tuple[bool, float, str, str]:
        mean = row.last.mean
        return mean is None, -(mean or 0.0), row.labels.variant, row.config

    rows = sorted(rows, key=order)
    found = compare_rows(rows, references)
    searched = any(row.search for row in rows)
    shown = columns(rows, found, with_student=with_student, searched=searched)
    section = Section(title, setting, rows, _ranks(rows), shown, is_pair=is_pair, references=found)
    seeds = {seed for r in rows for seed in r.by_seed}
    fewer = [r.labels.variant for r in rows if len(r.by_seed) < len(seeds)]
    if fewer and not with_student:
        told = ", ".join(fewer[:8]) + (f" and {len(fewer) - 8} more" if len(fewer) > 8 else "")
        section.notes.append(
            f"There are {len(seeds)} seeds in this table; rows with fewer: {told}. Means are over the seeds of a "
            "row, differences over those that both rows have."
        )
    accuracies = sorted({number(r.teacher_top1, 2) for r in rows if r.teacher_top1 is not None})
    if accuracies:
        told = f"Top-1 of the teacher: {', '.join(accuracies)} %"
        compared = [r for r in rows if r.teacher_top1 is not None and r.baseline not in (None, r.row)]
        if compared and all(map(nothing_to_close, compared)):
            told += "; no gap to close: the teacher is not above the student alone by more than its spread"
        section.notes.append(f"{told}.")
    hardware = sorted({h for r in rows for h in r.hardware})
    if len(hardware) > 1:
        section.notes.append(
            f"Speed and cost were measured on different hardware ({'; '.join(hardware)}): "
            "compare them only between rows of the same hardware."
        )
    if len({p for r in rows for p in r.precision}) > 1:
        section.notes.append("Precisions differ between rows.")
    section.notes += _equal_networks(rows) if is_pair and len(hardware) == 1 else []
    return section


def _equal_networks(rows: Sequence[Row]) -> list[str]:
    """Return what to make of the inference speeds of rows that deploy networks of one architecture."""
    found: dict[tuple[float | None, float | None], list[float]] = {}
    for row in rows:
        if row.infer_images_per_s is not None and row.macs is not None:
            found.setdefault((row.params, row.macs), []).append(row.infer_images_per_s)
    speeds = sorted(max(found.values(), key=len, default=[]))
    if not speeds or rate(speeds[0]) == rate(speeds[-1]):
        return []
    return [
        f"{len(speeds)} of the rows deploy networks of one architecture, so their speeds of inference, "
        f"{rate(speeds[0])} to {rate(speeds[-1])} images/s at batch {INFER_BATCH}, differ by no more than how "
        "well speed can be measured on that machine."
    ]


def _ranks(rows: list[Row]) -> list[int | None]:
    means = [r.last.mean for r in rows if ranked(r)]
    return [1 + sum(m > r.last.mean for m in means) if ranked(r) else None for r in rows]  # type: ignore[operator]
