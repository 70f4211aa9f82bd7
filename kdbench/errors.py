"""The errors that a user is meant to read: one line, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdbenchError(Exception):
    """Bad input, told in one line: where (file, key or plug-in), what was expected, the nearest valid name."""

    exit_code = 2


class MatrixError(KdbenchError):
    """A matrix or recipe file that cannot be used; the message starts with ``file:line:``."""


class UnknownName(KdbenchError):
    """A name that no active plug-in provides."""


class PluginError(KdbenchError):
    """A plug-in that is asked for but broken, incompatible, disabled or in conflict."""


class DataError(KdbenchError):
    """A data set that is missing, empty, corrupt or inconsistent; the message names the file or folder."""


class RecordError(KdbenchError):
    """A record that is not valid; the message names the file."""


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the nearest of `known` in any case, or an empty string."""
    plain: dict[str, str] = {}
    for one in known:
        plain.setdefault(one.lower(), one)
    near = difflib.get_close_matches(name.lower(), plain, n=limit, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(plain[n]) for n in near)}?)" if near else ""
