"""From records to the files of a board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.leaderboard.board import Board
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

    board = make_board(
        list(records), title=title, description=description, notes=notes, references=references
    )
    return render_forms(board)


def render_forms(board: Board) -> dict[str, bytes]:
    """Return what a forge and programs read of a board: ``README.md``, tables as CSV, plots as SVG."""
    from kdbench.leaderboard.csv_file import render_csv, render_speed_csv
    from kdbench.leaderboard.markdown_page import render_markdown
    from kdbench.leaderboard.overall_csv import render_overall_csv
    from kdbench.leaderboard.published_table import render_published_csv
    from kdbench.leaderboard.svg import render_plots

    plots = render_plots(board)
    more = {
        "speeds.csv": render_speed_csv(board),
        "overall.csv": render_overall_csv(board),
        "published.csv": render_published_csv(board),
    }
    return {
        **{name: text.encode() for name, text in more.items() if text is not None},
        "leaderboard.csv": render_csv(board).encode(),
        "README.md": render_markdown(board, plots).encode(),
        **plots,
    }


def write_forms(board: Board, out: Path) -> dict[str, bytes]:
    """Write the forms of a board into the folder `out`, made if needed; return them.

    Plots of an earlier build that are no longer part of it are removed. Raises OSError, RecordError where
    ``plots`` is a link.
    """
    from kdbench.results.store import atomic_write_bytes, refuse_link

    refuse_link(out / "plots")
    files = render_forms(board)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(out / name, content)
    for path in left_over(out, files):
        path.unlink()
    return files


def left_over(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Return the plots in a board's folder that are none of its files."""
    return sorted(p for p in (out / "plots").glob("*.svg") if f"plots/{p.name}" not in files)


def build_board(
    records: Iterable[Mapping[str, Any] | Record],
    out: str | Path,
    *,
    title: str | None = None,
    description: str | None = None,
    notes: Sequence[str] = (),
    references: Sequence[str] | None = None,
    run: Path | None = None,
) -> list[Path]:
    """Write ``leaderboard.csv``, ``README.md`` and plots into the folder `out`, made if needed.

    Where cells measured nothing but speed, ``speeds.csv`` has all of it; where methods stand in several settings,
    ``overall.csv`` ranks them over these; where others published values for the rows' methods and pairs,
    ``published.csv`` has them. With `run`, the folder of the run whose records they are, the site of this one
    board is written beside them, with the run's learning curves.

    Records are mappings, which are validated, or records. `title` defaults to the folder's name, `references`,
    the methods that rows are compared with, to the usual ones. Returns the paths, ``index.html`` of the site last.
    Raises RecordError for a record that is not valid or twice there, KdbenchError for a reference that no record
    has, OSError.
    """
    from kdbench.leaderboard.board import make_board
    from kdbench.leaderboard.thrift import Thrift
    from kdbench.results.schema import Record
    from kdbench.results.store import validate_record

    out = Path(out)
    thrift = Thrift()
    valid = [
        r if isinstance(r, Record) else thrift(validate_record(r, f"record {str(r.get('cell_id'))[:12]}"))
        for r in records
    ]
    title = title or out.resolve().name
    board = make_board(valid, title=title, description=description or "", notes=notes, references=references)
    files = write_forms(board, out)
    made = [out / name for name in files]
    if run is not None:
        from kdbench.leaderboard.curves import run_curves
        from kdbench.leaderboard.site import write_site
        from kdbench.leaderboard.site.load import run_board

        curves = run_curves(run, valid)
        made.append(write_site([run_board(run, board, curves, files["leaderboard.csv"])], out))
    return made
