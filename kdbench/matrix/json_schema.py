"""JSON schemas of the files that people write, for editors that check while typing."""

from __future__ import annotations

import copy
from typing import Any

from kdbench.matrix.recipe import Recipe
from kdbench.matrix.schema import Matrix

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe file: a whole recipe, or changes to the one named by ``base``."""
    changes = _changes()
    defs = changes.pop("$defs")
    whole = Recipe.model_json_schema()
    defs |= whole.pop("$defs")
    return {
        "$schema": DIALECT,
        "title": "kdbench recipe",
        "anyOf": [whole, {**changes, "required": ["base"]}],
        "$defs": dict(sorted(defs.items())),
    }


def matrix_schema() -> dict[str, Any]:
    """Return the schema of a matrix file, with the short forms that it allows."""
    schema = _with_recipes(Matrix.model_json_schema())
    changes = _changes()
    defs = schema.pop("$defs") | changes.pop("$defs")
    defs["RecipeChanges"] = changes
    return {"$schema": DIALECT, **schema, "title": "kdbench matrix", "$defs": dict(sorted(defs.items()))}


def _changes() -> dict[str, Any]:
    """Return the schema of a recipe in which every key may be left out and ``base`` may be named."""
    schema: dict[str, Any] = _partial(Recipe.model_json_schema())
    schema["$defs"] = {f"{name}Changes": body for name, body in schema["$defs"].items()}
    schema["title"] = "RecipeChanges"
    base = {"type": "string", "description": "Name or file of the recipe that these keys change."}
    schema["properties"] = {"base": base, **schema["properties"]}
    return schema


def _with_recipes(node: Any) -> Any:
    """Write out the places that take a recipe; pydantic itself would demand that their target exists."""
    if isinstance(node, list):
        return [_with_recipes(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _with_recipes(value) for key, value in node.items() if key != "x-kdbench"}
    if "x-kdbench" in node:
        out["anyOf"] = [{"type": "string"}, {"$ref": "#/$defs/RecipeChanges"}]
    return out


def _partial(node: Any) -> Any:
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return copy.deepcopy(node)
    out = {}
    for key, value in node.items():
        if key == "$ref":
            out[key] = f"{value}Changes"
        elif not (key == "required" and isinstance(value, list)):
            out[key] = _partial(value)
    return out
