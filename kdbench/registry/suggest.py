"""The names that a user may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kdbench.errors import did_you_mean
from kdbench.hooks import Entry


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean ...?)"`` or an empty string; a model of this very name goes first."""
    known = sorted(set(known))
    models = [n for n in known if n.partition(":")[2] == name]
    return f" (did you mean {' or '.join(map(repr, models))}?)" if models else did_you_mean(name, known)


def mentioned(words: str, entries: Iterable[Entry], *, limit: int = 3) -> str:
    """Return ``" (did you mean ...?)"`` for the entries whose summary, tags or paper have `words`, or nothing."""
    pattern = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)
    found = [
        entry.name
        for entry in entries
        if pattern.search("\n".join([entry.summary, *entry.tags, getattr(entry, "paper", "")]))
    ]
    return f" (did you mean {' or '.join(map(repr, found[:limit]))}?)" if words.strip() and found else ""
