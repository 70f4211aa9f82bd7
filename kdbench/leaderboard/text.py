"""Texts and numbers of a board. Records come from strangers: texts are cleaned, then escaped per format."""

from __future__ import annotations

import re
import unicodedata

NULL = "—"
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$#])")


#: Longest note of a board, in characters.
NOTE = 1000


def clean(text: object, limit: int = 200) -> str:
    """Return a text as one line without control, format (bidirectional) and undefined characters."""
    line = str(text)
    if not line.isprintable():
        line = "".join(
            " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c
            for c in line
            if unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn")
        )
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def first_line(text: str, limit: int = 200) -> str:
    """Return the first line of a text that has anything in it, cleaned."""
    return next((clean(line, limit) for line in text.splitlines() if line.strip()), "")


def markdown(text: object, limit: int = 200) -> str:
    """Return a text for a Markdown table cell: no markup, HTML, link or mention can come of it."""
    line = clean(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKDOWN.sub(r"\\\1", line)
    # Forges turn bare addresses and @names into links; a zero-width space keeps them text.
    line = line.replace("://", ":\u200b//").replace("@", "@\u200b")
    return re.sub(r"(?i)\bwww\.", "www\u200b.", line)


def spreadsheet(text: object, limit: int = 200) -> str:
    """Return a text for a CSV cell that no spreadsheet takes for a formula."""
    line = clean(text, limit)
    return f"'{line}" if line.startswith(("=", "+", "-", "@", "'", "＝", "＋", "－", "＠")) else line


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed digits, or the dash for null."""
    if value is None:
        return NULL
    text = f"{value:.{digits}f}"
    # Minus zero would make equal values look different.
    return text[1:] if float(text) == 0 and text.startswith("-") else text


def rate(value: float | None) -> str:
    """Return a positive quantity of any size with about three digits."""
    if value is None:
        return NULL
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int | None) -> str:
    """Return a count in units of a thousand, million or milliard: ``40.0 k``, ``1.52 M``."""
    if value is None:
        return NULL
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{rate(value / size)} {unit}"
    return str(value)
