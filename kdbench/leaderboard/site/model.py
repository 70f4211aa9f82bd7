"""What the pages of the site are made from, and where each page is."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote

from kdbench.leaderboard.board import Board
from kdbench.leaderboard.curves import Curve
from kdbench.leaderboard.rows import Row, digest
from kdbench.leaderboard.text import clean


@dataclass(frozen=True)
class SiteBoard:
    """A board on the site.

    Attributes:
        name: its folder's name.
        curves: learning curves by cell id; may be empty.
        records: where its records are, with ``{id}`` for the cell id, as a reader of the project finds them.
        csv_sha256: digest of its ``leaderboard.csv``, by which a citation names the content.
        commit: git commit that holds the board; empty where it is in none.
        home: folder of its pages within the site; empty where the site is this board alone.
    """

    name: str
    board: Board
    curves: Mapping[str, Curve] = field(default_factory=dict)
    records: str = "records/{id}.json"
    csv_sha256: str = ""
    commit: str = ""
    home: str = ""

    @property
    def page(self) -> str:
        """Path of the board's page within the site."""
        return posixpath.join(self.home, "index.html")

    def path(self, name: str) -> str:
        """Path of another file of the board within the site."""
        return posixpath.join(self.home, name)

    @property
    def title(self) -> str:
        """Title, cleaned."""
        return clean(self.board.title)

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Number of each row by the identity of its object."""
        return {id(row): n for n, row in enumerate(self.board.rows)}

    def number(self, row: object) -> int:
        """Number of a row, also of a line of a table that was made from it."""
        return self.numbers[id(getattr(row, "row", row))]

    def record_path(self, cell_id: str) -> str:
        """Path of a record as an argument of a command."""
        return shlex.quote(self.records.replace("{id}", cell_id))

    @cached_property
    def citation(self) -> str:
        """An entry for a bibliography: the board, its commit and the digest of its table."""
        ended = [r.finished_at for row in self.board.rows for r in row.records]
        year = max((t[:4] for t in ended if re.match(r"\d{4}-", t)), default="")
        note = [f"commit {self.commit}"] if self.commit else []
        note += [f"sha256 of leaderboard.csv {self.csv_sha256}"] if self.csv_sha256 else []
        fields = {
            "title": _plain(self.title),
            "howpublished": _plain(f"kdbench board {self.name}"),
            "year": year,
            "note": ", ".join(note),
        }
        lines = [f"  {key} = {{{value}}}" for key, value in fields.items() if value]
        return f"@misc{{kdbench-{method_slug(self.name)},\n" + ",\n".join(lines) + "\n}"


def link(page: str, target: str) -> str:
    """Return the address of a file of the site as seen from a page of it."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))


def method_slug(name: str) -> str:
    """Return a name that every file system takes; two names never share one."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return plain if plain == name else f"{plain or 'method'}-{digest(name)}"


def method_page(name: str) -> str:
    """Path of a method's page within the site."""
    return f"methods/{method_slug(name)}.html"


def facets(row: Row, precision: str | None = None) -> dict[str, str]:
    """What rows are filtered by."""
    from kdbench.leaderboard.board import pair

    return {
        "method": clean(row.labels.method),
        "pair": clean(pair(row), 400),
        "data set": clean(row.labels.dataset),
        "fidelity": clean(row.labels.fidelity) or "unknown",
        "precision": clean(precision or "; ".join(row.precision) or "unknown"),
        "track": clean(getattr(row.labels, "track", None) or "default"),
    }


def _plain(text: str) -> str:
    return re.sub(r"[{}\\%#&$_^~]", " ", text)
