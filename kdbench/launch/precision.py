"""``precision: auto``: what it stands for on the device, settled before any cell has an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix import CellSpec
from kdbench.matrix.recipe import Recipe


def settle(specs: Sequence[CellSpec], resolver: Resolver, device: str) -> list[CellSpec]:
    """Return the cells with what ``auto`` stands for; one answer for all, so that methods compare.

    Raises KdbenchError where the device cannot be used.
    """
    if not any(_open(spec) for spec in specs):
        return list(specs)
    answer = resolver.ask([{"ask": "device", "device": device, "precisions": []}])[0]
    if answer["error"]:
        raise KdbenchError(answer["error"])
    return [_settled(spec, answer["auto"]) for spec in specs]


def _open(spec: CellSpec) -> bool:
    recipes = [spec.recipe, *([spec.teacher.recipe] if spec.teacher else [])]
    return any(r.precision == "auto" for r in recipes)


def _settled(spec: CellSpec, precision: str) -> CellSpec:
    def of(recipe: Recipe) -> Recipe:
        return recipe if recipe.precision != "auto" else recipe.model_copy(update={"precision": precision})

    teacher = spec.teacher and replace(spec.teacher, recipe=of(spec.teacher.recipe))
    return replace(spec, recipe=of(spec.recipe), teacher=teacher)
