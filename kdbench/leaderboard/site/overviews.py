"""Pages over several boards: the first page, and the page of a method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.leaderboard.board import pair
from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.site.common import count_cell, percent_cell, render_page
from kdbench.leaderboard.site.model import SiteBoard, facets, link, method_page
from kdbench.leaderboard.site.tables import Cell, Head, rank_cell, table
from kdbench.leaderboard.text import NULL, clean, number


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
                    count_cell(len(pairs)),
                    count_cell(len({r.labels.method for r in board.board.rows})),
                    Cell(f"{done}/{len(cells)}", float(done)),
                    count_cell(len(board.board.sections)),
                    Cell("; ".join(hardware) or NULL, mark="wrap"),
                ],
            )
        )
    return render_page(
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
                    count_cell(len({p.board.name for p in found})),
                    count_cell(sum(p.row.last.mean is not None for p in found)),
                    rank_cell(best),
                    percent_cell(gap),
                    count_cell(lost),
                ],
            )
        )
    return table(heads, rows, caption="Methods", kind="list")


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
                    percent_cell(row.gap_closed),
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
    return render_page(
        "method",
        page,
        title=clean(name),
        crumbs=[("Boards" if not alone else "Board", link(page, "index.html"))],
        table=table(heads, rows, caption=f"Rows of {clean(name)}", kind="list"),
        n=len(found),
        plots=bool(drawn),
        data={"curves": list(drawn.values())},
    )
