"""Schema of a record (``result.json``), the truth about one finished cell."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from kdbench.results.speed_row import Number, SpeedRow, Whole

SCHEMA_VERSION = 1

Status = Literal["done", "failed", "oom", "timeout", "diverged", "crashed", "not_applicable", "interrupted"]
#: Every status that a cell can end with.
STATUSES: tuple[Status, ...] = (
    "done",
    "failed",
    "oom",
    "timeout",
    "diverged",
    "crashed",
    "not_applicable",
    "interrupted",
)
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=200)]
Scalars = dict[str, Number | None]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Labels(_Model):
    """Names for tables; nothing here enters the cell id."""

    matrix: Text
    task: Text
    dataset: Text
    student: Text
    teacher: Text | None = None
    #: architecture between the two, only where the method uses it
    assistant: Text | None = None
    method: Text
    #: method with what was overridden, e.g. ``dkd(beta=2.0)``; rows of a board are per variant
    variant: Text
    recipe: Text
    #: a ``trial`` is a step of a search and no result
    role: Literal["student", "teacher", "trial"] = "student"
    seed: Whole
    fidelity: Text = ""
    preset: Text | None = None
    #: whose hyper-parameters they are: ``default`` (the method's or the matrix's), or found by which search
    track: Text = "default"

    @property
    def pair(self) -> str:
        """The networks as ``teacher -> assistant -> student``, as far as there are."""
        return " -> ".join(name for name in (self.teacher, self.assistant, self.student) if name)


class BestEpoch(_Model):
    """Test metrics at an epoch chosen by `by` (1-based over the whole run)."""

    epoch: Whole = Field(ge=0)
    by: Number
    top1: Number


class Deployable(_Model):
    """Quality of one deployed network. Accuracies are percent, 0-100."""

    #: metrics after the last epoch on the test split: top1, top5, nll (nats), ece (percent), agreement ...
    last: Scalars
    #: test top-1 at the epoch with the best validation top-1
    best_val: BestEpoch | None = None
    #: test top-1 at the epoch with the best test top-1: an oracle
    best_test: BestEpoch | None = None
    params: Whole = Field(ge=0)
    #: multiply-accumulate operations of one image's forward pass
    macs: Whole | None = Field(default=None, ge=0)


class BatchSpeed(_Model):
    """Inference speed at one batch size."""

    images_per_s: Number = Field(gt=0)
    latency_ms_p50: Number = Field(gt=0)
    latency_ms_p95: Number = Field(gt=0)
    #: interquartile range of the block times over their median
    iqr_ratio: Number = Field(ge=0)
    rounds: Whole = Field(ge=1)
    peak_memory_mb: Number | None = None


class Cost(_Model):
    """What training took. Train, evaluation and logging are three clocks; waiting is in none."""

    train_s: Number = Field(ge=0)
    eval_s: Number = Field(ge=0)
    log_s: Number = Field(ge=0)
    setup_s: Number = Field(ge=0)
    train_images_per_s: Number | None = Field(default=None, ge=0)
    #: median over epochs of the mean step time
    step_ms: Number | None = Field(default=None, ge=0)
    #: share of a step spent in teacher forward passes, measured on separate timed steps; None without a teacher
    teacher_share: Number | None = None
    #: trainable parameters that exist only during training (connectors, generators, peers)
    extra_params: Whole = Field(ge=0)
    epochs: Whole = Field(ge=0)
    steps: Whole = Field(ge=0)
    #: device time of the cell: hours of one GPU, or of one CPU core
    device_hours: Number = Field(ge=0)
    peak_memory_mb: Number | None = None
    #: part of the clocks that was spent once for several cells, by another of them
    shared_s: Number | None = Field(default=None, ge=0)
    #: most cells that trained in lockstep with it in its process, itself included; None: it trained alone
    gang: Whole | None = Field(default=None, ge=2)
    #: seconds spent on filling tables of the teachers' outputs, which other cells read too
    fill_s: Number | None = Field(default=None, ge=0)
    #: calls of teachers in training that a table answered, and those that were made; None without tables
    cached_forwards: Whole | None = Field(default=None, ge=0)
    online_forwards: Whole | None = Field(default=None, ge=0)
    #: seconds of the steps in which something was compiled; None where nothing is compiled
    compile_s: Number | None = Field(default=None, ge=0)
    attempts: Whole = Field(default=1, ge=1)


class TeacherRef(_Model):
    """A teacher that was used: a cell of kdbench, a checkpoint or hub weights."""

    source: Literal["cell", "checkpoint", "pretrained"]
    ref: Text
    architecture: Text
    sha256: str | None = None
    top1: Number | None = None
    #: ``mean`` and ``std`` per channel that its weights expect, where they are not the data set's
    normalization: dict[Literal["mean", "std"], list[Number]] | None = None


class Plugin(_Model):
    """Distribution that provided a part of the cell."""

    distribution: Text
    version: Text
    git: Text | None = None
    code: Text | None = None


class Tuning(_Model):
    """How the hyper-parameters of a cell were found: the conditions of the search, and how it went."""

    track: Text
    #: trials that every method was given
    budget: Whole = Field(ge=1)
    #: trials that this one took; 0 for a method that has nothing to search
    trials: Whole = Field(ge=0)
    #: of them, those that gave no value
    failed: Whole = Field(ge=0)
    dataset: Text
    pair: Text
    seeds: list[Whole]
    #: of a trial
    epochs: Whole = Field(ge=1)
    #: which epoch's validation metric is the value of a trial
    select: Literal["last", "best"]
    sampler: Text
    sampler_seed: Whole
    #: trials asked for at a time
    batch: Whole = Field(ge=1)
    #: hyper-parameter -> where it was searched
    space: dict[str, Any] = Field(default_factory=dict)
    #: hyper-parameter -> what was found
    params: dict[str, Any] = Field(default_factory=dict)
    #: value of the best trial: the primary metric on the validation split
    value: Number | None = None


class Validation(_Model):
    """What a trial reached on the validation split, by the task's primary metric."""

    metric: Text
    higher_is_better: bool
    last: Number
    best: Number


class Failure(_Model):
    """Why a cell is not done."""

    type: Text
    message: str = Field(max_length=4000)
    traceback: str | None = Field(default=None, max_length=40000)


class Record(_Model):
    """One cell's record."""

    schema_version: Literal[1] = 1
    cell_id: Sha256
    status: Status
    protocol: Whole
    labels: Labels
    #: canonical description of the cell, whose sha256 is the cell id
    identity: dict[str, Any]
    primary: Text | None = None
    deployables: dict[str, Deployable] = Field(default_factory=dict)
    #: deployable -> batch size -> speed
    throughput: dict[str, dict[str, BatchSpeed]] = Field(default_factory=dict)
    #: speeds of a cell that only measures them, over modes, precisions and batch sizes
    speeds: list[SpeedRow] = Field(default_factory=list)
    cost: Cost | None = None
    teachers: list[TeacherRef] = Field(default_factory=list)
    #: primary metric of trivial baselines
    floors: Scalars = Field(default_factory=dict)
    #: only of a cell whose hyper-parameters were searched
    tuning: Tuning | None = None
    #: only of a trial, which sees no test image
    validation: Validation | None = None
    environment: dict[str, str | Whole | Number | bool | None] = Field(default_factory=dict)
    plugins: dict[str, Plugin] = Field(default_factory=dict)
    error: Failure | None = None
    warnings: list[str] = Field(default_factory=list)
    #: sha256 of the trained weights of the primary deployable
    weights_sha256: str | None = None
    started_at: str
    finished_at: str
    #: digest of all other fields as they were written, see :mod:`kdbench.results.content`; None in old records
    content_sha256: Sha256 | None = None
