"""What mkdocs calls while it builds the site: adds the generated pages and the boards, and mends links.

A plain hook instead of further packages: `mkdocs.yml` names this file, mkdocs imports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from kdbench_docs.cli import cli_page, output_of
from kdbench_docs.measured import read_boards
from kdbench_docs.methods import method_page, methods_index
from kdbench_docs.published import published_rows
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from kdbench.leaderboard.folder import board_folders, load_folder
from kdbench.leaderboard.site import SiteBoard, render_site
from kdbench.leaderboard.site.load import site_board
from kdbench.registry import Registered, Registry

ROOT = Path(__file__).parents[2]
#: The plug-in whose methods get a page: what else is installed on this machine is no part of the site.
PLUGIN = "methods"
SCHEMAS = ("matrix", "recipe", "record")

#: In a page on a forge this comment is nothing; in the site, where the generated pages are, it names them.
MARK = "<!-- generated: pages -->"
GENERATED = """\
## Made from the code

- [Methods](methods/index.md): formula, hyper-parameters, presets, published and measured values of each.
- [Command line](reference/cli.md): every verb and option.
- JSON schemas, for editors and other programs: [matrix](reference/matrix.schema.json),
  [recipe](reference/recipe.schema.json), [record](reference/record.schema.json).
"""

#: What lets the search run in pages that are opened as files: the theme's, and ours.
THEIR_HELPER = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
HELPER = "search-in-files.js"

_FOREIGN = re.compile(
    r"<(?:script|img|iframe|source|link(?! rel=.canonical))\b[^>]*?\s(?:src|href)=.?(https?:[^\s>\"']+)"
)
_LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")


def shipped_methods() -> list[Registered]:
    """Return the methods of this project, by name."""
    return [item for item in Registry.load().all("methods") if item.plugin.name == PLUGIN]


def generated_pages() -> dict[str, str]:
    """Return the generated Markdown pages by their paths within the site."""
    boards, published = read_boards(ROOT / "leaderboards"), published_rows()
    items = shipped_methods()
    pages = {f"methods/{item.name}.md": method_page(item, boards, published) for item in items}
    return {
        "methods/index.md": methods_index(items, boards, published),
        **pages,
        "reference/cli.md": cli_page(),
    }


def site_boards(folder: Path) -> list[SiteBoard]:
    """Return the boards under `folder`, for their own site within this one."""
    return [site_board(load_folder(board)) for board in board_folders(folder)]


def on_config(config: Any) -> Any:
    """Put the methods into the navigation."""
    for section in config.nav:
        if "Methods" in section:
            section["Methods"] += [{item.name: f"methods/{item.name}.md"} for item in shipped_methods()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add pages, schemas and boards."""
    made: dict[str, str] = generated_pages()
    for kind in SCHEMAS:
        made[f"reference/{kind}.schema.json"] = output_of("schema", kind)
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path, content in render_site(site_boards(ROOT / "leaderboards")):
        files.append(File.generated(config, f"leaderboards/{path}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mend links out of the site, and name the generated pages where a page asks for it."""
    return relink(markdown.replace(MARK, GENERATED), page.file.src_uri)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Load the helper of the search from the site itself."""
    return with_own_helper(output, posixpath.relpath(HELPER, posixpath.dirname(page.file.dest_uri) or "."))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for pages without a source, such as 404."""
    return with_own_helper(output, HELPER)


def on_post_build(config: Any) -> None:
    """Raise PluginError when a page would load something from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        found = _FOREIGN.search(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(
                f"{path}: loads {found[1]} from elsewhere; the site must work without a network"
            )


def with_own_helper(output: str, helper: str) -> str:
    """Return a page that loads the helper of the search from `helper` instead of the theme's, from a network."""
    return output.replace(THEIR_HELPER, f'<script src="{helper}"></script>')


def relink(markdown: str, page: str) -> str:
    """Return a page with its links out of ``docs/`` mended.

    On a forge those links lead to files of the project. In the site, boards are there; of the rest only the
    words are kept.
    """

    def mend(match: re.Match[str]) -> str:
        words, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return match[0]
        board = re.fullmatch(r"leaderboards/([^/]+)(/(README\.md|index\.html))?", path)
        if board:
            target = f"leaderboards/boards/{board[1]}/index.html"
            up = posixpath.relpath(target, posixpath.dirname(page) or ".")
            return f"[{words}]({up})"
        return words

    return _LINK.sub(mend, markdown)
