"""What a matrix may say under ``launcher_options: slurm:``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from kdbench_launchers.block import read_block

#: What the launcher itself sets, so that nobody else may.
_OWN = {"job_name", "dependency", "array_parallelism", "ntasks_per_node", "nodes", "use_srun", "num_gpus"}
_GPUS = ("gpus_per_node", "gpus_per_task", "gres")

#: Memory as sbatch takes it.
_SIZE = re.compile(r"\d+(?:[KMGT]B?)?", re.IGNORECASE)


def _size(value: Any) -> Any:
    if isinstance(value, bool) or (value is not None and _SIZE.fullmatch(str(value)) is None):
        raise ValueError("expected a size such as 16G, or a number of MB")
    return value


Size = Annotated[Any, AfterValidator(_size)]
CellsPerJob = Annotated[int, Field(ge=1)]
Minutes = Annotated[int, Field(ge=1)]
Cores = Annotated[int, Field(ge=1)]


class Resources(BaseModel):
    """What one class of jobs asks of Slurm; further keys are those of submitit's executor.

    Attributes:
        cells_per_job: cells that one job runs, one after the other.
        time: limit of a job in minutes; a job that reaches it goes on in a further one.
        cpus_per_task: cores of a job.
        mem, mem_per_cpu, mem_per_gpu: memory of a job, a core or a GPU: MB, or a size such as 16G.
        signal_delay_s: seconds before the end of a job at which its cell saves its state.
        additional_parameters: further options of sbatch.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    cells_per_job: CellsPerJob = 1
    time: Minutes = 60
    cpus_per_task: Cores = 1
    mem: Size = None
    mem_per_cpu: Size = None
    mem_per_gpu: Size = None
    signal_delay_s: Annotated[int, Field(ge=10)] = 90
    additional_parameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        """Whether a job has a GPU."""
        extra = self.model_extra or {}
        return any(extra.get(key) for key in _GPUS)

    def sbatch(self) -> dict[str, Any]:
        """Return the parameters of submitit's executor."""
        told = self.model_dump(exclude={"cells_per_job", "additional_parameters"}, exclude_none=True)
        # a node that fails, or a job that has to make room, starts the job again
        return {**told, "additional_parameters": {"requeue": True, **self.additional_parameters}}


class Options(Resources):
    """The whole block: resources of all jobs, and what differs for the jobs of some methods.

    Attributes:
        methods: by method, keys of :class:`Resources` that differ.
        poll_s: seconds between two looks at the queue and at the files of running cells.
        max_timeouts: how often a job that reaches its limit goes on in a further one.
    """

    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    poll_s: Annotated[FiniteFloat, Field(gt=0, strict=False)] = 10.0
    max_timeouts: Annotated[int, Field(ge=0)] = 100

    def of(self, method: str) -> Resources:
        """Return what jobs of a method ask for."""
        common = self.model_dump(exclude={"methods", "poll_s", "max_timeouts"})
        return Resources(**{**common, **self.methods.get(method, {})})


def read_options(given: Mapping[str, Any], methods: Collection[str], known: set[str] | None) -> Options:
    """Return the options of a matrix.

    Args:
        given: the block as it stands in the matrix.
        methods: the methods of the matrix.
        known: keys that submitit takes; None: it is not there to be asked.

    Raises:
        OptionError: for a key, a value or a method that is not known.
    """
    options: Options = read_block("slurm", given, methods, Options, Resources, known=known, own=_OWN)
    return options
