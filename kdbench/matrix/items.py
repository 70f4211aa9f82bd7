"""What the axes of a matrix list: data sets, networks, methods, pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, WithJsonSchema, model_validator

from kdbench.matrix.recipe import Recipe, StrictModel, at

#: Largest seed, so that every consumer can hold it in 64 bits with sign.
MAX_SEED = 2**63 - 1
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
#: A recipe after loading; in the file also a name, or changes to another recipe. `json_schema` fills that in.
RecipeField = Annotated[Recipe, WithJsonSchema({"x-kdbench": "recipe"})]


def named(value: Any) -> Any:
    """Write out the short form of an item, its name."""
    return {"name": value} if isinstance(value, str) else value


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


DatasetField = Annotated[DatasetItem, BeforeValidator(named, json_schema_input_type=str | DatasetItem)]
ArchField = Annotated[ArchItem, BeforeValidator(named, json_schema_input_type=str | ArchItem)]
TeacherField = Annotated[
    TeacherItem | None, BeforeValidator(named, json_schema_input_type=str | TeacherItem | None)
]
MethodField = Annotated[MethodItem, BeforeValidator(named, json_schema_input_type=str | MethodItem)]


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
