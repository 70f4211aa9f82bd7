"""The pages of a board: its tables and plots, and the page that shows any of its cells."""

from __future__ import annotations

from typing import Any

from kdbench.leaderboard.board import Board, setting_facts
from kdbench.leaderboard.columns import ABOUT, Column
from kdbench.leaderboard.overall import Overall
from kdbench.leaderboard.overall_table import HEADS, cells, sentences
from kdbench.leaderboard.plots import gap_table
from kdbench.leaderboard.published_table import HEAD, RIGHT, published_lines
from kdbench.leaderboard.sections import Section
from kdbench.leaderboard.site.cells import prefix_length
from kdbench.leaderboard.site.common import percent_cell, render_page
from kdbench.leaderboard.site.data import board_data
from kdbench.leaderboard.site.model import SiteBoard, link
from kdbench.leaderboard.site.tables import Cell, Head, rank_cell, table
from kdbench.leaderboard.svg import level
from kdbench.leaderboard.text import NOTE, clean

#: Letter of a column's group in the styles.
_GROUPS = {"what": "w", "accuracy": "a", "compared": "p", "cost": "c"}
#: Heading of the column that tables are ranked by.
RANKED = "Top-1, %"
_FACETS = ("method", "pair", "data set", "fidelity", "precision", "track")


def board_page(board: SiteBoard, *, alone: bool, curves: list[dict[str, Any]]) -> str:
    """Return the page of a board; `alone` where the site has no other, `curves` what it can draw."""
    page, content = board.page, board.board
    sections = [_section(board, n, section) for n, section in enumerate(content.sections)]
    data = board_data(board, curves)
    options = {name: sorted({row["f"][name] for row in data["rows"]}) for name in _FACETS}
    for section in data["sections"]:
        options["precision"] = sorted({*options["precision"], *filter(None, [section.get("precision")])})
    groups = {column.group for section in content.sections for column in section.shown}
    gaps = gap_table(content.rows)
    return render_page(
        "board",
        page,
        title=board.title,
        crumbs=[] if alone else [("Boards", link(page, "index.html"))],
        description=clean(content.description, 2000),
        statuses=content.statuses,
        facets=[(name, values) for name, values in options.items() if len(values) > 1],
        views=[group for group in ("accuracy", "compared", "cost") if group in groups],
        sections=sections,
        pareto=any("p" in s for s in data["sections"]),
        has_curves=bool(curves),
        gaps=None if gaps is None else _gaps(gaps),
        about=ABOUT,
        overalls=[_overall(overall, n) for n, overall in enumerate(content.overalls, 1)],
        published=_published(content),
        unfinished=_unfinished(board),
        n_unfinished=len(content.unfinished),
        notes=[clean(note, NOTE) for note in content.notes],
        cite=board.citation,
        plots=True,
        data=data,
    )


def _section(board: SiteBoard, n: int, section: Section) -> dict[str, Any]:
    heads = [Head("#", f"Rank by {section.by}", "w", True)]
    heads += [Head(c.title, c.help, _group(c), c.value is not None) for c in section.shown]
    rows = []
    for rank, line in zip(section.ranks, section.rows, strict=True):
        cells = [rank_cell(rank)]
        for k, column in enumerate(section.shown):
            value = column.value(line) if column.value is not None else None
            cells.append(Cell(column.text(line), value, expands=k == 0))
        rows.append((board.number(line), cells))
    grouped = "grouped" if len({h.group for h in heads}) > 2 else ""
    return {
        "id": f"table-{n}",
        "title": clean(section.title, 500),
        "facts": setting_facts(section.setting),
        "notes": [clean(note, 500) for note in section.notes],
        "table": table(heads, rows, caption=clean(section.title, 500), kind=f"board {grouped}", row_head=1),
    }


def _group(column: Column) -> str:
    """What is ranked stands in every view, beside the name."""
    return "w" if column.title == RANKED else _GROUPS.get(column.group, "o")


def _gaps(gaps: Any) -> Any:
    heads = [Head("Method"), *(Head(title, "", "w", True) for title in gaps.columns)]
    rows = [
        (None, [Cell(name), *(percent_cell(v, mark=f"heat {level(v)}") for v in values)])
        for name, values in gaps.lines
    ]
    return table(heads, rows, caption="Gap closed by method and pair", kind="heatmap")


def _overall(overall: Overall, n: int) -> dict[str, Any]:
    heads = [Head(title, numeric=numeric) for title, numeric in HEADS]
    rows = []
    for line in overall.lines:
        values = [None, line.rank, None, line.iqm, line.iqm_low]
        texts = cells(overall, line)
        rows.append((None, [Cell(text, value) for text, value in zip(texts, values, strict=True)]))
    title = clean(overall.title, 300)
    return {
        "title": title,
        "sentences": [clean(text, NOTE) for text in sentences(overall)],
        "diagram": None if overall.critical_difference is None else f"plots/ranks-{n}.svg",
        "table": table(heads, rows, caption=f"Methods over all settings: {title}", kind="list"),
    }


def _published(board: Board) -> Any:
    lines = published_lines(board)
    heads = [Head(title, numeric=right) for title, right in zip(HEAD, RIGHT, strict=True)]
    rows = [
        (None, [Cell(text, mark="" if n < 6 else "wrap") for n, text in enumerate(line)]) for line in lines
    ]
    return table(heads, rows, caption="Published beside measured", kind="list") if lines else None


def _unfinished(board: SiteBoard) -> Any:
    heads = [
        Head("Status"),
        Head("Method"),
        Head("Pair"),
        Head("Data set"),
        Head("Seed", numeric=True),
        Head("Reason"),
    ]
    rows = [
        (
            None,
            [
                Cell(u.status, mark="plain" if u.status == "not_applicable" else "bad"),
                Cell(u.variant, href=f"cell.html#{u.cell_id}"),
                Cell(u.pair),
                Cell(u.dataset),
                Cell(str(u.seed), float(u.seed)),
                Cell(u.message, mark="wrap"),
            ],
        )
        for u in board.board.unfinished
    ]
    return table(heads, rows, caption="Cells that did not finish", kind="list", row_head=1)


def cell_page(board: SiteBoard, *, alone: bool) -> str:
    """Return the page that shows any cell of a board."""
    page = board.path("cell.html")
    crumbs = [] if alone else [("Boards", link(page, "index.html"))]
    return render_page(
        "cell",
        page,
        title="Cell",
        crumbs=[*crumbs, (board.title, link(page, board.page))],
        plots=True,
        data={
            "digits": prefix_length(sum(len(row.records) for row in board.board.rows)),
            "records": board.records,
            "cite": board.citation,
            "curves": bool(board.curves),
        },
    )
