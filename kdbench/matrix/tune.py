"""The `tune` block of a matrix: the same search of hyper-parameters for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, model_validator

from kdbench.matrix.items import Label, Pair, Seed
from kdbench.matrix.recipe import StrictModel, at
from kdbench.protocol.search import problem_of

if TYPE_CHECKING:
    from kdbench.matrix.schema import Matrix

#: Tracks of a board: hyper-parameters as given, and found by a search of either scope.
DEFAULT = "default"
TRACKS = {"one-pair": "one-pair-tuned", "per-pair": "per-pair-tuned"}

Number = Annotated[int | FiniteFloat, Field(union_mode="left_to_right")]


def _epochs(value: Any) -> Any:
    if value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected epochs (integer) or a fraction of the recipe's (between 0 and 1)")
    if isinstance(value, int) and value < 1:
        raise ValueError("a trial has at least 1 epoch")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError("a fraction of the recipe's epochs lies above 0 and goes up to 1")
    return value


class SearchItem(StrictModel):
    """Where one hyper-parameter is searched."""

    low: Number | None = Field(default=None, description="Lower bound, included.")
    high: Number | None = Field(
        default=None, description="Upper bound, included; integers where both bounds are."
    )
    log: bool = Field(default=False, description="Search evenly in the logarithm.")
    choices: Annotated[tuple[str | bool | int | FiniteFloat, ...], Field(strict=False)] = Field(
        default=(), description="Values to choose among, in place of bounds."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := problem_of(self.low, self.high, self.log, self.choices):
            raise ValueError(problem)
        return self

    def plain(self) -> dict[str, Any]:
        """Return the space as JSON has it."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Parameter = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Tune(StrictModel):
    """A search of hyper-parameters with one budget for all methods; it sees no test image."""

    trials: int = Field(ge=1, le=10_000, description="Trials of each method, those that fail included.")
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=16)] = Field(
        description="Seeds of a trial, none of the matrix's; its value is the mean over them."
    )
    scope: Literal["one-pair", "per-pair"] = Field(
        default="per-pair",
        description="one-pair: one search, on `pair`, for all pairs; per-pair: one on each pair and data set.",
    )
    pair: Pair | None = Field(
        default=None, description="one-pair: the pair to search on, none of the matrix's."
    )
    dataset: Label | None = Field(
        default=None, description="one-pair: name or label of the data set to search on; null: the first."
    )
    epochs: Annotated[int | FiniteFloat | None, BeforeValidator(_epochs)] = Field(
        default=None,
        description="Epochs of a trial, or a fraction of the recipe's; null: all of the recipe's.",
    )
    select: Literal["last", "best"] = Field(
        default="last",
        description="Epoch whose validation metric is the value of a trial: the last, or the best one.",
    )
    sampler: Literal["tpe", "random"] = Field(
        default="tpe", description="Optuna's sampler: tree-structured Parzen estimator, or random search."
    )
    sampler_seed: Seed = Field(default=0, description="Seed of the sampler.")
    batch: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Trials of one method at a time; more than 1 know less of each other.",
    )
    search: dict[Parameter, dict[Parameter, SearchItem]] = Field(
        default_factory=dict,
        description="Method or label → hyper-parameter → where to search, in place of the method's own space.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise at("seeds", "a seed is given twice")
        if self.scope == "one-pair" and self.pair is None:
            raise at("pair", "the scope 'one-pair' needs the pair to search on")
        for key in ("pair", "dataset"):
            if self.scope == "per-pair" and getattr(self, key) is not None:
                raise at(key, f"'{key}' belongs to the scope 'one-pair'; this one is 'per-pair'")
        return self


def check_tune(matrix: Matrix) -> None:
    """Refuse a search in a matrix that trains nothing, and on seeds that it ranks by."""
    if matrix.tune is None:
        return
    if matrix.throughput is not None and matrix.throughput.only:
        raise at("tune", "a matrix that measures speed only has nothing to search")
    shared = sorted(set(matrix.tune.seeds) & set(matrix.seeds))
    if shared:
        raise at("tune.seeds", held_out_seed(shared[0], matrix.seeds))


def held_out_seed(seed: int, ranked: tuple[int, ...]) -> str:
    """Return what is wrong with a seed of a search that is also ranked by."""
    free = max(ranked) + 1
    return f"the matrix ranks by seed {seed}; the search needs others, such as {free}"
