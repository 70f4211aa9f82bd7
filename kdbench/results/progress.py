"""How far a run is, from its files alone: from any machine that sees the run folder, and without a plan."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from kdbench.errors import RecordError, visible
from kdbench.redact import redact
from kdbench.results.holder import Holder, alive, newest_holder
from kdbench.results.store import CURVES, RESULT, RunFolder, atomic_write_bytes, read_own_record

#: Lists the cells of the latest plan, each with the number of its pattern: cells of one differ in their seed only.
PLAN = "plan.txt"
#: Has the command that made the latest plan.
COMMAND = ".command"
#: Characters of a command that are shown.
_LONGEST = 10_000
_LINE = re.compile(r"([0-9a-f]{64}) (\d{1,9})\Z")
#: Words for the state of a cell without a record that can be used; of the others it is the record's status.
TO_RUN, RUNNING, INTERRUPTED, UNREADABLE = "to run", "running", "interrupted", "unreadable"
#: States of cells that are not finished: ``run-matrix`` takes them up.
OPEN = (TO_RUN, RUNNING, INTERRUPTED, UNREADABLE)
#: Bytes at the end of the curves in which the latest row is looked for.
_TAIL = 64 * 1024


@dataclass(frozen=True)
class Running:
    """A cell that a process works on. Ages are in seconds; `epochs` are those of the recipe."""

    cell_id: str
    label: str
    host: str
    pid: int
    beat_age_s: float
    silent: bool
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Failed:
    """A cell that has begun and is neither done, nor running, nor not applicable."""

    cell_id: str
    status: str
    label: str
    message: str


@dataclass
class RunStatus:
    """What is known of a run. `left_s` is the time left in seconds, None where nothing tells."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    running: list[Running] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    parent: str | None = None
    left_s: float | None = None

    @property
    def cells(self) -> int:
        return sum(self.counts.values())

    @property
    def unfinished(self) -> int:
        """How many cells are not finished, those that run included."""
        return sum(self.counts[state] for state in OPEN)

    @property
    def idle(self) -> bool:
        """Whether nobody is at work."""
        return not (self.running or self.parent)

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``kdbench status --json`` prints it."""
        return {
            "name": self.name,
            "cells": self.cells,
            "counts": dict(self.counts),
            "running": [asdict(r) for r in self.running],
            "failures": [asdict(f) for f in self.failures],
            "parent": self.parent,
            "left_s": self.left_s,
        }


def write_command(run: RunFolder, command: str) -> None:
    """Leave the command that goes on with a run, without its secrets. Raises OSError."""
    atomic_write_bytes(run.path / COMMAND, redact(command).encode("utf-8", "replace"), durable=False)


def read_command(run: RunFolder) -> str | None:
    """Return the command that goes on with a run, None where it is not known."""
    try:
        text = (run.path / COMMAND).read_text(errors="replace")[:_LONGEST]
    except OSError:
        return None
    return visible(text) or None


def write_plan(run: RunFolder, cells: list[tuple[str, int]]) -> None:
    """Leave the ids of the cells of a plan with the numbers of their patterns."""
    text = "".join(f"{cell_id} {pattern}\n" for cell_id, pattern in cells)
    atomic_write_bytes(run.path / PLAN, text.encode(), durable=False)


class RunWatch:
    """Looks at a run again and again; a record that has not changed is not read again."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        #: by cell id: the record's time and size, and what it says
        self._known: dict[str, tuple[tuple[int, int], str, float | None]] = {}
        self._failed: dict[str, Failed] = {}
        self._labels: dict[str, str] = {}

    def look(self) -> RunStatus:
        """Return how far the run is. Raises RecordError where there is none."""
        run = self._run
        if not run.path.is_dir():
            raise RecordError(f"{run.path}: no such run folder")
        out = RunStatus(str(run.matrix()["name"]))
        seconds: dict[int, list[float]] = defaultdict(list)
        left: Counter[int] = Counter()
        for cell_id, pattern in self._cells():
            status, took = self._cell(cell_id, out)
            out.counts[status] += 1
            if took is not None:
                seconds[pattern].append(took)
            if status in OPEN:
                left[pattern] += 1
        # what was only cut comes last: a list that is shown may be short
        out.failures = sorted(self._failed.values(), key=lambda f: (f.status == INTERRUPTED, f.cell_id))
        holder = newest_holder(run.path)
        if holder is not None and alive(holder) is not False:
            out.parent = f"{visible(holder.host) or 'unknown host'}, process {holder.pid}"
        out.left_s = _left(seconds, left, out.running)
        return out

    def _cells(self) -> list[tuple[str, int]]:
        try:
            lines = (self._run.path / PLAN).read_text(errors="replace").splitlines()
        except OSError:  # a run of an earlier version: what there is of it
            return [(name, 0) for name in sorted(self._run.cell_names())]
        return [(m[1], int(m[2])) for line in lines if (m := _LINE.match(line))]

    def _cell(self, cell_id: str, out: RunStatus) -> tuple[str, float | None]:
        """Return the status of a cell and, where it is done, the seconds that it took."""
        folder = self._run.cell(cell_id)
        try:
            names = set(os.listdir(folder))
        except OSError:
            names = set()
        if any(name.startswith(".lease-") for name in names):
            holder = newest_holder(folder)
            if holder is not None and alive(holder) is not False:
                out.running.append(_running(folder, cell_id, holder))
                self._failed.pop(cell_id, None)
                return RUNNING, None
        if RESULT in names:
            return self._record(folder, cell_id)
        if "checkpoint.safetensors" in names:
            self._failed[cell_id] = Failed(
                cell_id, INTERRUPTED, self._label(folder, cell_id), "has a checkpoint"
            )
            return INTERRUPTED, None
        self._failed.pop(cell_id, None)
        return TO_RUN, None

    def _record(self, folder: Path, cell_id: str) -> tuple[str, float | None]:
        path = folder / RESULT
        try:
            stat = path.stat()
            stamp = stat.st_mtime_ns, stat.st_size
            if cell_id in self._known and self._known[cell_id][0] == stamp:
                return self._known[cell_id][1:]
            status, took, failed = _told(cell_id, read_own_record(folder))
        except (OSError, RecordError, AttributeError, TypeError, ValueError) as error:
            self._failed[cell_id] = Failed(cell_id, UNREADABLE, self._label(folder, cell_id), str(error))
            return UNREADABLE, None
        self._failed.pop(cell_id, None)
        if failed is not None:
            self._failed[cell_id] = failed
        self._known[cell_id] = stamp, status, took
        return status, took

    def _label(self, folder: Path, cell_id: str) -> str:
        """Return the label of a cell without a record; its file is read once."""
        if cell_id not in self._labels:
            self._labels[cell_id] = _label(_part(_json(folder / "cell.json"), "labels"))
        return self._labels[cell_id]


def _told(cell_id: str, record: dict[str, Any]) -> tuple[str, float | None, Failed | None]:
    """Return a record's status, what a done cell took in seconds, and what became of one that failed."""
    status = record["status"]
    if status == "done":
        cost = record.get("cost") or {}
        took = sum(float(cost.get(key) or 0.0) for key in ("setup_s", "train_s", "eval_s", "log_s"))
        return status, took, None
    if status == "not_applicable":
        return status, None, None
    message = ((record.get("error") or {}).get("message") or "").strip().splitlines()
    label = _label(record.get("labels") or {})
    return status, None, Failed(cell_id, status, label, visible(message[0])[:300] if message else "")


def _running(folder: Path, cell_id: str, holder: Holder) -> Running:
    cell = _json(folder / "cell.json")
    row = _last_row(folder / CURVES)
    age = max(0.0, time.time() - holder.beat_ns / 1e9)
    return Running(
        cell_id=cell_id,
        label=_label(_part(cell, "labels")),
        host=visible(holder.host) or "?",
        pid=holder.pid,
        beat_age_s=age,
        silent=age > holder.expiry_s,
        epoch=_count(row.get("epoch")),
        epochs=_count(_part(cell, "recipe").get("epochs")),
    )


def _left(seconds: dict[int, list[float]], left: Counter[int], running: list[Running]) -> float | None:
    """Return what is left for as many processes as there are now; cells of a pattern take the same time."""
    known = {pattern: fmean(took) for pattern, took in seconds.items()}
    if not left:
        return 0.0
    if not known or not running:
        return None
    usual = fmean(known.values())
    total = sum(count * known.get(pattern, usual) for pattern, count in left.items())
    done = sum(min(1.0, r.epoch / r.epochs) * usual for r in running if r.epochs)
    return max(0.0, total - done) / len(running)


def _label(names: dict[str, Any]) -> str:
    pair = " -> ".join(str(names[k]) for k in ("teacher", "assistant", "student") if names.get(k))
    role = f" ({names['role']})" if names.get("role", "student") != "student" else ""
    role += f" ({names['track']})" if names.get("track", "default") != "default" else ""
    text = f"{names.get('variant')} | {pair} | {names.get('dataset')} | seed {names.get('seed')}{role}"
    return visible(text) if names else "?"


def _part(facts: dict[str, Any], key: str) -> dict[str, Any]:
    part = facts.get(key)
    return part if isinstance(part, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_row(path: Path) -> dict[str, Any]:
    """Return the last whole line of the curves; a line that is being written is no line yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            return row
    return {}
