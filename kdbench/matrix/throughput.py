"""Schema of ``throughput`` in a matrix file: how speed is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from kdbench.matrix.recipe import StrictModel, at

if TYPE_CHECKING:
    from kdbench.matrix.schema import Matrix


class ThroughputItem(StrictModel):
    """How speed is measured: inference of trained networks, or (`only`) untrained networks and nothing else."""

    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1)] | Literal["auto"], ...],
        Field(strict=False, min_length=1, max_length=32),
    ] = Field(
        default=(1, 64),
        description="Images per call; with `only` also auto: found up to the device's memory.",
    )
    rounds: int = Field(default=30, ge=1, description="Interleaved rounds of timing.")
    only: bool = Field(
        default=False,
        description="Train nothing: measure untrained networks as `kdbench throughput` does.",
    )
    modes: Annotated[
        tuple[Literal["infer", "train"], ...], Field(strict=False, min_length=1, max_length=2)
    ] = Field(default=("infer", "train"), description="With `only`: forward passes, training steps.")
    precisions: Annotated[
        tuple[Literal["fp32", "tf32", "bf16", "fp16"], ...], Field(strict=False, min_length=1, max_length=4)
    ] = Field(default=("fp32",), description="With `only`: the lower ones by autocast.")
    channels_last: bool = Field(default=False, description="With `only`: memory layout NHWC.")
    max_seconds: FiniteFloat = Field(
        default=10.0, gt=0, description="With `only`: a row gets no round after these, but three at least."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("batch_sizes", "modes", "precisions"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise at(key, f"{key.replace('_', ' ')} must differ")
        if self.only:
            return self
        for key in ("modes", "precisions", "channels_last", "max_seconds"):
            if key in self.model_fields_set:
                raise at(key, f"'{key}' needs 'only: true': trained networks are timed as their recipe says")
        if "auto" in self.batch_sizes:
            raise at("batch_sizes", "'auto' needs 'only: true'")
        return self


def check_only_speed(matrix: Matrix) -> None:
    """Refuse what means nothing where nothing is trained. Raises what :func:`kdbench.matrix.recipe.at` gives."""
    taught = any(pair.teacher is not None for pair in matrix.pairs or ())
    if taught or any(teacher is not None for teacher in matrix.teachers or ()):
        key = "pairs" if taught else "teachers"
        raise at(key, "with 'throughput.only' nothing is trained: expected null for every teacher")
    if len(matrix.methods) > 1:
        raise at("methods.1", "with 'throughput.only' nothing is trained: expected one method")
    for number, item in enumerate(matrix.include):
        if item.method is not None or any(teacher is not None for teacher in item.teacher):
            raise at(f"include.{number}", "with 'throughput.only' there are no further methods or teachers")
