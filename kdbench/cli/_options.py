"""Options that several verbs have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kdbench.matrix.word_or_number import WordOrNumber

Option = Callable[[Any], Any]


def device_option(about: str) -> Option:
    """``--device``, checked as soon as it is read."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda",
        callback=lambda ctx, param, value: _device(value),
        help=about,
    )


def runs_option(about: str = "Folder of run folders.") -> Option:
    """``--runs``, the folder in which run folders are looked for and made."""
    return click.option(
        "--runs",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("runs"),
        show_default=True,
        help=about,
    )


def set_option(about: str = "Override a key, as in run-matrix.") -> Option:
    """``--set KEY=VALUE``, as ``sets``."""
    return click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=about)


def only_option() -> Option:
    """``--only AXIS=A,B``."""
    return click.option(
        "--only", multiple=True, metavar="AXIS=A,B", help="Keep only cells with these values; repeatable."
    )


def workers_option(what: str) -> Option:
    """``--workers``; `what` they work on, in the plural."""
    about = f"{what} at a time (default: one per core, or GPU)."
    return click.option("--workers", type=click.IntRange(min=1), help=about)


def tracking_option() -> Option:
    """``--tracking-uri``, as ``tracking_uri``."""
    return click.option(
        "--tracking-uri", help="MLflow store (default: $MLFLOW_TRACKING_URI or sqlite:///mlflow.db)."
    )


def read_slots(value: str | None) -> Any:
    """Return the value of ``--slots-per-gpu``. Raises KdbenchError."""
    from kdbench.matrix.word_or_number import SLOTS

    return _read("--slots-per-gpu", SLOTS, value)


def read_gang(value: str | None) -> Any:
    """Return the value of ``--gang``. Raises KdbenchError."""
    from kdbench.matrix.word_or_number import GANG

    return _read("--gang", GANG, value)


def _read(option: str, known: WordOrNumber, value: str | None) -> str | int | None:
    from kdbench.errors import KdbenchError

    try:
        return None if value is None else known.read(value)
    except ValueError as e:
        raise KdbenchError(f"{option} {value}: {e}") from e


def _device(value: str) -> str:
    from kdbench.errors import KdbenchError, did_you_mean

    kind = value.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        near = did_you_mean("cuda" if kind in ("gpu", "nvidia") else kind, ["auto", "cpu", "cuda"])
        raise KdbenchError(f"--device {value}: expected auto, cpu or cuda{near}")
    return value
