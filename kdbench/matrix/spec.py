"""One cell of a matrix, as the planner takes it up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from kdbench.matrix.explain import shorten
from kdbench.matrix.identity import canonical_json
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.recipe_files import flatten, show
from kdbench.matrix.schema import ThroughputItem


def with_values(name: str, values: Mapping[str, Any]) -> str:
    """Return ``name(a=1, b.c=x)``, cut to 200 characters."""
    text = ", ".join(f"{key}={show(value)}" for key, value in flatten(values).items())
    return shorten(f"{name}({text})" if text else name)


@dataclass(frozen=True)
class MethodSpec:
    """A method as the matrix gives it: overrides only, not the resolved hyper-parameters.

    Attributes:
        recipe: how the recipe of its cells differs from the matrix's, for the label.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    label: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def variant_label(method: MethodSpec, table: str | None = None) -> str:
    """Return the method's label, or its name with all that was changed: ``ab[cifar100](weight=2.0)``.

    `table` is the dtype of the table that the teacher is read from, if there is one: ``kd (fp16 table)``.
    """
    end = f" ({table} table)" if table else ""
    if method.label is not None:
        return shorten(method.label, 200 - len(end)) + end
    name = f"{method.name}[{method.preset}]" if method.preset else method.name
    changed = {k: v for k, v in method.recipe.items() if k != "teacher_cache"}
    text = with_values(name, {**method.params, **({"recipe": changed} if changed else {})})
    return shorten(text, 200 - len(end)) + end


@dataclass(frozen=True)
class ArchSpec:
    """An architecture with constructor arguments."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for tables."""
        return with_values(self.name, self.args)


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher and where its weights come from.

    Attributes:
        checkpoint: file with weights, absolute; None where kdbench trains it or `pretrained` is set.
        mean, std: how the checkpoint's input was normalised, per channel; None: as the data set says.
        recipe, seed, method: how it is trained; the k-th teacher of a cell takes ``seed + k``.
    """

    name: str
    recipe: Recipe
    args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pretrained: bool = False
    seed: int = 0
    method: str = ""

    @property
    def label(self) -> str:
        """Name for tables; weights that kdbench did not train are marked."""
        source = "[checkpoint]" if self.checkpoint else "[pretrained]" if self.pretrained else ""
        return with_values(self.name, self.args) + source


@dataclass(frozen=True)
class DatasetSpec:
    """A data set with its arguments and subset; limits are numbers of images."""

    name: str
    label: str
    args: Mapping[str, Any] = field(default_factory=dict)
    limit_train: int | None = None
    limit_test: int | None = None
    storage: str = "auto"


@dataclass(frozen=True)
class Tuning:
    """How the hyper-parameters of a cell were found; fields as in :class:`kdbench.results.schema.Tuning`.

    Attributes:
        shared: whether one search served all pairs, so that its pair is not the cell's own.
    """

    track: str
    budget: int
    trials: int
    failed: int
    dataset: str
    pair: str
    shared: bool
    seeds: tuple[int, ...]
    epochs: int
    select: str
    sampler: str
    sampler_seed: int
    batch: int
    space: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None

    def conditions(self) -> dict[str, Any]:
        """Return what the search was given and not what came of it: this part enters the cell id."""
        names = ("track", "budget", "epochs", "select", "sampler", "sampler_seed", "batch")
        out = {name: getattr(self, name) for name in names}
        if self.shared:
            out |= {"pair": self.pair, "dataset": self.dataset}
        space = hashlib.sha256(canonical_json(self.space)).hexdigest()[:16] if self.space else None
        return {**out, "seeds": list(self.seeds), "space": space}


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One cell.

    Attributes:
        role: a ``trial`` is a step of a search: it sees no test image and leaves no result.
        tuning: None where the hyper-parameters are as the matrix or the method gives them.
        source: key path of the method in the matrix file, for messages.
        pair: label of the teacher-student pair.
        assistant: architecture between the two, for methods that train one; of no account to all others.
        throughput: None when inference speed is not measured.
        timeout_s: limit in seconds, or None.
    """

    role: Literal["student", "teacher", "trial"]
    task: str
    method: MethodSpec
    teacher: TeacherSpec | None
    student: ArchSpec
    dataset: DatasetSpec
    recipe: Recipe
    seed: int
    source: tuple[str | int, ...] = field(default=(), compare=False)
    evaluators: tuple[str, ...] = ()
    throughput: ThroughputItem | None = None
    timeout_s: float | None = None
    pair: str = field(default="", compare=False)
    assistant: ArchSpec | None = None
    tuning: Tuning | None = None


def content_key(spec: CellSpec) -> bytes:
    """Return what makes a cell as written: equal for cells that differ in labels and line only."""
    teacher = spec.teacher
    return canonical_json(
        [
            spec.task,
            [spec.method.name, spec.method.preset, spec.method.params],
            None if teacher is None else _teacher_key(teacher),
            [spec.student.name, spec.student.args],
            None if spec.assistant is None else [spec.assistant.name, spec.assistant.args],
            dataset_key(spec.dataset),
            _recipe_json(spec.recipe),
            spec.seed,
        ]
    )


@lru_cache(maxsize=256)
def _recipe_json(recipe: Recipe) -> str:
    return recipe.model_dump_json()


def _teacher_key(teacher: TeacherSpec) -> list[Any]:
    source = [teacher.checkpoint, teacher.sha256, teacher.pretrained]
    training = [teacher.method, teacher.seed, _recipe_json(teacher.recipe)]
    trained = source == [None, None, False]
    return [teacher.name, teacher.args, source, teacher.mean, teacher.std, training if trained else None]


def dataset_key(dataset: DatasetSpec) -> list[Any]:
    """Return a data set without its label."""
    return [dataset.name, dataset.args, dataset.limit_train, dataset.limit_test, dataset.storage]


def teacher_cell(spec: CellSpec, k: int = 0) -> CellSpec | None:
    """Return the cell that trains the `k`-th teacher of `spec`, by seed ``teacher.seed + k``.

    None when there is no teacher, or when its weights come from a checkpoint or a hub. Cells that share a
    teacher give equal teacher cells.
    """
    teacher = spec.teacher
    if teacher is None or teacher.checkpoint is not None or teacher.pretrained:
        return None
    return replace(
        spec,
        role="teacher",
        method=MethodSpec(teacher.method),
        teacher=None,
        student=ArchSpec(teacher.name, teacher.args),
        recipe=teacher.recipe,
        seed=teacher.seed + k,
        source=("teacher_method",),
        evaluators=(),
        pair="",
        assistant=None,
        tuning=None,
    )
