"""From records to the files of a board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.results.schema import Record


def render_board(
    records: Iterable[Record],
    *,
    title: str,
    description: str = "",
    notes: Sequence[str] = (),
    references: Sequence[str] | None = None,
) -> dict[str, bytes]:
    """Return the files of a board, name to content; equal sets of records give equal bytes.

    `references` are the methods that rows are compared with, None for the default ones. Raises RecordError when
    two records have one cell id, KdbenchError for a reference that no record has.
    """
    from kdbench.leaderboard.board import make_board
    from kdbench.leaderboard.csv_file import render_csv, render_speed_csv
    from kdbench.leaderboard.html_page import render_html
    from kdbench.leaderboard.markdown_page import render_markdown
    from kdbench.leaderboard.overall_csv import render_overall_csv

    board = make_board(
        list(records), title=title, description=description, notes=notes, references=references
    )
    more = {"speeds.csv": render_speed_csv(board), "overall.csv": render_overall_csv(board)}
    return {
        **{name: text.encode() for name, text in more.items() if text is not None},
        "leaderboard.csv": render_csv(board).encode(),
        "README.md": render_markdown(board).encode(),
        "index.html": render_html(board).encode(),
    }


def build_board(
    records: Iterable[Mapping[str, Any] | Record],
    out: str | Path,
    *,
    title: str | None = None,
    description: str | None = None,
    notes: Sequence[str] = (),
    references: Sequence[str] | None = None,
) -> list[Path]:
    """Write ``leaderboard.csv``, ``README.md`` and ``index.html`` into the folder `out`, made if needed.

    Where cells measured nothing but speed, ``speeds.csv`` has all of it; where methods stand in several settings,
    ``overall.csv`` ranks them over these.

    Records are mappings, which are validated, or records. `title` defaults to the folder's name, `references`,
    the methods that rows are compared with, to the usual ones. Returns the paths. Raises RecordError for a record
    that is not valid or twice there, KdbenchError for a reference that no record has, OSError.
    """
    from kdbench.leaderboard.thrift import Thrift
    from kdbench.results.schema import Record
    from kdbench.results.store import atomic_write_bytes, validate_record

    out = Path(out)
    thrift = Thrift()
    valid = [
        r if isinstance(r, Record) else thrift(validate_record(r, f"record {str(r.get('cell_id'))[:12]}"))
        for r in records
    ]
    title = title or out.resolve().name
    files = render_board(
        valid, title=title, description=description or "", notes=notes, references=references
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic_write_bytes(out / name, content)
    return [out / name for name in files]
