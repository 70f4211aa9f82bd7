"""Schema of the matrix file, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, model_validator

from kdbench.matrix.items import (
    MAX_SEED,
    ArchField,
    ArchItem,
    DatasetField,
    DatasetItem,
    MethodField,
    MethodItem,
    Name,
    Pair,
    RecipeField,
    Seed,
    TeacherField,
    TeacherItem,
)
from kdbench.matrix.recipe import StrictModel, at
from kdbench.matrix.throughput import ThroughputItem, check_only_speed
from kdbench.matrix.tune import Tune, check_tune
from kdbench.matrix.word_or_number import GANG, SLOTS

__all__ = [
    "MAX_SEED",
    "MAX_SEEDS",
    "ArchItem",
    "DatasetItem",
    "Exclude",
    "Include",
    "Matrix",
    "MethodItem",
    "Pair",
    "TeacherItem",
    "ThroughputItem",
    "Tune",
]

#: Largest number that ``seeds: N`` takes.
MAX_SEEDS = 10_000


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _seeds(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("expected a number of seeds (integer) or a list of integers")
    if not 1 <= value <= MAX_SEEDS:
        raise ValueError(f"expected a number of seeds from 1 to {MAX_SEEDS}, or a list of integers")
    return list(range(value))


def _switch(value: Any) -> Any:
    if value is False:
        return None
    if value is None or value is True:
        raise ValueError("expected false or a mapping such as {batch_sizes: [1, 64]}")
    return value


def _gang(value: Any) -> Any:
    return GANG.check("off" if value is False else value)  # YAML takes a bare `off` for false


class Include(StrictModel):
    """Further cells: the product of these values; an axis left out takes every value of the matrix.

    A name (or label) that the matrix has on that axis means those entries; any other is a new one.
    """

    method: (
        Annotated[
            tuple[MethodField, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=str | MethodItem | list[str | MethodItem]),
        ]
        | None
    ) = None
    teacher: Annotated[
        tuple[TeacherField, ...],
        Field(strict=False, min_length=1),
        BeforeValidator(
            _listed, json_schema_input_type=str | TeacherItem | None | list[str | TeacherItem | None]
        ),
    ] = Field(default=(), description="Teachers by name or in full; null: no teacher.")
    student: (
        Annotated[
            tuple[ArchField, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=str | ArchItem | list[str | ArchItem]),
        ]
        | None
    ) = None
    dataset: (
        Annotated[
            tuple[DatasetField, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=str | DatasetItem | list[str | DatasetItem]),
        ]
        | None
    ) = None
    seed: (
        Annotated[
            tuple[Seed, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=int | list[int]),
        ]
        | None
    ) = None
    assistant: ArchField | None = Field(
        default=None, description="Assistant of all these pairs; default: that of the pair in the matrix."
    )
    recipe: RecipeField | None = Field(default=None, description="Without base: changes to `recipe`.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("an item of include names at least one of " + ", ".join(type(self).model_fields))
        return self


Choice = Annotated[
    tuple[str, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]


class Exclude(StrictModel):
    """Cells to leave out of the product: those that match every key. Values are names or labels."""

    method: Choice | None = None
    teacher: Annotated[
        tuple[str | None, ...],
        Field(strict=False, min_length=1),
        BeforeValidator(_listed, json_schema_input_type=str | None | list[str | None]),
    ] = Field(default=(), description="null: the pairs without a teacher.")
    student: Choice | None = None
    dataset: Choice | None = None
    pair: Choice | None = None
    seed: (
        Annotated[
            tuple[Seed, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=int | list[int]),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("an item of exclude names at least one of " + ", ".join(type(self).model_fields))
        return self


class Matrix(StrictModel):
    """A matrix file: the axes of an experiment and how its cells are trained and measured."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="Names the folder of results and the MLflow experiment."
    )
    title: str = Field(default="", max_length=200, description="One line for people.")
    description: str = Field(default="", max_length=10_000, description="What the matrix is for.")
    task: Name = Field(default="classification", description="As `kdbench list tasks` gives it.")
    datasets: Annotated[tuple[DatasetField, ...], Field(strict=False, min_length=1)]
    pairs: Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="Teachers with their students; or else give `teachers` and `students`."
    )
    teachers: Annotated[tuple[TeacherField, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="Each with every one of `students`; null stands for no teacher."
    )
    students: Annotated[tuple[ArchField, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="Each with every one of `teachers`."
    )
    methods: Annotated[tuple[MethodField, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[
        tuple[Seed, ...],
        Field(strict=False, min_length=1, max_length=MAX_SEEDS),
        BeforeValidator(_seeds, json_schema_input_type=int | list[int]),
    ] = Field(description="How many (5 means 0 to 4), or which.")
    recipe: RecipeField = Field(description="Name, file, {base: name, changes...}, or a recipe written out.")
    teacher_recipe: RecipeField | None = Field(
        default=None, description="Recipe of teachers; default: `recipe`. Without base: changes to `recipe`."
    )
    teacher_seed: Seed = Field(
        default=0, description="Seed of the first teacher; a further one takes the next."
    )
    teacher_method: Name = Field(default="vanilla", description="Method that trains a network alone.")
    throughput: Annotated[
        ThroughputItem | None,
        BeforeValidator(_switch, json_schema_input_type=Literal[False] | ThroughputItem),
    ] = Field(default_factory=ThroughputItem, description="How speed is measured; false: not at all.")
    evaluators: Annotated[tuple[Name, ...], Field(strict=False)] = Field(
        default=("teacher-agreement",), description="Extra measurements of trained students."
    )
    timeout_s: FiniteFloat | None = Field(
        default=None, gt=0, description="Limit of one cell in seconds; see Time limits below."
    )
    gang: Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2, le=64)], BeforeValidator(_gang)] = (
        Field(
            default="auto",
            description="Train cells that share batches and teacher in one process: auto, off, or how many.",
        )
    )
    slots_per_gpu: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=16)], BeforeValidator(SLOTS.check)
    ] = Field(default=1, description="Cells at a time on each GPU: a number, or auto: as many as pay.")
    launcher_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="By launcher: what it asks of its cluster; no result depends on it."
    )
    tune: Tune | None = Field(
        default=None, description="Search of hyper-parameters, with one budget for all methods."
    )
    include: Annotated[tuple[Include, ...], Field(strict=False)] = Field(
        default=(), description="Cells added to the product, after `exclude`."
    )
    exclude: Annotated[tuple[Exclude, ...], Field(strict=False)] = Field(
        default=(), description="Cells left out of the product."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pairs is not None:
            for key in ("teachers", "students"):
                if getattr(self, key) is not None:
                    raise at(key, f"'{key}' and 'pairs' exclude each other")
        elif self.teachers is None and self.students is None:
            raise at("pairs", "give either 'pairs' or both 'teachers' and 'students'")
        else:
            for key, other in (("teachers", "students"), ("students", "teachers")):
                if getattr(self, key) is None:
                    raise at(
                        key, f"'{key}' is missing; it goes with '{other}' (null in teachers: no teacher)"
                    )
        for key in ("seeds", "evaluators"):
            values = getattr(self, key)
            twice = next((i for i, value in enumerate(values) if value in values[:i]), None)
            if twice is not None:
                raise at(f"{key}.{twice}", f"{values[twice]!r} is given twice")
        if self.throughput is not None and self.throughput.only:
            check_only_speed(self)
        check_tune(self)
        return self
