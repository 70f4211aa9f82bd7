"""Writing the site, and taking away what an earlier build left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.leaderboard.site.cells import cell_files
from kdbench.leaderboard.site.data import curve_files, curve_sources
from kdbench.leaderboard.site.model import SiteBoard, method_page
from kdbench.leaderboard.site.overviews import home_page, method_page_html, places
from kdbench.leaderboard.site.pages import board_page, cell_page
from kdbench.leaderboard.svg import rank_diagram

_STATIC = Path(__file__).parent / "static"
#: Names the files of the last build, so that the next one can take away those that it does not write.
MANIFEST = ".kdbench-site"


def render_site(boards: Sequence[SiteBoard]) -> Iterator[tuple[str, bytes]]:
    """Yield (path within the site, content), the same for the same boards."""
    alone = len(boards) == 1 and not boards[0].home
    curves: set[str] = set()
    for board in boards:
        found = curve_files(board)
        for number, data in found.items():
            key = f"curves/{number}"
            curves.add(board.path(f"{key}.js"))
            text = f"kdbench.put({json.dumps(data, separators=(',', ':'))});\n"
            yield board.path(f"{key}.js"), text.encode()
        for n, overall in enumerate(board.board.overalls, 1):
            if overall.critical_difference is not None:
                yield board.path(f"plots/ranks-{n}.svg"), rank_diagram(overall).encode()
        yield board.page, board_page(board, alone=alone, curves=curve_sources(board, found)).encode()
        yield board.path("cell.html"), cell_page(board, alone=alone).encode()
        for path, text in cell_files(board):
            yield path, text.encode()
    by_method = places(boards)
    for name, rows in by_method.items():
        yield method_page(name), method_page_html(name, rows, alone=alone, curves=curves).encode()
    if not alone:
        yield "index.html", home_page(boards, by_method).encode()
    for path in sorted(_STATIC.iterdir()):
        if path.suffix in (".js", ".css"):
            yield f"assets/{path.name}", path.read_bytes()
    yield "assets/plotly.min.js", plotly_bundle().read_bytes()


def write_site(boards: Sequence[SiteBoard], out: Path) -> Path:
    """Write the site into the folder `out`, made if needed, and return the path of its first page.

    Files of an earlier build that are no longer part of the site are removed; others in the folder stay. Files
    are not written atomically: the site can always be built again. Raises OSError, KdbenchError for a link in
    `out` that leads out of it.
    """
    before = _manifest(out)
    written: list[str] = []
    folders: set[Path] = set()
    for name, content in render_site(boards):
        path = out / name
        if path.parent not in folders:
            _stays_inside(path.parent, out)
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        if path.is_symlink():
            path.unlink()
        # 5 MB that rarely change: left alone where they are there already
        if not (name.endswith("plotly.min.js") and path.exists() and path.stat().st_size == len(content)):
            try:
                path.write_bytes(content)
            except OSError as error:
                error.filename = str(path)  # a write knows no name
                raise
        written.append(name)
    if (out / MANIFEST).is_symlink():
        (out / MANIFEST).unlink()
    (out / MANIFEST).write_text(json.dumps(sorted(written), indent=0) + "\n", encoding="utf-8")
    for name in sorted(set(before) - set(written)):
        if (out / name).parent.is_dir():
            _stays_inside((out / name).parent, out)
            (out / name).unlink(missing_ok=True)
    return out / "index.html"


def _stays_inside(folder: Path, out: Path) -> None:
    """A link in somebody's branch must not make the site write elsewhere. Raises KdbenchError."""
    if not folder.resolve().is_relative_to(out.resolve()):
        raise KdbenchError(f"{folder}: is a link out of the site's folder; remove it")


def _manifest(out: Path) -> list[str]:
    """Return the files of the last build, only those below `out`: the manifest might have been edited."""
    try:
        names = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    texts = [n for n in names if isinstance(n, str) and n] if isinstance(names, list) else []
    return [n for n in texts if not Path(n).is_absolute() and ".." not in Path(n).parts]


def plotly_bundle() -> Path:
    """Return plotly's script as its Python package ships it, without importing the package."""
    from importlib.util import find_spec

    spec = find_spec("plotly")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path
    raise KdbenchError(
        "the package plotly is missing, which ships the script of the plots: pip install plotly"
    )
