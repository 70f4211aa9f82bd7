"""``index.html`` of a board: one file without network access, sortable and filterable."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kdbench.leaderboard.board import Board, setting_facts
from kdbench.leaderboard.columns import ABOUT
from kdbench.leaderboard.overall_table import HEADS, cells, sentences
from kdbench.leaderboard.rows import primary
from kdbench.leaderboard.sections import Section
from kdbench.leaderboard.text import NOTE, NULL, clean, first_line


def render_html(board: Board) -> str:
    """Return the page's text; the template escapes every value."""
    numbers = {id(row): n for n, row in enumerate(board.rows)}
    return str(
        _template().render(
            title=clean(board.title),
            description=clean(board.description, 2000),
            notes=[clean(note, NOTE) for note in board.notes],
            statuses=board.statuses,
            about=ABOUT,
            sections=[_section(s, numbers) for s in board.sections],
            overall_heads=HEADS,
            overalls=[
                {
                    "title": clean(overall.title),
                    "sentences": [clean(sentence, NOTE) for sentence in sentences(overall)],
                    "rows": [[clean(c) for c in cells(overall, line)] for line in overall.lines],
                }
                for overall in board.overalls
            ],
            unfinished=[
                {
                    "status": u.status,
                    "variant": clean(u.variant),
                    "pair": clean(u.pair, 400),
                    "dataset": clean(u.dataset),
                    "seed": u.seed,
                    "message": u.message,
                }
                for u in board.unfinished
            ],
            seeds=[[_seed(r) for r in row.records] for row in board.rows],
        )
    )


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # ``tojson`` writes <, >, & and ' as escapes, so that no value can end the script element.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return environment.get_template("board.html.j2")


def _section(section: Section, numbers: dict[int, int]) -> dict[str, Any]:
    rows = []
    for rank, row in zip(section.ranks, section.rows, strict=True):
        cells = [
            (clean(c.text(row), 400), clean(c.sort_key(row), 400), c.value is not None) for c in section.shown
        ]
        rows.append(
            {
                "number": numbers[id(getattr(row, "row", row))],
                "rank": NULL if rank is None else str(rank),
                "cells": cells,
            }
        )
    return {
        "title": clean(section.title, 500),
        "facts": setting_facts(section.setting),
        "notes": [clean(note, 500) for note in section.notes],
        "heads": [(c.title, c.help, c.value is not None) for c in section.shown],
        "by": section.by,
        "rows": rows,
    }


def _seed(record: Any) -> list[Any]:
    """One seed for the details of a row: seed, status, accuracies, cell id or the reason of the failure."""
    net = primary(record)
    if net is None:
        return [record.labels.seed, record.status, first_line(record.error.message) if record.error else ""]
    best = [b and round(b.top1, 4) for b in (net.best_val, net.best_test)]
    last = net.last.get("top1")
    return [record.labels.seed, record.status, record.cell_id, last and round(last, 4), *best]
