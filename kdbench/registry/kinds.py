"""The kinds of things that plug-ins provide, with the hook and the entry class of each."""

from __future__ import annotations

from typing import Literal

from kdbench.errors import UnknownName, did_you_mean
from kdbench.hooks import (
    ArchitectureEntry,
    DatasetEntry,
    Entry,
    EvaluatorEntry,
    LauncherEntry,
    MethodEntry,
    SinkEntry,
    TaskEntry,
)

Kind = Literal["methods", "architectures", "datasets", "tasks", "evaluators", "launchers", "sinks"]

#: All kinds, in the order of `kdbench list`.
KINDS: tuple[Kind, ...] = (
    "methods",
    "architectures",
    "datasets",
    "tasks",
    "evaluators",
    "launchers",
    "sinks",
)

#: Class of which every entry of a kind must be an instance.
ENTRY_CLASS: dict[Kind, type[Entry]] = {
    "methods": MethodEntry,
    "architectures": ArchitectureEntry,
    "datasets": DatasetEntry,
    "tasks": TaskEntry,
    "evaluators": EvaluatorEntry,
    "launchers": LauncherEntry,
    "sinks": SinkEntry,
}

#: Hook that returns the entries of a kind.
PROVIDER_HOOK: dict[Kind, str] = {kind: f"kdbench_{kind}" for kind in KINDS}


def singular(kind: str) -> str:
    """Return the word for one thing of a kind: ``"methods"`` -> ``"method"``."""
    return kind.removesuffix("s")


def to_kind(word: str) -> Kind:
    """Return the kind that `word` names in its singular or plural. Raises UnknownName."""
    for kind in KINDS:
        if word in (kind, singular(kind)):
            return kind
    known = [w for kind in KINDS for w in (kind, singular(kind))]
    raise UnknownName(f"unknown kind {word!r}: expected one of {', '.join(KINDS)}{did_you_mean(word, known)}")
