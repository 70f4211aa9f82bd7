"""How cells get at what their teachers say: from a table, or from the teacher in every step; and why. No torch."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.api import cache_dir
from kdbench.errors import KdbenchError
from kdbench.launch.foresight import training_images
from kdbench.launch.planned import Pattern, PlannedCell, Teaching
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.storage import size_text
from kdbench.results.store import read_record_dict

#: Fewest forwards that a table must save before it is recommended, and how many times fewer. The first is some
#: seconds of a small teacher on a CPU core; of what it saves, the second tells more.
WORTH, TIMES = 50_000, 2

_BYTES = {"fp16": 2, "fp32": 4}


def refusal(recipe: Recipe, reads: str, real_data: bool) -> str | None:
    """Return why no table can stand for the teachers of a cell, or None."""
    if not real_data:
        return "they read no training images"
    if recipe.augment.kind == "rrc":
        return "the views of augment.kind: rrc cannot be counted up"
    if reads not in ("logits", "pooled"):
        return "their methods do not declare that logits or pooled features are enough"
    return None


def cached(recipe: Recipe, method: Mapping[str, Any]) -> str | None:
    """Return the dtype of the table that a cell with teachers reads, or None.

    It depends on what is in the cell id only, never on the other cells of the matrix.
    """
    if recipe.teacher_cache == "off" or refusal(recipe, method["reads"], method["real_data"]):
        return None
    return recipe.teacher_cache


def views_of(recipe: Recipe, flips: bool) -> int:
    """Return the number of views of an image; `flips`: whether the data set allows a flip."""
    augment = recipe.augment
    if augment.kind == "none":
        return 1
    flip = flips if augment.flip == "auto" else bool(augment.flip)
    return (2 * augment.padding + 1) ** 2 * (2 if flip else 1)


@dataclass
class _Group:
    """Cells that could read one table (one for each teacher, where they have several)."""

    cells: list[PlannedCell]
    #: sets of cells that share the teacher's forwards
    gangs: list[set[str]] = field(default_factory=list)

    @property
    def first(self) -> PlannedCell:
        return self.cells[0]

    @property
    def forwards(self) -> int:
        """Images that the teachers see when the cells ask them in every step; once for those in one gang."""
        left = {
            c.id: c.pattern.file.recipe.epochs * self.images * len(c.pattern.file.teachers)
            for c in self.cells
        }
        together = ([left.pop(i) for i in gang if i in left] for gang in self.gangs)
        return sum(max(some) for some in together if some) + sum(left.values())

    @property
    def images(self) -> int:
        return training_images(self.first.spec, _teaching(self.first).info)

    @property
    def views(self) -> int:
        return views_of(self.first.pattern.file.recipe, _teaching(self.first).info.flip)

    @property
    def filled(self) -> int:
        """Images that the teachers see to fill the tables."""
        return self.views * self.images * len(self.first.pattern.file.teachers)

    def nbytes(self, dtype: str) -> int:
        pooled = next((_teaching(c).pooled for c in self.cells if _teaching(c).reads == "pooled"), ())
        classes = _teaching(self.first).info.num_classes * len(self.first.pattern.file.teachers)
        return self.views * self.images * (classes + sum(pooled)) * _BYTES[dtype]

    @property
    def name(self) -> str:
        spec, labels = self.first.spec, self.first.pattern.file.labels
        trained = any(t.source == "cell" for t in self.first.pattern.file.teachers)
        seed = f" (seed {spec.teacher.seed})" if trained and spec.teacher is not None else ""
        return f"teacher {labels.teacher}{seed} on {labels.dataset}"

    @property
    def reads(self) -> str:
        pooled = any(_teaching(c).reads == "pooled" for c in self.cells)
        text = "logits and pooled features" if pooled else "logits"
        strong = any("strong" in _teaching(c).views for c in self.cells)
        return f"{text}; strong views stay online" if strong else text


def describe(
    cells: Sequence[PlannedCell], plan: Sequence[PlannedCell] = (), gangs: Sequence[Sequence[str]] = ()
) -> list[str]:
    """Return lines on how the cells that are to run get at their teachers, and why.

    Args:
        plan: all cells of the plan, whose finished teachers tell how fast they are.
        gangs: ids of cells that train in one process and share what their teacher says.
    """
    taught = [c for c in cells if c.pattern.file.teachers and c.status != "not_applicable"]
    tables = _groups(c for c in taught if c.pattern.file.teacher_cache)
    known = {c.id: c for c in plan}
    lines = [_table_line(g, known) for g in tables]
    if tables:
        lines.append(_room_line(tables))
    ganged = {i for gang in gangs for i in gang}
    reasons: dict[str, list[PlannedCell]] = {}
    for cell in taught:
        if cell.pattern.file.teacher_cache is None:
            reasons.setdefault(_why_online(cell), []).append(cell)
    for reason, some in reasons.items():
        names = ", ".join(dict.fromkeys(c.pattern.file.method for c in some))
        shared = sum(c.id in ganged for c in some)
        text = f"{_cut(names)}; {shared} in gangs" if shared else _cut(names)
        lines.append(f"teacher online in {len(some)} cell(s) ({text}): {reason}")
    could = (c for c in taught if c.pattern.file.recipe.teacher_cache == "off" and _refused(c) is None)
    groups = _groups(could)
    for group in groups:
        group.gangs = [set(gang) for gang in gangs]
    return lines + [line for g in groups if (line := _hint(g))]


def _table_line(group: _Group, known: Mapping[str, PlannedCell]) -> str:
    dtype = group.first.pattern.file.teacher_cache
    assert dtype is not None
    text = (
        f"{group.name}: {dtype} table for {len(group.cells)} cell(s), which read {group.reads}: "
        f"{group.views} views x {group.images:,} images, {size_text(group.nbytes(dtype))}; filled once"
    )
    rate = _rate(group, known)
    text += f" in about {group.filled / rate:.0f} s" if rate else ""
    text += f" by {group.filled:,} forwards in place of {group.forwards:,}"
    less = "recipe.teacher_cache: off takes less" if group.filled > group.forwards else ""
    if _maybe_there(group):
        text += "; one like it is there already: if it is of this teacher and machine, nothing is filled"
        text += f"; if not, {less}" if less else ""
    elif less:
        text += f"; {less}"
    return text


def _maybe_there(group: _Group) -> bool:
    """Return whether a finished table may be the group's: of its shape and, where it says, its teacher and data.

    Whether it is, takes torch and the teacher's weights to tell.
    """
    facts = json.loads(json.dumps(group.first.file.table_facts(0)))
    wanted = {
        "images": group.images,
        "views": group.views,
        "width": _teaching(group.first).info.num_classes,
        "dtype": group.first.pattern.file.teacher_cache,
    }
    for note in Path(cache_dir("teacher-tables")).glob("*/logits.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            about = note.parent / "about.json"
            same = not about.exists() or json.loads(about.read_bytes()) == facts
            if same and json.loads(note.read_bytes())["shape"] == wanted:
                return True
    return False


def _room_line(groups: Sequence[_Group]) -> str:
    folder = cache_dir("teacher-tables")
    needed = sum(g.nbytes(g.first.pattern.file.teacher_cache or "fp16") for g in groups)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    text = f"teacher tables: {size_text(needed)} in {folder}, {size_text(free)} free"
    return f"warning: {text}: not enough unless they are there already" if needed > free else text


def _hint(group: _Group) -> str | None:
    saved = group.forwards - group.filled
    if saved < WORTH or group.forwards < TIMES * group.filled:
        return None
    return (
        f"hint: {group.name}: recipe.teacher_cache: fp16 would take {group.filled:,} teacher forwards in place "
        f"of {group.forwards:,} for {len(group.cells)} cell(s), and {size_text(group.nbytes('fp16'))}; "
        "cells get other ids"
    )


def _why_online(cell: PlannedCell) -> str:
    reason = _refused(cell)
    if cell.pattern.file.recipe.teacher_cache != "off":
        return reason or "no table"
    # what no table could serve is no reason to switch one on
    return f"no table could serve them: {reason}" if reason else "recipe.teacher_cache is off"


def _refused(cell: PlannedCell) -> str | None:
    teaching = _teaching(cell)
    return refusal(cell.pattern.file.recipe, teaching.reads, teaching.real_data)


def _groups(cells: Iterable[PlannedCell]) -> list[_Group]:
    """Return the cells by all that their table depends on."""
    groups: dict[str, _Group] = {}
    keys: dict[Pattern, str] = {}
    for cell in cells:
        file, recipe = cell.pattern.file, cell.pattern.file.recipe
        if cell.pattern in keys:
            groups[keys[cell.pattern]].cells.append(cell)
            continue
        key = [
            [t.model_dump() for t in file.teachers],
            file.dataset.model_dump(exclude={"label", "limit_test", "storage"}),
            recipe.augment.model_dump(),
            [recipe.precision, recipe.channels_last, recipe.val_fraction, recipe.deterministic],
            file.teacher_cache,
        ]
        text = keys[cell.pattern] = json.dumps(key, sort_keys=True, default=str)
        groups.setdefault(text, _Group([])).cells.append(cell)
    return list(groups.values())


def _rate(group: _Group, known: Mapping[str, PlannedCell]) -> float | None:
    """Return how many images a second the first teacher took when its speed was measured, if it was."""
    teacher = known.get(group.first.pattern.file.teachers[0].ref)
    if teacher is None or teacher.status != "done":
        return None
    try:
        record = read_record_dict(teacher.folder / "result.json")
    except KdbenchError:
        return None
    speeds = record.get("throughput", {}).get(record.get("primary"), {})
    return max((s["images_per_s"] for s in speeds.values()), default=None)


def _teaching(cell: PlannedCell) -> Teaching:
    assert cell.teaching is not None
    return cell.teaching


def _cut(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
