"""``precision: auto`` and ``compile: auto``: what they stand for on the device, settled before cells have ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix import CellSpec, TeacherSpec
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
    settled = _Settled(stands)
    return [settled.cell(spec) for spec in specs], notes


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


class _Settled:
    """Puts values in the place of ``auto``; what cells had in common they have in common afterwards."""

    def __init__(self, stands: Mapping[str, str]) -> None:
        self._stands = stands
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
        if id(recipe) not in self._recipes:
            update = {key: value for key, value in self._stands.items() if getattr(recipe, key) == "auto"}
            self._recipes[id(recipe)] = recipe, recipe.model_copy(update=update) if update else recipe
        return self._recipes[id(recipe)][1]
