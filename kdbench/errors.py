"""The errors that a user is meant to read: one line, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from kdbench.redact import redact

#: Most characters of a line of a message: a file may hold a key of a megabyte.
MAX_LINE = 2000


def visible(text: str) -> str:
    """Return a text on one line in which no character drives a terminal or hides, by Python's escapes.

    Names of files and keys may hold line ends, colours and marks that turn the direction of writing.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…"


class KdbenchError(Exception):
    """Bad input, told in one line: where (file, key or plug-in), what was expected, the nearest valid name."""

    exit_code = 2

    # Texts of other errors stand in these, and a tracking URI may hold a password.
    def __str__(self) -> str:
        return visible(redact(super().__str__()))


class MatrixError(KdbenchError):
    """A matrix or recipe file that cannot be used; the message starts with ``file:line:``.

    It may have several lines, each a problem of its own.
    """

    def __str__(self) -> str:
        return "\n".join(map(visible, redact(Exception.__str__(self)).split("\n")))


class OptionError(KdbenchError):
    """What ``launcher_options`` of a matrix cannot have; who knows the file puts it and the line in front.

    Attributes:
        path: keys from the root of the matrix to the value.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


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
