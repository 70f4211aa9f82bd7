"""Plots as small SVG files for the page of a forge.

They are templates of ours and not a plotting library's output: committed files are compared byte for byte, and
libraries change what they write between versions. Numbers are rounded before they are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.plots import AXES, GapTable, Point, gap_table, points, usual_range
from kdbench.leaderboard.templating import template
from kdbench.leaderboard.text import NULL, clean, number

if TYPE_CHECKING:
    from kdbench.leaderboard.board import Board
    from kdbench.leaderboard.overall import Overall
    from kdbench.leaderboard.sections import Section

#: Tables that get a plot of their own on the forge's page; the site draws all.
MAX_SECTIONS = 20
_WIDTH, _HEIGHT = 720, 420
#: Points up to which each has its name beside it; of more only those that matter most.
_ALL = 12
#: Widest interval that the axis makes room for, in ranges of the means.
_WIDEST = 3.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 24, 72


def render_plots(board: Board) -> dict[str, bytes]:
    """Return the plots of a board by file name, ``plots/...``; empty where there is nothing to draw."""
    files = {}
    for number_, section in enumerate(board.sections[:MAX_SECTIONS], 1):
        text = accuracy_cost(section)
        if text is not None:
            files[f"plots/accuracy-cost-{number_}.svg"] = text
    table = gap_table(board.rows)
    if table is not None and len(table.columns) > 1:
        files["plots/gap-closed.svg"] = gap_map(table)
    for n, overall in enumerate(board.overalls, 1):
        if overall.critical_difference is not None:
            files[f"plots/ranks-{n}.svg"] = rank_diagram(overall)
    return {name: text.encode() for name, text in files.items()}


def accuracy_cost(section: Section) -> str | None:
    """Return top-1 over the time of a training step, or over inference where that is all there is.

    None with fewer than two points.
    """
    for axis in (AXES[0], AXES[4]):
        found = points(section, axis)
        if len(found) >= 2:
            break
    else:
        return None
    bottom, top = usual_range([p.y for p in found])
    inside = [p for p in found if bottom <= p.y <= top]
    xs = [p.x for p in inside]
    bottom, top = _reach(inside, bottom, top)
    log = min(xs) > 0 and max(xs) / min(xs) > 8
    x_ticks, y_ticks = _ticks(min(xs), max(xs), log=log), _ticks(bottom, max(top, bottom))
    x = _scale(x_ticks, _LEFT + 12, _WIDTH - _RIGHT - 40, log=log)
    y = _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP)
    marks = [_mark(point, x, y, (y_ticks[0], min(y_ticks[-1], 100.0))) for point in inside]
    outside = [p.name for p in found if not bottom <= p.y <= top and p not in inside]
    return _render(
        "accuracy-cost",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        title=f"Top-1 over {axis.title.lower()}: {clean(section.title)}",
        x_title=f"{axis.title} ({'less' if axis.better == 'low' else 'more'} is better)",
        x_ticks=[(_at(x(t)), _short(t)) for t in x_ticks],
        y_ticks=[(_at(y(t)), _short(t)) for t in y_ticks],
        marks=marks,
        line=" ".join(f"{a},{b}" for a, b in sorted((m["x"], m["y"]) for m in marks if m["best"])),
        labels=_labels([m for m in marks if len(marks) <= _ALL or m["best"] or m["baseline"]]),
        others=any(not m["best"] and not m["baseline"] for m in marks),
        cut=any(m["cut_low"] or m["cut_high"] for m in marks),
        outside=clean(f"Outside: {', '.join(outside)}", 60) if outside else "",
    )


def _reach(inside: Sequence[Point], bottom: float, top: float) -> tuple[float, float]:
    """Return the range of means, widened for the intervals but for those that would make the rest flat."""
    spread = max(top - bottom, 1.0)
    ends = [(p.low, p.high) for p in inside if p.low is not None and p.high is not None]
    shown = [(low, high) for low, high in ends if high - low <= _WIDEST * spread]
    margin = 0.2 * spread if len(shown) < len(ends) or not ends else 0.0
    low = min([bottom - margin, *(low for low, _ in shown)])
    return max(low, 0.0), min(max([top + margin, *(high for _, high in shown)]), 100.0)


def _mark(point: Point, x: Any, y: Any, ends: tuple[float, float]) -> dict[str, Any]:
    low = point.y if point.low is None else point.low
    high = point.y if point.high is None else point.high
    return {
        "cut_low": low < ends[0],
        "cut_high": high > ends[1],
        "x": _at(x(point.x)),
        "y": _at(y(point.y)),
        "low": _at(y(max(low, ends[0]))),
        "high": _at(y(min(high, ends[1]))),
        "best": point.best,
        "baseline": point.baseline,
        "name": point.name,
        "text": f"{point.name}: {number(point.y, 2)} % at {_short(point.x)}",
    }


def gap_map(table: GapTable) -> str:
    """Return the heat map of gap closed: a number in each cell, so that colour is never all."""
    cell, high, left, top = 96, 24, 190, 22 + 18 * len(table.columns)
    lines = []
    for n, (name, values) in enumerate(table.lines):
        cells = [
            {
                "x": left + cell * k,
                "text": NULL if v is None else f"{number(100 * v, 0)} %",
                "level": level(v),
            }
            for k, v in enumerate(values)
        ]
        lines.append({"y": top + high * n, "name": clean(name, 28), "cells": cells})
    legend = [
        (chr(ord("A") + k % 26) + ("" if k < 26 else str(k // 26)), c) for k, c in enumerate(table.columns)
    ]
    return _render(
        "gap-closed",
        width=max(left + cell * len(table.columns) + 8, 560),
        height=top + high * len(lines) + 8,
        title="Gap closed by method and pair",
        legend=[(18 + 18 * k, f"{letter}: {clean(text, 80)}") for k, (letter, text) in enumerate(legend)],
        heads=[(left + cell * k + cell // 2, letter) for k, (letter, _) in enumerate(legend)],
        head_y=top - 6,
        cell=cell,
        high=high,
        lines=lines,
    )


def rank_diagram(overall: Overall) -> str:
    """Return the diagram of average ranks (Demšar 2006): a bar joins methods that are not told apart.

    Methods stand in one column from best to worst, so that any number of them stays readable.
    """
    high, left, top, width = 20, 190, 62, 720
    ranks = {line.variant: line.rank for line in overall.lines}
    last = max(2, math.ceil(max(ranks.values())))
    bars = min(len(overall.cliques), 12)
    right = width - 24 - 12 * bars
    x = _scale([1.0, float(last)], left + 10, right - 10)
    rows = [
        {
            "y": top + high * n + 14,
            "x": _at(x(line.rank)),
            "name": clean(line.variant, 28),
            "rank": number(line.rank, 2),
        }
        for n, line in enumerate(overall.lines)
    ]
    at = {line.variant: row["y"] for line, row in zip(overall.lines, rows, strict=True)}
    cliques = [
        {"x": right + 12 + 12 * n, "top": min(found) - 7, "bottom": max(found) + 7}
        for n, clique in enumerate(overall.cliques[:bars])
        if (found := [at[v] for v in clique if v in at])
    ]
    cd = overall.critical_difference
    step = max(1, math.ceil((last - 1) / 12))
    return _render(
        "ranks",
        width=width,
        height=top + high * len(rows) + 14,
        left=left,
        right=right,
        top=top,
        title=f"Average rank over {overall.n} settings, 1 is best",
        ticks=[(_at(x(t)), t) for t in range(1, last + 1, step)],
        rows=rows,
        cliques=cliques,
        cd=None if cd is None else {"x1": _at(x(1)), "x2": _at(x(1 + cd)), "text": number(cd, 2)},
    )


def level(gap: float | None) -> str:
    """Return the shade of a gap: ``n3`` to ``n1`` below the baseline, ``p0`` at it, ``p1`` to ``p4`` above."""
    if gap is None:
        return "none"
    if gap < -0.05:
        return "n3" if gap < -1 else "n2" if gap < -0.3 else "n1"
    return f"p{sum(gap >= edge for edge in (0.05, 0.25, 0.5, 0.8))}"


def _render(name: str, **values: Any) -> str:
    return str(template(f"svg/{name}.svg.j2").render(**values))


def _labels(marks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names above their marks, pushed up where two would overlap."""
    made: list[dict[str, Any]] = []
    for mark in sorted(marks, key=lambda m: (-m["y"], m["x"])):
        at = mark["y"] - 11
        for other in made:
            if abs(other["x"] - mark["x"]) < 90 and abs(at - other["y"]) < 13:
                at = other["y"] - 13
        made.append({"x": mark["x"], "y": _at(max(at, 12)), "name": clean(mark["name"], 24)})
    return made


def _scale(ticks: Sequence[float], start: float, end: float, *, log: bool = False) -> Any:
    first, last = ticks[0], ticks[-1]
    if log:
        first, last = math.log10(first), math.log10(last)

    def place(value: float) -> float:
        share = ((math.log10(value) if log else value) - first) / (last - first)
        return start + min(1.0, max(0.0, share)) * (end - start)

    return place


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Return about five round numbers that include both ends."""
    if log:
        lowest, highest = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = [m * 10.0**e for e in range(lowest, highest + 1) for m in (1, 2, 5)]
        first = max(n for n, t in enumerate(every) if t <= low)
        last = min(n for n, t in enumerate(every) if t >= high)
        return every[first : last + 1]
    if high - low <= 1e-9 * abs(high):
        # equal values: a narrow range would show their rounding as differences
        low, high = 0.5 * low, 1.5 * high
    span = max(high - low, abs(high) * 0.01, 1e-9)
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _at(value: float) -> float:
    return round(value, 1) + 0.0


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
