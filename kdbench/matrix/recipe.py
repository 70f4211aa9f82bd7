"""The recipe: everything about training that is not the method. All of it enters the cell id."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

#: Keys of a schedule that each kind reads, besides those that all kinds read.
SCHEDULE_KEYS: dict[str, frozenset[str]] = {
    "constant": frozenset(),
    "cosine": frozenset({"min_lr"}),
    "linear": frozenset({"min_lr"}),
    "multistep": frozenset({"milestones", "gamma"}),
    "step": frozenset({"every_epochs", "gamma"}),
}
SCHEDULE_COMMON = frozenset({"name", "warmup_epochs", "warmup_lr", "per"})
#: Keys of an optimizer that keep their meaning when another optimizer is chosen.
OPTIMIZER_COMMON = frozenset({"name", "lr", "weight_decay"})
#: Keys of an augmentation that only random crops read.
CROP_KEYS = frozenset({"padding", "padding_mode"})


def at(key: str, message: str) -> PydanticCustomError:
    """Return a validation error that points at `key` inside the model that raises it."""
    return PydanticCustomError("kdbench", "{message}", {"message": message, "at": key})


def _milestone(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected an epoch (integer) or a fraction of the training (between 0 and 1)")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a fraction of the training lies between 0 and 1; an epoch is written as an integer")
    if isinstance(value, int) and value < 1:
        raise ValueError("an epoch is at least 1")
    return value


def _flip(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("expected true, false or 'auto'")
    return value


def _off(value: Any) -> Any:
    """YAML 1.1 reads ``off`` as false."""
    return "off" if value is False else value


def _none(value: Any) -> Any:
    """``off`` says the same as ``none``, so that every switch of a recipe can be turned off by that word."""
    return "none" if _off(value) == "off" else value


class StrictModel(BaseModel):
    """Base of what a user writes: no unknown keys, no conversion of types, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Optimizer(StrictModel):
    """Optimizer, made by timm's factory."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)] = Field(
        description="Name in timm's optimizer factory. As there, 'momentum' is SGD with classical momentum "
        "and 'sgd' is SGD with Nesterov momentum; further e.g. adamw, adam, lamb, lion."
    )
    lr: FiniteFloat = Field(gt=0, description="Learning rate at `batch_size`; it is not rescaled.")
    weight_decay: FiniteFloat = Field(default=0.0, ge=0, description="Weight decay.")
    momentum: FiniteFloat = Field(
        default=0.9, ge=0, lt=1, description="Momentum, for optimizers that have one; 0.9 as in timm."
    )
    betas: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = Field(
        default=None, description="Adam's coefficients; null: the optimizer's own."
    )
    eps: FiniteFloat | None = Field(
        default=None, gt=0, description="Term against division by zero; null: the optimizer's own."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise at("betas", "each of the two coefficients must be at least 0 and below 1")
        return self


class Schedule(StrictModel):
    """Learning rate over the training."""

    name: Literal["constant", "cosine", "linear", "multistep", "step"] = Field(
        description="constant; cosine or linear decay to `min_lr`; multistep (times `gamma` at each "
        "milestone); step (times `gamma` every `every_epochs`)."
    )
    milestones: Annotated[
        tuple[Annotated[int | float, BeforeValidator(_milestone)], ...], Field(strict=False)
    ] = Field(
        default=(), description="multistep: fractions of the training in (0, 1), or epochs; increasing."
    )
    every_epochs: int | None = Field(default=None, ge=1, description="step: epochs between two decays.")
    gamma: FiniteFloat = Field(default=0.1, gt=0, lt=1, description="multistep, step: factor of each decay.")
    min_lr: FiniteFloat = Field(default=0.0, ge=0, description="cosine, linear: learning rate at the end.")
    warmup_epochs: int = Field(default=0, ge=0, description="Epochs of linear warm-up from `warmup_lr`.")
    warmup_lr: FiniteFloat = Field(
        default=1e-5, ge=0, description="Learning rate at the start of the warm-up."
    )
    per: Literal["epoch", "step"] = Field(
        default="epoch", description="Whether the rate changes after each epoch or each step."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reads = SCHEDULE_KEYS[self.name]
        for key in sorted(self.model_fields_set - SCHEDULE_COMMON - reads):
            users = [name for name, keys in SCHEDULE_KEYS.items() if key in keys]
            raise at(
                key, f"the schedule '{self.name}' does not read '{key}'; it belongs to {' and '.join(users)}"
            )
        if self.name == "multistep":
            steps = self.milestones
            if not steps:
                raise at("milestones", "the schedule 'multistep' needs milestones, e.g. [0.5, 0.75]")
            if len({type(step) for step in steps}) > 1:
                raise at("milestones", "give either fractions or epochs, not both")
            if any(b <= a for a, b in pairwise(steps)):
                raise at("milestones", "milestones must increase")
        if self.name == "step" and self.every_epochs is None:
            raise at("every_epochs", "the schedule 'step' needs every_epochs, e.g. 30")
        return self


class Augment(StrictModel):
    """Training augmentation; evaluation images are never augmented."""

    kind: Literal["crop", "rrc", "none"] = Field(
        default="crop",
        description="crop: random crop of the padded image to its old size; rrc: RandomResizedCrop; none.",
    )
    padding: int = Field(default=4, ge=0, le=1024, description="crop: pixels added on each side.")
    padding_mode: Literal["zeros", "reflect"] = Field(default="zeros", description="crop: what is added.")
    flip: Annotated[Literal[True, False, "auto"], BeforeValidator(_flip)] = Field(
        default="auto",
        description="Random horizontal flip; auto: where the data set says that it keeps the class.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "crop" and (unread := sorted(self.model_fields_set & CROP_KEYS)):
            raise at(
                unread[0], f"the augmentation '{self.kind}' does not read '{unread[0]}'; it belongs to crop"
            )
        return self


class Recipe(StrictModel):
    """How a network is trained, whatever the method.

    `name` is for tables; it is neither a key nor part of the cell id.
    """

    epochs: int = Field(ge=1, le=1_000_000, description="Passes over the training split.")
    batch_size: int = Field(default=64, ge=1, description="Images per training step.")
    eval_batch_size: int = Field(default=256, ge=1, description="Images per evaluation step.")
    drop_last: bool = Field(
        default=False, description="Leave out the last batch of an epoch when it is smaller."
    )
    optimizer: Optimizer
    filter_bias_and_bn: bool = Field(
        default=False, description="Keep biases and normalisation layers out of the weight decay."
    )
    schedule: Schedule = Field(default_factory=lambda: Schedule(name="cosine"))
    clip_grad: FiniteFloat | None = Field(
        default=None, gt=0, description="Largest gradient norm; null: no limit."
    )
    augment: Augment = Field(default_factory=Augment)
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] = Field(
        default="fp32",
        description="fp32; tf32 matrix products; or autocast to bf16 or fp16 (with loss scaling). auto: bf16 "
        "where the device computes in it, else fp32; cell ids and records say which.",
    )
    channels_last: bool = Field(default=True, description="Memory format of images and weights.")
    val_fraction: FiniteFloat = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the training split held out, stratified, for validation where the data set has "
        "no validation split; 0: none, and best_val is null.",
    )
    eval_every: int = Field(
        default=1, ge=1, description="Epochs between evaluations; the last is always one."
    )
    label_smoothing: FiniteFloat = Field(
        default=0.0, ge=0, lt=1, description="Smoothing of the supervised loss."
    )
    deterministic: bool = Field(
        default=True, description="Deterministic algorithms, so that a run repeats exactly."
    )
    teacher_cache: Annotated[Literal["off", "fp16", "fp32"], BeforeValidator(_off)] = Field(
        default="off",
        description="Table of the teacher's outputs for all views, for methods that read no more than logits and "
        "pooled features; off: the teacher runs in every step.",
    )
    compile: Annotated[
        Literal["none", "default", "reduce-overhead", "graph", "auto"], BeforeValidator(_none)
    ] = Field(
        default="none",
        description="default, reduce-overhead: torch.compile of student and teacher in this mode; graph: whole "
        "steps as CUDA graphs; auto: graph on a GPU, where a probe in the cell's first steps shows that it pays.",
    )

    _name: str = PrivateAttr("inline")

    @property
    def name(self) -> str:
        """Where it comes from, e.g. ``quick(epochs=3)``."""
        return self._name

    def named(self, name: str) -> Self:
        """Return the same recipe under another name."""
        other = self.model_copy()
        other._name = name
        return other

    @model_validator(mode="after")
    def _check(self) -> Self:
        late = [m for m in self.schedule.milestones if isinstance(m, int) and m >= self.epochs]
        if late:
            hint = "give fractions of the training, such as 0.5, to have them scale with epochs"
            raise at(
                "schedule.milestones",
                f"milestone {late[0]} is not before the end ({self.epochs} epochs); {hint}",
            )
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs:
            raise at(
                "schedule.warmup_epochs",
                f"a warm-up of {self.schedule.warmup_epochs} epochs leaves nothing of {self.epochs} epochs",
            )
        return self
