"""``cell.json``: all that a worker needs to know of its cell. Written by the planner, read by the engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from kdbench.matrix.recipe import Recipe
from kdbench.results.schema import Labels, Tuning


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Arch(_Part):
    """An architecture by name, with constructor arguments."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)


class TeacherSource(_Part):
    """Where one teacher comes from; `ref` is a cell id, a file or a hub model.

    Attributes:
        mean, std: how the input of a checkpoint was normalised, per channel, in units of pixels from 0 to 1;
            None: as the data set says.
    """

    architecture: Arch
    source: Literal["cell", "checkpoint", "pretrained"]
    ref: str
    sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Data(_Part):
    """The data set with the arguments that find it on this machine."""

    name: str
    label: str
    args: dict[str, Any] = Field(default_factory=dict)
    limit_train: int | None = None
    limit_test: int | None = None
    storage: Literal["resident", "stream"]
    revision: str


class Timing(_Part):
    """How deployables are timed, or, where `only` is set, an untrained network: then all fields count."""

    batch_sizes: list[int | Literal["auto"]]
    rounds: int
    only: bool = False
    modes: list[Literal["infer", "train"]] = Field(default_factory=lambda: ["infer"])
    precisions: list[Literal["fp32", "tf32", "bf16", "fp16"]] = Field(default_factory=lambda: ["fp32"])
    channels_last: bool = False
    max_seconds: float = 10.0


class CellFile(_Part):
    """The whole of ``cell.json``."""

    cell_id: str
    protocol: int
    identity: dict[str, Any]
    labels: Labels
    task: str
    method: str
    params: dict[str, Any]
    student: Arch
    #: architecture of the assistant, only where the method needs one
    assistant: Arch | None = None
    teachers: list[TeacherSource]
    dataset: Data
    recipe: Recipe
    seed: int
    #: dtype of the table that the teachers' outputs come from; None: from the teachers
    teacher_cache: Literal["fp16", "fp32"] | None = None
    route: int = 0
    #: epochs (1-based) whose weights are kept for methods that follow this cell's training route
    keep_epochs: list[int] = Field(default_factory=list)
    evaluators: list[str] = Field(default_factory=list)
    throughput: Timing | None = None
    device: str = "cpu"
    threads: int | None = None
    #: processes that read a streaming data set; None: as many as a cell alone on the machine would take
    loaders: int | None = None
    disable_plugins: list[str] = Field(default_factory=list)
    #: how `params` were found, where they were searched
    tuning: Tuning | None = None

    def table_facts(self, k: int) -> dict[str, Any]:
        """Return what a plan can know of the table of teacher `k`; tables that differ in it are not the same."""
        teacher = self.teachers[k]
        return {
            "teacher": teacher.architecture.model_dump(mode="json"),
            "weights": [teacher.source, teacher.sha256 or teacher.ref, teacher.mean, teacher.std],
            "task": self.identity["task"],
            "data": {
                key: self.identity["dataset"].get(key) for key in ("name", "version", "revision", "args")
            },
            "precision": self.recipe.precision,
            "deterministic": self.recipe.deterministic,
        }

    @property
    def only_speed(self) -> bool:
        """Whether nothing is trained: the cell measures the untrained student."""
        return self.throughput is not None and self.throughput.only

    @property
    def trial(self) -> bool:
        """Whether the cell is a trial of a search, which sees no test image."""
        return self.labels.role == "trial"

    @property
    def precisions(self) -> list[str]:
        """The precisions in which its networks run."""
        only = self.throughput.precisions if self.throughput is not None and self.only_speed else None
        return [self.recipe.precision] if only is None else list(only)

    @field_serializer("recipe")
    def _as_written(self, recipe: Recipe) -> dict[str, Any]:
        """Write only what was set: a recipe refuses keys that its schedule does not read."""
        return recipe.model_dump(mode="json", exclude_unset=True)
