"""Schema of the matrix file, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, WithJsonSchema, model_validator

from kdbench.matrix.recipe import Recipe, StrictModel, at
from kdbench.matrix.throughput import ThroughputItem, check_only_speed
from kdbench.matrix.word_or_number import GANG, SLOTS

#: Largest seed, so that every consumer can hold it in 64 bits with sign.
MAX_SEED = 2**63 - 1
#: Largest number that ``seeds: N`` takes.
MAX_SEEDS = 10_000

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
#: A recipe after loading; in the file also a name, or changes to another recipe. `json_schema` fills that in.
RecipeField = Annotated[Recipe, WithJsonSchema({"x-kdbench": "recipe"})]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


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


class DatasetItem(StrictModel):
    """A data set with its arguments and subset."""

    name: Name = Field(description="As `kdbench list datasets` gives it.")
    label: Label | None = Field(default=None, description="Name in tables; default: `name`.")
    args: dict[str, Any] = Field(default_factory=dict, description="Parameters of the data set.")
    limit_train: int | None = Field(
        default=None,
        ge=1,
        description="Images of the training split, a stratified subset fixed for all cells.",
    )
    limit_test: int | None = Field(default=None, ge=1, description="Images of the test split, likewise.")
    storage: Literal["auto", "resident", "stream"] = Field(
        default="auto", description="resident: decoded on the device; stream: read while training."
    )


#: Means or deviations of the channels, in units of pixels from 0 to 1.
Channels = Annotated[tuple[FiniteFloat, ...], Field(strict=False, min_length=1, max_length=64)]


class ArchItem(StrictModel):
    """An architecture with constructor arguments."""

    name: Name = Field(description="As `kdbench list architectures` gives it, e.g. timm:resnet18.")
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments of the constructor.")


class TeacherItem(ArchItem):
    """A teacher: trained by kdbench unless it has a checkpoint or pretrained weights."""

    checkpoint: str | None = Field(
        default=None, min_length=1, description="File with weights; relative to the matrix file."
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Digest that the checkpoint must have."
    )
    mean: Channels | None = Field(
        default=None,
        description="Channel means of the checkpoint's input, in pixels from 0 to 1; default: the data set's.",
    )
    std: Channels | None = Field(default=None, description="Channel deviations that go with `mean`.")
    pretrained: bool = Field(
        default=False, description="Take published weights, where the architecture has any (timm:*)."
    )
    recipe: RecipeField | None = Field(
        default=None,
        description="How it is trained; default: `teacher_recipe`. Without base: changes to `recipe`.",
    )
    seed: Seed | None = Field(default=None, description="Seed of its training; default: `teacher_seed`.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained and self.checkpoint is not None:
            raise at("pretrained", "'pretrained' and 'checkpoint' exclude each other")
        if self.sha256 is not None and self.checkpoint is None:
            raise at("sha256", "'sha256' is the digest of a checkpoint, and there is no 'checkpoint'")
        self._check_normalisation()
        if self.pretrained or self.checkpoint is not None:
            source = "pretrained" if self.pretrained else "checkpoint"
            for key in ("recipe", "seed"):
                if getattr(self, key) is not None:
                    raise at(key, f"'{key}' is for a teacher that is trained; this one has '{source}'")
        return self

    def _check_normalisation(self) -> None:
        given = {key: value for key in ("mean", "std") if (value := getattr(self, key)) is not None}
        for key, values in given.items():
            if self.checkpoint is None:
                why = "timm says how hub weights want their input" if self.pretrained else "there is none"
                raise at(key, f"'{key}' is how the input of a 'checkpoint' was normalised; {why}")
            other = "std" if key == "mean" else "mean"
            if other not in given:
                raise at(key, f"'{key}' goes with '{other}', which is missing")
            low = "above 0" if key == "std" else "at least 0"
            if not all((value > 0 or key == "mean") and 0 <= value <= 1 for value in values):
                raise at(key, f"each value must be {low} and at most 1: pixels go from 0 to 1, not to 255")
        if len({len(values) for values in given.values()}) > 1:
            raise at("std", f"'mean' has {len(given['mean'])} values and 'std' {len(given['std'])}")


class MethodItem(StrictModel):
    """A method with its hyper-parameters."""

    name: Name = Field(description="As `kdbench list methods` gives it.")
    preset: Name | None = Field(default=None, description="Named set of hyper-parameters of the method.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="Hyper-parameters, over those of the preset."
    )
    label: Label | None = Field(
        default=None, description="Name in tables; default: name and what was changed."
    )
    recipe: RecipeField | None = Field(
        default=None, description="Recipe of this method's cells. Without base: changes to `recipe`."
    )


DatasetField = Annotated[DatasetItem, BeforeValidator(_named, json_schema_input_type=str | DatasetItem)]
ArchField = Annotated[ArchItem, BeforeValidator(_named, json_schema_input_type=str | ArchItem)]
TeacherField = Annotated[
    TeacherItem | None, BeforeValidator(_named, json_schema_input_type=str | TeacherItem | None)
]
MethodField = Annotated[MethodItem, BeforeValidator(_named, json_schema_input_type=str | MethodItem)]


class Pair(StrictModel):
    """A teacher and a student, with an assistant between them for the methods that train one."""

    teacher: TeacherField = Field(description="null: only methods that need no teacher run.")
    student: ArchField
    assistant: ArchField | None = Field(
        default=None, description="Middle-sized architecture, for methods that train an assistant."
    )
    label: Label | None = Field(
        default=None, description="Name for --only pair=...; default: teacher->student."
    )


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
    timeout_s: FiniteFloat | None = Field(default=None, gt=0, description="Limit of one cell in seconds.")
    gang: Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2, le=64)], BeforeValidator(_gang)] = (
        Field(
            default="auto",
            description="Train cells that share batches and teacher in one process: auto, off, or how many.",
        )
    )
    slots_per_gpu: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=16)], BeforeValidator(SLOTS.check)
    ] = Field(default=1, description="Cells at a time on each GPU: a number, or auto: as many as pay.")
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
        return self
