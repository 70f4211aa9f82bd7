"""What the pages of the site have in common."""

from __future__ import annotations

from typing import Any

from kdbench.leaderboard.site.model import link
from kdbench.leaderboard.site.tables import Cell
from kdbench.leaderboard.templating import template
from kdbench.leaderboard.text import NULL, number


def render_page(name: str, page: str, **values: Any) -> str:
    """Return the page at a path of the site, from the template of this name."""
    text = template(f"site/{name}.html.j2").render(assets=link(page, "assets"), **values)
    return str(text)


def count_cell(value: int) -> Cell:
    """The cell of a count."""
    return Cell(str(value), float(value))


def percent_cell(value: float | None, mark: str = "") -> Cell:
    """The cell of a fraction, in percent."""
    return Cell(NULL if value is None else f"{number(100 * value, 1)} %", value, mark=mark)
