"""Misuse of the command line, told in one line as any other bad input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, Any

import click

from kdbench.errors import did_you_mean

#: What a bare `kdbench` raises to print its help page; click before 8.2 raises nothing for it.
_HELP_PAGE: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Misuse(click.ClickException):
    """A usage error without click's lines of usage."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line to standard error."""
        click.echo(f"kdbench: error: {self.format_message()}", file=file, err=file is None)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn click's usage errors into :class:`Misuse`. The help page of a bare `kdbench` stays what it is."""
    try:
        yield
    except _HELP_PAGE:
        raise
    except click.UsageError as error:
        raise Misuse(_text(error)) from error


def _text(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    param = getattr(error, "param", None)
    kind = getattr(param, "type", None)
    if isinstance(kind, click.Choice):
        given = re.match(r"'(.*?)' is not one of", error.message)
        message += did_you_mean(given[1], map(str, kind.choices)) if given else ""
    if unknown := re.fullmatch("No such command '(.+)'", message):
        from kdbench.cli import VERBS

        near = get_close_matches(unknown[1], VERBS, n=1)
        message += f" (did you mean `kdbench {near[0]}`?)" if near else ""
    message = re.sub(r"\. Did you mean (.*\?)$", r" (did you mean \1)", message)
    path = error.ctx.command_path if error.ctx is not None else "kdbench"
    verb = path.partition(" ")[2]
    return f"{verb + ': ' if verb else ''}{message}; see `{path} --help`"
