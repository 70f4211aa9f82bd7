"""Guess what a plug-in would provide by reading its source, without running it.

A disabled plug-in must not be imported and a broken one cannot be. Their modules usually spell out their
entries, ``MethodEntry(name="abc", ...)``, which is enough to tell a user why a name is missing.
"""

from __future__ import annotations

import ast
from pathlib import Path

from kdbench.registry.kinds import ENTRY_CLASS, Kind
from kdbench.registry.provenance import top_level_spec

_KIND_OF_CLASS: dict[str, Kind] = {cls.__name__: kind for kind, cls in ENTRY_CLASS.items()}
_MAX_BYTES = 1 << 20


def declared_names(module: str) -> dict[Kind, list[str]]:
    """Return the entry names per kind that are spelt out as literals in the source of `module`."""
    names: dict[Kind, list[str]] = {}
    path = _source_of(module)
    try:
        if path is None or path.stat().st_size > _MAX_BYTES:
            return names
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return names
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        kind = _KIND_OF_CLASS.get(called)
        for keyword in node.keywords:
            value = keyword.value
            if kind and keyword.arg == "name" and isinstance(value, ast.Constant):
                names.setdefault(kind, []).append(str(value.value))
    return names


def _source_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = top_level_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.is_file():
                return path
    return None
