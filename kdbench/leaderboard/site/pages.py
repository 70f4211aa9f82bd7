"""The HTML pages of the site: over all boards, of a board, of its cells, of a method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.leaderboard.board import Board, pair, setting_facts
from kdbench.leaderboard.columns import ABOUT, Column
from kdbench.leaderboard.overall import Overall
from kdbench.leaderboard.overall_table import HEADS, cells, sentences
from kdbench.leaderboard.plots import gap_table
from kdbench.leaderboard.published_table import HEAD, RIGHT, published_lines
from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.sections import Section
from kdbench.leaderboard.site.cells import prefix_length
from kdbench.leaderboard.site.data import board_data
from kdbench.leaderboard.site.model import SiteBoard, facets, link, method_page
from kdbench.leaderboard.site.tables import Cell, Head, rank_cell, table
from kdbench.leaderboard.svg import level
from kdbench.leaderboard.templating import template
from kdbench.leaderboard.text import NOTE, NULL, clean, number

#: Letter of a column's group in the styles.
_GROUPS = {"what": "w", "accuracy": "a", "compared": "p", "cost": "c"}
#: Heading of the column that tables are ranked by.
RANKED = "Top-1, %"
_FACETS = ("method", "pair", "data set", "fidelity", "precision", "track")


@dataclass(frozen=True)
class Place:
    """A row of a board with its place in the first table that has it."""

    board: SiteBoard
    section: int
    row: Row
    rank: int | None
    of: int


def places(boards: Sequence[SiteBoard]) -> dict[str, list[Place]]:
    """Return the rows of trained cells by method, in the order of boards and tables."""
    found: dict[str, list[Place]] = {}
    for board in boards:
        seen: set[int] = set()
        for n, section in enumerate(board.board.sections):
            ranked = sum(rank is not None for rank in section.ranks)
            for rank, line in zip(section.ranks, section.rows, strict=True):
                if isinstance(line, Row) and board.number(line) not in seen:
                    seen.add(board.number(line))
                    found.setdefault(line.labels.method, []).append(Place(board, n, line, rank, ranked))
    return dict(sorted(found.items()))


def home_page(boards: Sequence[SiteBoard], by_method: dict[str, list[Place]]) -> str:
    """Return the page over all boards."""
    page = "index.html"
    heads = [
        Head("Board"),
        Head("Data sets"),
        Head("Pairs", numeric=True),
        Head("Methods", numeric=True),
        Head("Cells done", "Finished cells of all cells", numeric=True),
        Head("Tables", numeric=True),
        Head("Hardware"),
    ]
    rows = []
    for board in boards:
        cells = [r for row in board.board.rows for r in row.records]
        done = sum(r.status == "done" for r in cells)
        pairs = {pair(r) for r in board.board.rows if r.labels.role == "student" and r.labels.teacher}
        hardware = sorted({h for row in board.board.rows for h in row.hardware})
        rows.append(
            (
                None,
                [
                    Cell(board.title, href=link(page, board.page)),
                    Cell("; ".join(sorted({r.labels.dataset for r in board.board.rows})) or NULL),
                    _count(len(pairs)),
                    _count(len({r.labels.method for r in board.board.rows})),
                    Cell(f"{done}/{len(cells)}", float(done)),
                    _count(len(board.board.sections)),
                    Cell("; ".join(hardware) or NULL, mark="wrap"),
                ],
            )
        )
    return _render(
        "home",
        page,
        title="Boards",
        crumbs=[],
        boards=table(heads, rows, caption="Boards", kind="list"),
        methods=_methods(page, by_method),
        plots=False,
    )


def _methods(page: str, by_method: dict[str, list[Place]]) -> Any:
    heads = [
        Head("Method"),
        Head("Boards", numeric=True),
        Head("Settings", "Pairs and data sets with a mean", numeric=True),
        Head("Best rank", numeric=True),
        Head("Median gap closed", "Over the settings where there is a gap to close", numeric=True),
        Head("Not done", "Cells without a result", numeric=True),
    ]
    rows = []
    for name, found in by_method.items():
        ranks = [p.rank for p in found if p.rank is not None]
        gaps = [g for p in found if (g := p.row.gap_closed) is not None]
        gap = statistics.median(gaps) if gaps else None
        best = min(ranks) if ranks else None
        lost = sum(len(p.row.records) - len(p.row.done) for p in found)
        rows.append(
            (
                None,
                [
                    Cell(name, href=link(page, method_page(name))),
                    _count(len({p.board.name for p in found})),
                    _count(sum(p.row.last.mean is not None for p in found)),
                    rank_cell(best),
                    _percent(gap),
                    _count(lost),
                ],
            )
        )
    return table(heads, rows, caption="Methods", kind="list")


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
    return _render(
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
        (None, [Cell(name), *(_percent(v, mark=f"heat {level(v)}") for v in values)])
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
    return _render(
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


def method_page_html(name: str, found: Sequence[Place], *, alone: bool, curves: set[str]) -> str:
    """Return the page of a method: its rows on all boards, and its curves where a board keeps any."""
    page = method_page(name)
    heads = [
        Head("As", "Method with what was changed from its defaults"),
        Head("Board"),
        Head("Pair"),
        Head("Data set"),
        Head("Rank", "Of the ranked rows of its table", numeric=True),
        Head("Seeds", "Finished cells of planned cells", numeric=True),
        Head("Top-1, %", "After the last epoch: mean ± standard deviation over seeds", numeric=True),
        Head("95 % interval", "Student's t interval of the mean", numeric=True),
        Head("Gap closed", numeric=True),
        Head("Step / baseline", "Step time relative to the baseline's on the same hardware", numeric=True),
        Head("Fidelity"),
        Head("Preset"),
        Head("Track"),
    ]
    rows = []
    for p in found:
        row, s = p.row, p.row.last
        of = NULL if p.rank is None else f"{p.rank} of {p.of}"
        spread = number(s.mean, 2) + (f" ± {number(s.sd, 2)}" if s.sd is not None else "")
        there = s.ci95_low is not None
        rows.append(
            (
                None,
                [
                    Cell(row.labels.variant + (" (as teacher)" if row.labels.role == "teacher" else "")),
                    Cell(p.board.title, href=f"{link(page, p.board.page)}#table-{p.section}", mark="wrap"),
                    Cell(pair(row)),
                    Cell(row.labels.dataset),
                    Cell(of, None if p.rank is None else float(p.rank)),
                    Cell(f"{len(row.done)}/{len(row.records)}", float(len(row.done))),
                    Cell(spread, s.mean),
                    Cell(
                        f"{number(s.ci95_low, 2)} to {number(s.ci95_high, 2)}" if there else NULL, s.ci95_low
                    ),
                    _percent(row.gap_closed),
                    Cell(
                        NULL if row.relative_step is None else f"{number(row.relative_step, 2)} ×",
                        row.relative_step,
                    ),
                    Cell(row.labels.fidelity or NULL),
                    Cell(row.labels.preset or NULL),
                    Cell(facets(row)["track"]),
                ],
            )
        )
    drawn: dict[str, dict[str, Any]] = {}
    for p in found:
        source = p.board.path(f"curves/{p.section}.js")
        if source not in curves:
            continue
        title = f"{p.board.title}: {p.board.board.sections[p.section].title}, {p.row.labels.dataset}"
        rows_of = drawn.setdefault(
            source, {"t": clean(title, 300), "src": link(page, source), "rows": [], "base": None}
        )["rows"]
        rows_of.append([str(p.board.number(p.row)), clean(p.row.labels.variant)])
        base = p.row.baseline
        if base is not None and all(number != str(p.board.number(base)) for number, _ in rows_of):
            rows_of.append([str(p.board.number(base)), clean(f"{base.labels.variant} (student alone)")])
    return _render(
        "method",
        page,
        title=clean(name),
        crumbs=[("Boards" if not alone else "Board", link(page, "index.html"))],
        table=table(heads, rows, caption=f"Rows of {clean(name)}", kind="list"),
        n=len(found),
        plots=bool(drawn),
        data={"curves": list(drawn.values())},
    )


def _render(name: str, page: str, **values: Any) -> str:
    text = template(f"site/{name}.html.j2").render(assets=link(page, "assets"), **values)
    return str(text)


def _count(value: int) -> Cell:
    return Cell(str(value), float(value))


def _percent(value: float | None, mark: str = "") -> Cell:
    return Cell(NULL if value is None else f"{number(100 * value, 1)} %", value, mark=mark)
