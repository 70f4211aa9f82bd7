"""What is on disk of the cells of a plan; of many cells several processes read it."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import KdbenchError
from kdbench.launch.apart import apart_each
from kdbench.launch.planned import PlannedCell
from kdbench.measure.cores import cores
from kdbench.registry import Registry, code_digest
from kdbench.results.artifacts import is_whole
from kdbench.results.store import RESULT, read_own_record, refuse_unread

#: Records of one pattern of which the plan remembers what they cost: more make no better forecast.
MOST_SEEN = 32
#: Cells for which another process is worth the half second that it takes to start.
SHARE = 5000
#: Most processes that read: more wait for each other at the file server.
MOST_READERS = 8


class Facts(NamedTuple):
    """What the folder of a cell says.

    Attributes:
        status: of the record, or ``to run`` or ``interrupted``; None: there is a record that is of no use.
        recorded: whether the status is that of a record.
        reason: of a failure, or why the record is of no use.
        code: digest of the code of the method's plug-in that made the record.
        seen: see :attr:`PlannedCell.seen`.
    """

    status: str | None
    recorded: bool = False
    reason: str | None = None
    code: str | None = None
    seen: Mapping[str, Any] | None = None


def look(cell: PlannedCell, registry: Registry) -> None:
    """Take the cell's status from what is on disk."""
    _take(cell, facts_of(cell.folder), registry)


def look_at(cells: Sequence[PlannedCell], registry: Registry) -> None:
    """Take the status of each of the cells, which have folders, from what is on disk. Raises KdbenchError."""
    readers = min(len(cells) // SHARE, cores(), MOST_READERS)
    if readers < 2:
        for cell in cells:
            look(cell, registry)
        return
    numbers = {p: k for k, p in enumerate(dict.fromkeys(c.pattern for c in cells))}
    shares = [cells[k::readers] for k in range(readers)]
    asked = [([(str(c.folder), numbers[c.pattern]) for c in share],) for share in shares]
    answers = apart_each("reading the records", read_all, asked)
    for share, found in zip(shares, answers, strict=True):
        for cell, facts in zip(share, found, strict=True):
            _take(cell, Facts(*facts), registry)


def read_all(folders: Sequence[tuple[str, int]]) -> list[tuple[Any, ...]]:
    """Return the facts of folders, given with the numbers of their patterns; costs of a few of each pattern."""
    known: Counter[int] = Counter()
    out = []
    for folder, pattern in folders:
        facts = facts_of(Path(folder))
        if facts.seen is not None:
            known[pattern] += facts.status == "done"
            if known[pattern] > MOST_SEEN:
                facts = facts._replace(seen=None)
        out.append(tuple(facts))
    return out


def facts_of(folder: Path) -> Facts:
    """Return what the folder of a cell says."""
    if not (folder / RESULT).exists():
        return Facts("interrupted" if (folder / "checkpoint.safetensors").exists() else "to run")
    try:
        record = read_own_record(folder)
    except KdbenchError as e:
        refuse_unread(e)
        return Facts(None, True, f"its record cannot be read: {e}")
    try:
        reason = (record.get("error") or {}).get("message")
        code = ((record.get("plugins") or {}).get("method") or {}).get("code")
        seen = costs(record)
    except (AttributeError, TypeError) as e:
        return Facts(None, True, f"its record cannot be read: {folder / RESULT}: {e}")
    # one text each for what thousands of records have in common
    return Facts(sys.intern(record["status"]), True, reason, code and sys.intern(str(code)), seen)


def _take(cell: PlannedCell, facts: Facts, registry: Registry) -> None:
    if facts.status is None:
        cell.damaged, cell.reason = True, facts.reason
        return
    cell.status = facts.status
    if not facts.recorded:
        return
    cell.reason = facts.reason
    pattern = cell.pattern
    if facts.seen is not None and pattern.seen < MOST_SEEN:
        pattern.seen += facts.status == "done"
        cell.seen = facts.seen
    now = code_digest(registry.get("methods", pattern.file.method).entry.target)
    cell.stale = bool(facts.code) and now is not None and facts.code != now
    kept = (cell.own or {}).get("keep_epochs", ())
    if cell.status == "done" and not is_whole(cell.folder, pattern.spec.role, kept):
        cell.status, cell.reason = "to run", "its weights or route are needed again"


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a forecast needs of a record. Raises AttributeError for what is none."""
    device, cost = (record.get("environment") or {}).get("device"), record.get("cost") or {}
    if not all(isinstance(cost.get(key), float | int) for key in ("setup_s", "train_s", "eval_s", "log_s")):
        cost = None
    seen = {"status": record["status"], "cost": cost, "device": device, "elapsed_s": None}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        began, ended = (datetime.fromisoformat(record[key]) for key in ("started_at", "finished_at"))
        seen["elapsed_s"] = (ended - began).total_seconds()
    return seen
