"""Named recipes, recipe files, and recipes written as changes to another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.errors import MatrixError, did_you_mean, visible
from kdbench.matrix import document
from kdbench.matrix.explain import explain, shorten
from kdbench.matrix.recipe import CROP_KEYS, OPTIMIZER_COMMON, SCHEDULE_COMMON, SCHEDULE_KEYS, Recipe

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class RecipeSource:
    """A recipe as given: the keys in force, without defaults, and how it came about.

    Attributes:
        raw: keys of :class:`Recipe`; not validated.
        root: name or file that it starts from; ``inline`` when it is written out.
        changes: what was changed against the root.
    """

    raw: dict[str, Any]
    root: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for tables, e.g. ``quick(epochs=3, optimizer.lr=0.01)``."""
        changes = flatten(self.changes) if self.root != "inline" else {}
        # told at the method of the cells that use it: the others are the same with and without
        changes.pop("teacher_cache", None)
        text = ", ".join(f"{key}={show(value)}" for key, value in changes.items())
        return shorten(f"{self.root}({text})" if text else self.root)


def show(value: Any) -> str:
    """Return a value as a table shows it: text as it is, anything else as JSON."""
    import json

    return value if isinstance(value, str) else json.dumps(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"optimizer.lr": 0.01}`` for ``{"optimizer": {"lr": 0.01}}``."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` merged in, mapping by mapping.

    Where a change chooses another kind of schedule, optimizer or augmentation, the keys that only the old
    kind reads are dropped.
    """
    out = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict):
            out[key] = merge({k: v for k, v in old.items() if _survives(key, k, old, value)}, value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def _survives(section: str, key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    chooser = "kind" if section == "augment" else "name"
    choice = new.get(chooser, old.get(chooser))
    if choice == old.get(chooser):
        return True
    if section == "schedule":
        return key in SCHEDULE_COMMON | SCHEDULE_KEYS.get(str(choice), frozenset())
    if section == "optimizer":
        return key in OPTIMIZER_COMMON
    if section == "augment":
        return choice == "crop" or key not in CROP_KEYS
    return True


def recipe_names() -> list[str]:
    """Names of the recipes that kdbench ships."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(ref: str | Path, *, folder: Path | None = None) -> Recipe:
    """Return a shipped recipe by name, or that of a ``.yaml`` file (from `folder`). Raises MatrixError."""
    source = find_recipe(str(ref), folder=folder or Path.cwd(), where="recipe")
    return Recipe.model_validate(source.raw).named(source.label)


def find_recipe(ref: str, *, folder: Path, where: str, above: tuple[Path, ...] = ()) -> RecipeSource:
    """Return a named recipe or recipe file, checked on its own. Raises MatrixError.

    `where` opens the message when there is no such recipe; `above` are the files that led here by ``base``.
    """
    if ref.endswith((".yaml", ".yml")):
        path = (folder / Path(ref).expanduser()).resolve()
        display = ref
        if not path.is_file():
            raise MatrixError(visible(f"{where}: no recipe file '{ref}' in {folder}"))
    else:
        names = recipe_names()
        if ref not in names:
            expected = f"expected one of {', '.join(names)}, or a path ending in .yaml"
            raise MatrixError(
                visible(f"{where}: unknown recipe '{ref[:200]}'{did_you_mean(ref, names)}; {expected}")
            )
        path, display = FOLDER / f"{ref}.yaml", f"recipes/{ref}.yaml"
    if path in above:
        raise MatrixError(f"{where}: the recipe '{ref}' is its own base")
    doc, _ = document.read(path, display)
    source = resolve(
        doc.data,
        folder=path.parent,
        where=lambda *keys: doc.where(keys),
        above=(*above, path),
    )
    try:
        Recipe.model_validate(source.raw)
    except ValidationError as e:
        raise MatrixError("\n".join(explain(e, Recipe, doc.data, doc.where, doc.mark))) from None
    return RecipeSource(source.raw, ref)


def resolve(
    value: Any,
    *,
    folder: Path,
    where: Callable[..., str],
    default: RecipeSource | None = None,
    above: tuple[Path, ...] = (),
) -> RecipeSource:
    """Return what a recipe key of a file means.

    `value` is a name, or a mapping with ``base``, or a mapping without: changes to `default` where there is
    one, else a recipe written out. `where(*keys)` gives file and line of the value or of a key in it. Raises
    MatrixError.
    """
    if isinstance(value, str):
        return find_recipe(value, folder=folder, where=where(), above=above)
    if not isinstance(value, Mapping):
        raise MatrixError(
            f"{where()}: expected the name of a recipe or a mapping, got {shorten(repr(value), 60)}"
        )
    changes = {key: item for key, item in value.items() if key != "base"}
    if "base" in value:
        if not isinstance(value["base"], str):
            raise MatrixError(f"{where('base')}: base: expected the name of a recipe, got {value['base']!r}")
        default = find_recipe(value["base"], folder=folder, where=where("base"), above=above)
    if default is None:
        return RecipeSource(copy.deepcopy(changes), "inline")
    return RecipeSource(merge(default.raw, changes), default.root, merge(default.changes, changes))
