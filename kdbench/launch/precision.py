"""``precision: auto`` and ``compile: auto``: what they stand for on the device, settled before cells have ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix import CellSpec
from kdbench.matrix.recipe import Recipe


def settle(specs: Sequence[CellSpec], resolver: Resolver, device: str) -> tuple[list[CellSpec], list[str]]:
    """Return the cells with what ``auto`` stands for, and a line for each key of which a recipe has it.

    There is one answer for all cells, so that methods compare. On a GPU ``compile: auto`` stays: there each cell
    finds out for itself.

    Raises KdbenchError where the device cannot be used.
    """
    keys = [key for key in ("precision", "compile") if any(_open(spec, key) for spec in specs)]
    if not keys:
        return list(specs), []
    answer = resolver.ask([{"ask": "device", "device": device, "precisions": []}])[0]
    if answer["error"]:
        raise KdbenchError(answer["error"])
    stands = {"precision": answer["auto"]} if "precision" in keys else {}
    notes = [_told(answer["auto"], answer["device"])] if stands else []
    if "compile" in keys and answer["device"] == "cpu":
        stands["compile"] = "none"
        notes.append("compile auto: none on the CPU")
    return [_settled(spec, stands) for spec in specs], notes


def _told(precision: str, device: str) -> str:
    if precision == "fp32":
        why = "which has no units for bf16"
    elif device == "cpu":
        why = "which need not be faster for small networks"
    else:
        why = "which has units for it"
    return f"precision auto: {precision} on this {'CPU' if device == 'cpu' else 'GPU'}, {why}"


def _open(spec: CellSpec, key: str) -> bool:
    recipes = [spec.recipe, *([spec.teacher.recipe] if spec.teacher else [])]
    return any(getattr(r, key) == "auto" for r in recipes)


def _settled(spec: CellSpec, stands: Mapping[str, str]) -> CellSpec:
    def of(recipe: Recipe) -> Recipe:
        update = {key: value for key, value in stands.items() if getattr(recipe, key) == "auto"}
        return recipe.model_copy(update=update) if update else recipe

    teacher = spec.teacher and replace(spec.teacher, recipe=of(spec.teacher.recipe))
    return replace(spec, recipe=of(spec.recipe), teacher=teacher)
