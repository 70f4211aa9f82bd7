"""Switches of the user: which plug-ins stay out, and whether a faulty one is an error."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from kdbench.errors import UnknownName, did_you_mean
from kdbench.registry.discovery import normalise

DISABLE_VARIABLE = "KDBENCH_DISABLE_PLUGINS"
STRICT_VARIABLE = "KDBENCH_STRICT_PLUGINS"


def disabled_plugins(known: list[tuple[str, str]], disable: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return which of the `known` (plug-in, distribution) pairs are disabled, and by what.

    Raises UnknownName for a name that fits none of them.
    """
    wanted = [(name.strip(), "--disable-plugin") for name in disable]
    wanted += [(name.strip(), DISABLE_VARIABLE) for name in os.environ.get(DISABLE_VARIABLE, "").split(",")]
    result: dict[tuple[str, str], str] = {}
    for name, where in wanted:
        if not name:
            continue
        hits = [(p, d) for p, d in known if name == p or normalise(name) == normalise(d)]
        if not hits:
            near = did_you_mean(name, sorted({n for pair in known for n in pair}))
            installed = ", ".join(sorted({p for p, _ in known})) or "none"
            raise UnknownName(f"{where}: no plug-in {name!r}{near or f'; installed: {installed}'}")
        for hit in hits:
            result.setdefault(hit, where)
    return result


def strict_from_environment() -> bool:
    """Return whether ``KDBENCH_STRICT_PLUGINS`` asks for strict mode."""
    return os.environ.get(STRICT_VARIABLE, "").strip().lower() not in ("", "0", "false", "no", "off")


def environment_for_workers(disable: Iterable[str]) -> Mapping[str, str]:
    """Return the environment variables that make another process load the same plug-ins."""
    listed = [*disable, *os.environ.get(DISABLE_VARIABLE, "").split(",")]
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    return {DISABLE_VARIABLE: ",".join(names)} if names else {}
