"""``precision: auto``: what it stands for on the device, settled before any cell has an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix import CellSpec
from kdbench.matrix.recipe import Recipe


def settle(specs: Sequence[CellSpec], resolver: Resolver, device: str) -> tuple[list[CellSpec], str | None]:
    """Return the cells with what ``auto`` stands for, and a line that says it; None where no recipe has it.

    There is one answer for all cells, so that methods compare.

    Raises KdbenchError where the device cannot be used.
    """
    if not any(_open(spec) for spec in specs):
        return list(specs), None
    answer = resolver.ask([{"ask": "device", "device": device, "precisions": []}])[0]
    if answer["error"]:
        raise KdbenchError(answer["error"])
    return [_settled(spec, answer["auto"]) for spec in specs], _told(answer["auto"], answer["device"])


def _told(precision: str, device: str) -> str:
    if precision == "fp32":
        why = "which has no units for bf16"
    elif device == "cpu":
        why = "which need not be faster for small networks"
    else:
        why = "which has units for it"
    return f"precision auto: {precision} on this {'CPU' if device == 'cpu' else 'GPU'}, {why}"


def _open(spec: CellSpec) -> bool:
    recipes = [spec.recipe, *([spec.teacher.recipe] if spec.teacher else [])]
    return any(r.precision == "auto" for r in recipes)


def _settled(spec: CellSpec, precision: str) -> CellSpec:
    def of(recipe: Recipe) -> Recipe:
        return recipe if recipe.precision != "auto" else recipe.model_copy(update={"precision": precision})

    teacher = spec.teacher and replace(spec.teacher, recipe=of(spec.teacher.recipe))
    return replace(spec, recipe=of(spec.recipe), teacher=teacher)
