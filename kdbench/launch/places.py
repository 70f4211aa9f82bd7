"""Where in the matrix file a message belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.matrix import CellSpec, LoadedMatrix
from kdbench.matrix.document import KeyPath
from kdbench.matrix.schema import TeacherItem
from kdbench.matrix.spec import TeacherSpec


def place_of(loaded: LoadedMatrix, keys: tuple[str, ...], name: str) -> KeyPath:
    """Return the key path of the first list item under one of `keys` that mentions `name`, or the first key."""
    raw: dict[str, Any] = json.loads(loaded.matrix.model_dump_json())
    for key in keys:
        items = raw.get(key)
        for i, item in enumerate(items if isinstance(items, list) else ()):
            if f'"{name}"' in json.dumps(item):
                return (key, i)
    return keys[:1]


def place_of_teacher(loaded: LoadedMatrix, spec: CellSpec) -> KeyPath:
    """Return the key path of the cell's teacher, or of ``pairs`` where it cannot be told."""
    wanted, matrix = spec.teacher, loaded.matrix
    items: list[tuple[KeyPath, TeacherItem | None]] = []
    items += [(("pairs", i, "teacher"), pair.teacher) for i, pair in enumerate(matrix.pairs or ())]
    items += [(("teachers", i), teacher) for i, teacher in enumerate(matrix.teachers or ())]
    for i, include in enumerate(matrix.include):
        # one teacher may stand there without the list; its line is then that of the key
        items += [(("include", i, "teacher", j), teacher) for j, teacher in enumerate(include.teacher)]
    for path, item in items:
        if item is not None and wanted is not None and _is(item, wanted, loaded.path.parent):
            return path
    return ("pairs",)


def _is(item: TeacherItem, teacher: TeacherSpec, folder: Path) -> bool:
    file = None if item.checkpoint is None else str(folder / Path(item.checkpoint).expanduser())
    keys = ("name", "args", "pretrained", "sha256", "mean", "std")
    return file == teacher.checkpoint and all(getattr(item, key) == getattr(teacher, key) for key in keys)


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
