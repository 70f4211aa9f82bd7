"""Text to Markdown: escaping, tables, and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

#: ``code``, :role:`name`, `name`
_INLINE = re.compile(r"``(.+?)``|:\w+:`([^`]+)`|`([^`]+)`", flags=re.S)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, also in a cell of a table.

    All ASCII punctuation but the harmless becomes a character reference: whatever a plug-in wrote, it can
    neither end a cell nor start a tag.
    """
    safe = set(" .,;%/()-\n")
    return "".join(c if c.isalnum() or c in safe or ord(c) > 127 else f"&#{ord(c)};" for c in text)


def code(text: object) -> str:
    """Return text as code. A tag, not backquotes: those cannot hold ``|`` in a table everywhere."""
    return f"<code>{escape(str(text))}</code>"


def prose(text: str) -> str:
    """Return text escaped, with arXiv ids as links."""
    out, end = [], 0
    for match in _ARXIV.finditer(text):
        out += [escape(text[end : match.start()]), f"[arXiv:{match[1]}](https://arxiv.org/abs/{match[1]})"]
        end = match.end()
    return "".join([*out, escape(text[end:])])


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Return a table of cells that are Markdown already; columns in `right` are aligned right."""
    right = set(right)
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    lines = [head, rule, *([re.sub(r"[ \t\n]+", " ", cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def inline(text: str) -> str:
    """Return a docstring's line with its code and roles marked up and all else escaped."""
    out, end = [], 0
    for match in _INLINE.finditer(text):
        literal, role, name = match.groups()
        shown = literal or name or role.lstrip("~").rpartition(".")[2]
        out += [prose(text[end : match.start()]), code(" ".join(shown.split()))]
        end = match.end()
    return "".join([*out, prose(text[end:])])


def docstring(text: str | None) -> str:
    """Return a docstring as Markdown: paragraphs, bullet lists, and sections such as ``Args:``."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return "\n\n".join(_block(block) for block in blocks if block.strip()) + "\n"


def _block(block: str) -> str:
    first, _, rest = block.partition("\n")
    if re.fullmatch(r"\w+:", first) and rest.startswith(" "):
        return f"**{escape(first)}**\n\n" + _items(inspect.cleandoc("\n" + rest), r"(?=\S)")
    if re.match(r"[-*] ", first):
        return _items(block, r"[-*] ")
    return inline(block)


def _items(text: str, start: str) -> str:
    """Return lines as a list; a line that does not begin as `start` says goes on with the last item."""
    items: list[str] = []
    for line in text.splitlines():
        match = re.match(start, line)
        if match:
            items.append(line[match.end() :])
        elif items:
            items[-1] += " " + line.strip()
    return "\n".join(f"- {inline(item)}" for item in items)
