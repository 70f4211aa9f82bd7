"""``precision: auto``: what it stands for on the device, settled before any cell has an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix import CellSpec, TeacherSpec
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
    settled = _Settled(answer["auto"])
    return [settled.cell(spec) for spec in specs], _told(answer["auto"], answer["device"])


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


class _Settled:
    """Puts a precision in the place of ``auto``; what cells had in common they have in common afterwards."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        # with what they were made of, so that no other object gets the same id meanwhile
        self._recipes: dict[int, tuple[Recipe, Recipe]] = {}
        self._teachers: dict[int, tuple[TeacherSpec, TeacherSpec]] = {}

    def cell(self, spec: CellSpec) -> CellSpec:
        teacher = spec.teacher
        if teacher is not None:
            if id(teacher) not in self._teachers:
                made = replace(teacher, recipe=self._recipe(teacher.recipe))
                self._teachers[id(teacher)] = teacher, made
            teacher = self._teachers[id(teacher)][1]
        return replace(spec, recipe=self._recipe(spec.recipe), teacher=teacher)

    def _recipe(self, recipe: Recipe) -> Recipe:
        if recipe.precision != "auto":
            return recipe
        if id(recipe) not in self._recipes:
            made = recipe.model_copy(update={"precision": self._precision})
            self._recipes[id(recipe)] = recipe, made
        return self._recipes[id(recipe)][1]
