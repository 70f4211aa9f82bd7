"""Data of a board's page for its scripts: the seeds behind each row, and what the plots need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.curves import COLUMNS, band
from kdbench.leaderboard.plots import AXES, is_baseline
from kdbench.leaderboard.rows import Row, primary
from kdbench.leaderboard.site.model import SiteBoard, facets, link, method_page
from kdbench.leaderboard.text import clean, first_line

if TYPE_CHECKING:
    from kdbench.leaderboard.sections import Section
    from kdbench.results.schema import Record


def board_data(site_board: SiteBoard, curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the board's page holds as JSON; texts in it are cleaned and only ever shown as text."""
    sections = [_section(site_board, section) for section in site_board.board.sections]
    return {
        "rows": [_row(site_board, row) for row in site_board.board.rows],
        "sections": sections,
        "axes": [{"title": axis.title, "better": axis.better} for axis in AXES],
        "records": site_board.records,
        "cite": site_board.citation,
        "cell": "cell.html",
        "curves": curves,
    }


def curve_sources(site_board: SiteBoard, files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the board's page offers of the curves in `files`: title, address, names of the rows."""
    made = []
    for number in files:
        section = site_board.board.sections[int(number)]
        rows = {str(site_board.number(line)): line.row for line in section.rows}
        made.append(
            {
                "t": clean(f"{section.title}, {section.setting.dataset}", 500),
                "src": f"curves/{number}.js",
                "rows": [[n, clean(row.labels.variant)] for n, row in rows.items()],
                "base": next((n for n, row in rows.items() if is_baseline(row)), None),
            }
        )
    return made


def curve_files(site_board: SiteBoard) -> dict[str, dict[str, Any]]:
    """Return the learning curves of each table by its number: metric -> row -> band; only where there are any.

    Epochs count from 1; a band is epochs, mean, lowest and highest over its seeds, and their number.
    """
    made: dict[str, dict[str, Any]] = {}
    bands: dict[int, dict[str, Any]] = {}
    if not site_board.curves:
        return made
    for number, section in enumerate(site_board.board.sections):
        found: dict[str, dict[str, Any]] = {}
        for line in section.rows:
            row = site_board.number(line)
            if row not in bands:
                bands[row] = _bands(site_board, site_board.board.rows[row])
            for metric, values in bands[row].items():
                found.setdefault(metric, {})[str(row)] = values
        if found:
            made[str(number)] = found
    return made


def _bands(site_board: SiteBoard, row: Row) -> dict[str, Any]:
    found = {}
    for metric in COLUMNS:
        values = band(row.records, site_board.curves, metric)
        if values is not None:
            digits = 4 if metric == "train_loss" else 2
            low, mean, high = (
                [round(v, digits) for v in vs] for vs in (values.low, values.mean, values.high)
            )
            found[metric] = [values.epochs, mean, low, high, values.seeds]
    return found


def _row(site_board: SiteBoard, row: Row) -> dict[str, Any]:
    made: dict[str, Any] = {
        "v": clean(row.labels.variant),
        "m": link(site_board.page, method_page(row.labels.method)),
        "f": facets(row),
        "s": [_seed(record) for record in row.records],
    }
    if row.why_null:
        made["w"] = clean(row.why_null, 300)
    if row.published:
        made["p"] = [
            [
                *(_round(v) for v in (p.value, p.sd, p.difference)),
                p.protocol_equal,
                clean(p.source, 400),
                clean(p.selection),
                [clean(d, 300) for d in p.differences],
            ]
            for p in row.published
        ]
    return made


def _seed(record: Record) -> list[Any]:
    """Seed, status, cell id, and accuracies (last, best val, best test) or the reason of a failure."""
    net = primary(record)
    head = [record.labels.seed, record.status, record.cell_id]
    if net is None:
        return [*head, first_line(record.error.message) if record.error else "no reason recorded"]
    return [
        *head,
        *(_round(v) for v in (net.last.get("top1"), *(b and b.top1 for b in (net.best_val, net.best_test)))),
    ]


def _section(site_board: SiteBoard, section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {
        "t": clean(section.title, 500),
        "d": clean(section.setting.dataset),
        "r": [site_board.number(line) for line in section.rows],
    }
    place = [getattr(getattr(line, "place", None), "precision", None) for line in section.rows]
    if any(place):
        found["precision"] = clean(place[0])
    points = []
    for line in section.rows:
        if isinstance(line, Row) and line.last.mean is not None:
            costs = [None if (v := axis.value(line)) is None else float(f"{v:.6g}") for axis in AXES]
            s = line.last
            points.append(
                [
                    site_board.number(line),
                    costs,
                    *map(_round, (s.mean, s.ci95_low, s.ci95_high)),
                    int(is_baseline(line)),
                ]
            )
    if len(points) > 1:
        found["p"] = points
    return found


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
