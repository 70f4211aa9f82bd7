"""Tables of the site as HTML. Written by hand and not by a template: a large board has 50,000 cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from kdbench.leaderboard.text import NULL, clean


@dataclass(frozen=True)
class Head:
    """Heading of a column: `group` is a letter that the styles know, `numeric` ones sort by number."""

    title: str
    help: str = ""
    group: str = "w"
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: `value` is what a numeric column sorts by, `href` an address of this site, `mark` a class."""

    text: str
    value: float | None = None
    href: str = ""
    mark: str = ""
    expands: bool = False


def table(
    heads: Sequence[Head],
    rows: Iterable[tuple[int | None, Sequence[Cell]]],
    *,
    caption: str,
    kind: str = "",
    row_head: int = 0,
) -> Markup:
    """Return a table that the page's script can sort; every text is escaped.

    `rows` have a number that the page's data knows them by, or None; `row_head` is the column that names a row.
    """
    top = "".join(_head(head, n == row_head) for n, head in enumerate(heads))
    classes = [" ".join(filter(None, (h.group, "n" if h.numeric else ""))) for h in heads]
    body = "".join(_row(number, cells, classes, row_head) for number, cells in rows)
    # A box that scrolls must be reachable by keyboard.
    return Markup(  # every text in it is escaped above # nosec B704
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable {escape(kind)}"><caption class="sr">{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _head(head: Head, names: bool) -> str:
    classes = " ".join(filter(None, (head.group, "n" if head.numeric else "", "key" if names else "")))
    tip = f' title="{escape(clean(head.help, 500))}"' if head.help else ""
    title = escape(clean(head.title))
    return f'<th scope="col" class="{classes}"><button type="button"{tip}>{title}</button></th>'


def _row(number: int | None, cells: Sequence[Cell], classes: Sequence[str], row_head: int) -> str:
    at = "" if number is None else f' data-row="{number}"'
    made = [
        _cell(cell, kind, n == row_head) for n, (cell, kind) in enumerate(zip(cells, classes, strict=True))
    ]
    return f"<tr{at}>{''.join(made)}</tr>\n"


def _cell(cell: Cell, kind: str, names: bool) -> str:
    text = escape(clean(cell.text, 400))
    sort = _sort_value(cell)
    if cell.expands:
        text = f'<button type="button" class="row" aria-expanded="false">{text}</button>'
    elif cell.href:
        text = f'<a href="{escape(cell.href)}">{text}</a>'
    mark = f" {cell.mark}" if cell.mark else ""
    if names:
        return f'<th scope="row" class="{kind} key{mark}"{sort}>{text}</th>'
    return f'<td class="{kind}{mark}"{sort}>{text}</td>'


def _sort_value(cell: Cell) -> str:
    """The value as an attribute, where the text does not say it already."""
    if cell.value is None:
        return ""
    shown = f"{cell.value:.6g}"
    return "" if cell.text == shown else f' data-v="{shown}"'


def rank_cell(rank: int | None) -> Cell:
    """The cell of a rank."""
    return Cell(NULL if rank is None else str(rank), None if rank is None else float(rank))
