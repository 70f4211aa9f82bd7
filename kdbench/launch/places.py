"""Where in the matrix file a message belongs."""

from __future__ import annotations

import json
from typing import Any

from kdbench.matrix import CellSpec, LoadedMatrix
from kdbench.matrix.document import KeyPath


def place_of(loaded: LoadedMatrix, keys: tuple[str, ...], name: str) -> KeyPath:
    """Return the key path of the first list item under one of `keys` that mentions `name`, or the first key."""
    raw: dict[str, Any] = json.loads(loaded.matrix.model_dump_json())
    for key in keys:
        items = raw.get(key)
        for i, item in enumerate(items if isinstance(items, list) else ()):
            if f'"{name}"' in json.dumps(item):
                return (key, i)
    return keys[:1]


#: Keys under which architectures stand.
NETWORKS = ("pairs", "teachers", "students", "include")


def place_of_problem(loaded: LoadedMatrix, spec: CellSpec, message: str) -> KeyPath:
    """Return the key path of what a message is about: an architecture that it names, or the method."""
    for arch in (spec.student, spec.teacher, spec.assistant):
        if arch is None:
            continue
        if any(f"'{name}'" in message for name in (arch.name, arch.name.rpartition(":")[2])):
            path = place_of(loaded, NETWORKS, arch.name)
            if len(path) > 1:
                return path
    return spec.source


def place_of_parameter(spec: CellSpec, message: str) -> KeyPath:
    """Return the key path of the parameter that a message names first, or of the method."""
    named = {message.find(f" {key}: "): key for key in spec.method.params}
    named.pop(-1, None)
    return (*spec.source, "params", named[min(named)]) if named else spec.source
