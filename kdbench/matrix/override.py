"""``--set key.path=value``: edits of the data of a matrix file before it is validated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.errors import MatrixError, visible
from kdbench.matrix import document
from kdbench.matrix.document import KeyPath, format_path
from kdbench.matrix.explain import known_keys, model_at, unknown_key
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.schema import ArchItem, DatasetItem, Matrix, MethodItem


def apply_sets(data: dict[str, Any], sets: Sequence[str]) -> dict[KeyPath, str]:
    """Apply the assignments to `data` in place, in order.

    Returns the key path that each one changed with the words for messages, ``--set recipe.epochs``. A short
    form on the way is written out: the student ``x`` becomes ``{name: x}``, the recipe ``quick`` becomes
    ``{base: quick}``. Raises MatrixError for a path that leads nowhere.
    """
    changed: dict[KeyPath, str] = {}
    for text in sets:
        dotted, equals, value_text = text.partition("=")
        dotted = dotted.strip()
        if not equals or not dotted or not all(dotted.split(".")):
            raise MatrixError(
                f"--set {visible(text)[:200]}: expected KEY.PATH=VALUE, e.g. --set recipe.epochs=10"
            )
        label = visible(f"--set {dotted}")
        path = _assign(data, dotted.split("."), document.parse(value_text, label).data, label)
        for old in [p for p in changed if p[: len(path)] == path]:
            del changed[old]
        changed[path] = label
    return changed


def _assign(data: dict[str, Any], parts: Sequence[str], value: Any, label: str) -> KeyPath:
    node: Any = data
    path: KeyPath = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        key = _key(node, path, part, label)
        if last:
            node[key] = value
            return (*path, key)
        path = (*path, key)
        node[key] = _open(
            node.get(key) if isinstance(node, dict) else node[key], path, parts[position + 1], label
        )
        node = node[key]
    raise AssertionError("a path has at least one part")


def _key(node: dict[str, Any] | list[Any], path: KeyPath, part: str, label: str) -> str | int:
    if isinstance(node, list):
        if not part.isascii() or not part.isdigit() or int(part) >= len(node):
            count = f"has the items 0 to {len(node) - 1}" if node else "is empty"
            raise MatrixError(f"{label}: {visible(format_path(path))} {count}; there is no item {part!r}")
        return int(part)
    model = model_at(Matrix, path)
    if model is not None and part not in (known := known_keys(model, recipe=Recipe)):
        raise MatrixError(f"{label}: {visible(unknown_key(part, known))}")
    return part


def _open(value: Any, path: KeyPath, following: str, label: str) -> dict[str, Any] | list[Any]:
    """Return `value` in a form that has keys or items."""
    if isinstance(value, dict | list):
        return value
    model = model_at(Matrix, path)
    named = model is not None and issubclass(model, ArchItem | DatasetItem | MethodItem)
    if isinstance(value, str) and (named or model is Recipe):
        return {"name": value} if named else {"base": value}
    if value is None and not named and not following.isdigit():
        return {}
    given = "is not in the file" if value is None else f"is {value!r}"
    raise MatrixError(visible(f"{label}: {format_path(path)} {given} and has no '{following}'"))
