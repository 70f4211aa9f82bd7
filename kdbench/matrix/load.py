"""Loading a matrix: file or shipped name, ``--set``, recipes, validation."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.errors import MatrixError, did_you_mean
from kdbench.matrix import document
from kdbench.matrix.document import Document, KeyPath, Mark
from kdbench.matrix.explain import explain, lookup
from kdbench.matrix.override import apply_sets
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.recipe_files import RecipeSource, resolve
from kdbench.matrix.schema import Matrix

FOLDER = Path(__file__).resolve().parent.parent / "matrices"


@dataclass(frozen=True)
class LoadedMatrix:
    """A valid matrix and where its parts stand.

    Attributes:
        matrix: the validated content, ``--set`` applied, every recipe complete.
        path: the file.
        text_sha256: digest of the file's bytes (without ``--set``).
        sets: the assignments that were applied.
        recipes: key path of each recipe in the file -> how it came about.
    """

    matrix: Matrix
    path: Path
    text_sha256: str
    sets: tuple[str, ...] = ()
    recipes: dict[KeyPath, RecipeSource] = field(default_factory=dict, repr=False)
    document: Document = field(default_factory=lambda: Document("", None), repr=False)
    changed: dict[KeyPath, str] = field(default_factory=dict, repr=False)

    def where(self, *path: str | int) -> str:
        """Return ``file.yaml:12`` for a key path, or ``--set recipe.epochs`` where that gave the value.

        A path that is not in the file gives the line of its nearest ancestor.
        """
        return _where(self.document, self.changed, path)


def matrix_names() -> list[str]:
    """Names of the matrices that kdbench ships."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_matrix(ref: str | Path, *, cwd: Path | None = None) -> Path:
    """Return the file of a matrix: a path (relative to `cwd`), or a shipped name. Raises MatrixError."""
    cwd = cwd or Path.cwd()
    path = cwd / Path(ref).expanduser()
    if path.is_file():
        return path
    names = matrix_names()
    if str(ref) in names:
        return FOLDER / f"{ref}.yaml"
    if path.is_dir():
        raise MatrixError(f"{ref}: is a folder; expected a matrix file, or one of {', '.join(names)}")
    near = names + sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else names
    raise MatrixError(
        f"{ref}: no such matrix file{did_you_mean(path.name, near)}; shipped matrices: {', '.join(names)}"
    )


def load_matrix(ref: str | Path, *, sets: Sequence[str] = (), cwd: Path | None = None) -> LoadedMatrix:
    """Load a matrix file or a shipped matrix and apply ``--set`` assignments.

    Raises MatrixError: one line per problem, each with file, line, key path, what was expected and, for a
    wrong name, the nearest valid one.
    """
    path = find_matrix(ref, cwd=cwd)
    display = path.name if path.parent == FOLDER else str(ref)
    doc, raw = document.read(path, display)
    if not isinstance(doc.data, dict):
        what = "is empty" if doc.data is None else "is not a mapping"
        keys = [key for key, info in Matrix.model_fields.items() if info.is_required()]
        raise MatrixError(f"{display}:1: the file {what}; expected the keys {', '.join(keys)} and pairs")
    data = copy.deepcopy(doc.data)
    changed = apply_sets(data, sets)

    def where(keys: Sequence[str | int]) -> str:
        return _where(doc, changed, keys)

    def mark(keys: Sequence[str | int]) -> Mark:
        # A value from --set has no text in the file.
        return Mark(0) if where(keys).startswith("--set") else doc.mark(keys)

    written = copy.deepcopy(data)
    recipes, problems = _resolve_recipes(data, path.parent, where)
    try:
        matrix = Matrix.model_validate(data)
    except ValidationError as e:
        problems += explain(e, Matrix, written, where, mark)
    if problems:
        raise MatrixError("\n".join(dict.fromkeys(problems)))
    return LoadedMatrix(
        matrix=matrix,
        path=path.resolve(),
        text_sha256=hashlib.sha256(raw).hexdigest(),
        sets=tuple(sets),
        recipes=recipes,
        document=doc,
        changed=changed,
    )


def _where(doc: Document, changed: dict[KeyPath, str], keys: Sequence[str | int]) -> str:
    path = tuple(keys)
    for end in range(len(path), 0, -1):
        if path[:end] in changed:
            return changed[path[:end]]
    return doc.where(path)


def _recipe_paths(data: dict[str, Any]) -> list[KeyPath]:
    """Key paths of all recipes but the matrix's own."""
    found: list[KeyPath] = [("teacher_recipe",), ("tune", "pair", "teacher", "recipe")]
    for axis in ("methods", "teachers", "pairs", "include"):
        items = data.get(axis)
        items = items if isinstance(items, list) else []
        for i in range(len(items)):
            if axis == "pairs":
                found.append((axis, i, "teacher", "recipe"))
                continue
            found.append((axis, i, "recipe"))
            for key in ("method", "teacher") if axis == "include" else ():
                inner = items[i].get(key) if isinstance(items[i], dict) else None
                if isinstance(inner, list):
                    found += [(axis, i, key, j, "recipe") for j in range(len(inner))]
                elif isinstance(inner, dict):
                    found.append((axis, i, key, "recipe"))
    return found


def _resolve_recipes(
    data: dict[str, Any], folder: Path, where: Callable[[Sequence[str | int]], str]
) -> tuple[dict[KeyPath, RecipeSource], list[str]]:
    """Replace every recipe in `data` by its complete keys; return the sources and the problems."""
    sources: dict[KeyPath, RecipeSource] = {}
    problems: list[str] = []

    def put(path: KeyPath, default: RecipeSource | None) -> None:
        try:
            parent = lookup(data, path[:-1])
            value = parent.get(path[-1]) if isinstance(parent, dict) else None
        except LookupError:
            return
        if value is None:
            return
        try:
            source = resolve(value, folder=folder, where=lambda *keys: where((*path, *keys)), default=default)
        except MatrixError as e:
            problems.append(str(e))
            del parent[path[-1]]
            return
        sources[path] = source
        parent[path[-1]] = copy.deepcopy(source.raw)

    own: KeyPath = ("recipe",)
    put(own, None)
    default = sources.get(own)
    if default is None or not _valid(default.raw):
        # Without a sound recipe, errors in changes to it would only repeat its own.
        for path in _recipe_paths(data):
            try:
                parent = lookup(data, path[:-1])
            except LookupError:
                continue
            if isinstance(parent, dict):
                parent.pop(path[-1], None)
        if problems:
            data["recipe"] = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
        return sources, problems
    for path in _recipe_paths(data):
        put(path, default)
    return sources, problems


def _valid(raw: dict[str, Any]) -> bool:
    try:
        Recipe.model_validate(raw)
    except ValidationError:
        return False
    return True
