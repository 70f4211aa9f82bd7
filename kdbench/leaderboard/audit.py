"""What is wrong with published tables: gaps to what was measured here, and values that mix protocols."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdbench.leaderboard.published import Published
from kdbench.leaderboard.published_file import SELECTION, Entry
from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.text import number

#: Points of top-1: sources that lie further apart than this on one method and pair are told.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Gap:
    """A published value and ours."""

    row: Row
    published: Published


def gaps(rows: Iterable[Row]) -> list[Gap]:
    """Return every published value that has a measured one beside it, the largest difference first."""
    found = [Gap(row, p) for row in rows for p in row.published if p.difference is not None]
    return sorted(found, key=lambda g: (-abs(g.published.difference or 0.0), g.row.labels.variant))


def mixed(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return lines on the published values, by the kind of trouble.

    Values that nobody has read in their source are counted and looked at no further.
    """
    read = [e for e in entries if e.verified]
    return {
        "one method and pair, given differently": _apart(read),
        "copied into a table with another selection rule": _copied(read),
        "more than one selection rule in a table": _rules(read),
        "teachers of one name that differ": _networks(read, "teacher"),
        "students alone of one name that differ": _networks(read, "student"),
        "not read in their source, and never shown": _unread(entries),
    }


def numbered(lists: Sequence[Sequence[str]], sources: Iterable[str]) -> tuple[list[list[str]], list[str]]:
    """Return the lists with ``[n]`` in place of each source, and the sources by number; they are long."""
    texts = sorted(set(sources), key=lambda s: (-len(s), s))
    if not texts:
        return [list(lines) for lines in lists], []
    pattern = re.compile("|".join(map(re.escape, texts)))
    used: dict[str, int] = {}

    def number_of(match: re.Match[str]) -> str:
        return f"[{used.setdefault(match[0], len(used) + 1)}]"

    return [[pattern.sub(number_of, line) for line in lines] for lines in lists], list(used)


def _apart(entries: Sequence[Entry]) -> list[str]:
    """The same method on the same pair, with values of different sources and what they say of the epoch."""
    lines = []
    for (dataset, pair, method), found in _by_cell(entries).items():
        values = {e.top1 for e in found}
        if max(values) - min(values) <= TOLERANCE:
            continue
        told = dict.fromkeys(f"{_top1(e.top1)} ({SELECTION[e.selection]}; {e.source})" for e in found)
        lines.append((max(values) - min(values), f"{method} on {pair}, {dataset}: {', '.join(told)}"))
    return [f"{number(apart, 2)}: {line}" for apart, line in sorted(lines, key=lambda x: (-x[0], x[1]))]


def _copied(entries: Sequence[Entry]) -> list[str]:
    """Values that two sources give alike, to the last digit, under different rules: one of them copied."""
    copies: dict[tuple[str, str, str, str], int] = {}
    for found in _by_cell(entries).values():
        for i, a in enumerate(found):
            for b in found[i + 1 :]:
                rules = {a.selection, b.selection}
                if a.source != b.source and a.top1 == b.top1 and rules == {"last_epoch", "best_epoch"}:
                    last, best = (a, b) if a.selection == "last_epoch" else (b, a)
                    key = (best.source, last.source, a.dataset, a.method)
                    copies[key] = copies.get(key, 0) + 1
    return [
        f"{method}, {dataset}: {n} value(s) of {best} (best epoch) are those of {last} (last epoch)"
        for (best, last, dataset, method), n in sorted(copies.items())
    ]


def _rules(entries: Sequence[Entry]) -> list[str]:
    tables: dict[tuple[str, str], set[str]] = {}
    for e in entries:
        tables.setdefault((e.dataset, e.source), set()).add(e.selection)
    return [
        f"{source}, {dataset}: {', '.join(SELECTION[rule] for rule in sorted(rules))}"
        for (dataset, source), rules in sorted(tables.items())
        if len(rules) > 1
    ]


def _networks(entries: Sequence[Entry], which: str) -> list[str]:
    found: dict[tuple[str, str], dict[float, set[str]]] = {}
    for e in entries:
        value = getattr(e, f"{which}_top1")
        if value is not None:
            key = (e.dataset, getattr(e, which))
            found.setdefault(key, {}).setdefault(value, set()).add(e.source)
    return [
        f"{network}, {dataset}: "
        + ", ".join(f"{_top1(value)} ({_some(sources)})" for value, sources in sorted(values.items()))
        for (dataset, network), values in sorted(found.items())
        if len(values) > 1
    ]


def _unread(entries: Sequence[Entry]) -> list[str]:
    counts: dict[str, int] = {}
    for e in entries:
        if not e.verified:
            counts[e.source] = counts.get(e.source, 0) + 1
    return [f"{n} value(s) said to be of: {source}" for source, n in sorted(counts.items())]


def _by_cell(entries: Sequence[Entry]) -> dict[tuple[str, str, str], list[Entry]]:
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for e in entries:
        found.setdefault((e.dataset, f"{e.teacher} → {e.student}", e.method), []).append(e)
    return found


def _some(sources: set[str]) -> str:
    first, *others = sorted(sources)
    return first + (f" and {len(others)} more" if others else "")


def _top1(value: float) -> str:
    return f"{value:g}"
