"""What a matrix may say under ``launcher_options: ray:``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from kdbench_launchers.block import read_block

_SIZE = re.compile(r"(\d+)(?:([KMGT])(?:i?B)?)?")
#: Ray's own names of what has a key here.
_KEYS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError("expected a size such as 16GiB or 16G, or a number of bytes")
    return int(found[1]) * 1024 ** " KMGT".index(found[2] or " ")


def _gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("expected a part of one GPU or a whole number of them")
    return value


def _custom(value: dict[str, float]) -> dict[str, float]:
    for name in value:
        if name in _KEYS:
            raise ValueError(f"{name} is given as {_KEYS[name]}")
    return value


def _address(value: str | None) -> str | None:
    if value is not None and "://" in value:
        raise ValueError("expected auto, local or HOST:PORT; a run is started on a node of the cluster")
    return value


Amount = Annotated[FiniteFloat, Field(gt=0)]


class Resources(BaseModel):
    """What one cell takes of its node while it runs.

    Attributes:
        num_cpus: cores; whole ones are the threads of the cell.
        num_gpus: GPUs, or a part of one: with 0.5 two cells share a GPU.
        memory: bytes, or a size such as 16G, 16GB or 16GiB, which are the same (powers of 1024); Ray places by it
            and does not enforce it.
        resources: custom resources of the cluster's nodes.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    num_cpus: Amount = 1.0
    num_gpus: Annotated[FiniteFloat, Field(ge=0), AfterValidator(_gpus)] = 0.0
    memory: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_size)] = None
    resources: Annotated[dict[str, Amount], AfterValidator(_custom)] = Field(default_factory=dict)

    @property
    def cores(self) -> int:
        """Whole cores of a cell, at least one."""
        return max(1, int(self.num_cpus))

    def task(self) -> dict[str, Any]:
        """Return the options of a Ray task."""
        told: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.memory is not None:
            told["memory"] = self.memory
        return {**told, "resources": self.resources} if self.resources else told

    def asked(self) -> dict[str, float]:
        """Return what a node must have, by Ray's names."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory, **self.resources}
        return {name: float(amount) for name, amount in named.items() if amount}


class Options(Resources):
    """The whole block: what all cells take, and what differs for those of some methods.

    Attributes:
        methods: by method, keys of :class:`Resources` that differ.
        address: the cluster to join, ``HOST:PORT`` or ``auto``; ``local`` starts Ray on this machine. None: what
            ``RAY_ADDRESS`` says, or else ``local``.
        max_retries: how often a cell goes on elsewhere after its node or Ray's worker died.
        poll_s: seconds between two looks at the files of running cells.
        runtime_env: the environment of tasks, as ``ray.init`` takes it.
    """

    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    address: Annotated[str, Field(min_length=1), AfterValidator(_address)] | None = None
    max_retries: Annotated[int, Field(ge=0)] = 3
    poll_s: Amount = 1.0
    runtime_env: dict[str, Any] | None = None

    def of(self, method: str) -> Resources:
        """Return what a cell of a method takes."""
        common = self.model_dump(include=set(Resources.model_fields), exclude_unset=True)
        return Resources(**{**common, **self.methods.get(method, {})})


def read_options(given: Mapping[str, Any], methods: Collection[str]) -> Options:
    """Return the options of a matrix with these methods. Raises OptionError for a key or value that cannot be."""
    options: Options = read_block("ray", given, methods, Options, Resources)
    return options
