"""The page of the command line, made from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from click.testing import CliRunner

from kdbench.cli import main
from kdbench_docs.markup import code, escape, table

#: Variables that the command reads, beside those of the libraries below it.
VARIABLES = {
    "KDBENCH_CACHE": "Folder of downloads and decoded images; default `~/.cache/kdbench`.",
    "KDBENCH_DISABLE_PLUGINS": "Plug-ins to leave out, separated by commas.",
    "KDBENCH_LEASE_S": "Seconds (default: 60) after which a process of another machine that gives no sign of life "
    "counts as gone, and its cell may be taken over.",
    "KDBENCH_STRICT_PLUGINS": "`1`: a broken, incompatible or conflicting plug-in is an error.",
    "MLFLOW_TRACKING_URI": "MLflow store of runs, where `--tracking-uri` is not given.",
}

#: How click tells a default at the end of a help text.
_DEFAULT = re.compile(r"\[default: ([^\]]*)\]")

_INTRO = """\
# Command line

`kdbench VERB ...`; `python -m kdbench VERB ...` is the same. This page is made from the commands; `--help`
prints the same text.

Exit codes: 0, all is well; 1, some cell, check or board is not; 2, bad input, told in one line; 130,
interrupted.
"""


def cli_page() -> str:
    """Return the page as Markdown."""
    rows = [[code(name), text] for name, text in VARIABLES.items()]
    verbs = list(_commands(main, "kdbench"))
    contents = table(
        ("Verb", "What it does"),
        [
            [f"[{code(path.removeprefix('kdbench '))}](#{_anchor(path)})", escape(_line(c))]
            for path, c in verbs[1:]
        ],
    )
    return (
        _INTRO
        + f"\n{contents}\n## Environment variables\n\n"
        + table(("Variable", "Meaning"), rows)
        + "".join(_section(path, command) for path, command in verbs)
    )


def output_of(*arguments: str) -> str:
    """Return what the command prints. Raises RuntimeError when it fails."""
    done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"kdbench {' '.join(arguments)}: exit code {done.exit_code}: {done.output}")
    return done.output


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from _commands(below, f"{path} {name}")


def _anchor(path: str) -> str:
    return path.replace(" ", "-")


def _line(command: click.Command) -> str:
    return command.get_short_help_str(limit=200)


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    text = f"\n## {path} {{ #{_anchor(path)} }}\n\n{code(usage)}\n\n{escape(help_text)}\n"
    rows = []
    for parameter in command.get_params(context):
        name, meaning = parameter.get_help_record(context) or ("", "")
        if name:
            default = _DEFAULT.search(meaning)
            told = _DEFAULT.sub("", meaning).strip()
            rows.append([code(name), escape(told) or "—", code(default[1]) if default else "—"])
    return text + "\n" + table(("Option", "Meaning", "Default"), rows)
