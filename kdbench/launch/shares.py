"""How the machine is shared out: workers, the threads of each, and the processes that read its data."""

from __future__ import annotations

from dataclasses import dataclass

#: Most processes that read a streaming data set for one cell.
MOST_LOADERS = 4


@dataclass(frozen=True)
class Shares:
    """What each worker gets.

    Attributes:
        workers: cells at a time.
        threads: threads of a worker's torch operations; None on a GPU, where torch's own default (one) stands.
        loaders: processes that read a streaming data set, for each worker.
        warning: what is wrong with what the user asked for, or None.
    """

    workers: int
    threads: int | None
    loaders: int
    warning: str | None = None


def share_out(
    cores: int,
    jobs: int,
    *,
    workers: int | None = None,
    threads: int | None = None,
    gpus: int = 0,
    slots_per_gpu: int = 1,
) -> Shares:
    """Share `cores` out among the workers that run `jobs` cells.

    Threads times workers never exceed the cores, unless the user says both, or more workers than there are cores:
    then there is a warning. On a GPU there are `slots_per_gpu` workers for each; ``workers`` is then a bound.
    """
    if gpus:
        slots = gpus * slots_per_gpu
        workers = max(1, min(jobs, workers or slots))
        return Shares(workers, threads, _loaders(cores, workers, 1))
    each = threads or 1
    count = max(1, min(jobs, workers or max(1, cores // each)))
    warning = None
    if count * each > cores:
        warning = (
            f"{count} worker(s) with {each} thread(s) each are more than the {cores} core(s) of this machine: "
            f"cells wait for one another, which can cost more than half of the speed"
        )
    return Shares(count, each, _loaders(cores, count, each), warning)


def _loaders(cores: int, workers: int, threads: int) -> int:
    """Return the reading processes that the cores have room for, beside the threads that train."""
    return min(MOST_LOADERS, max(0, cores // workers - threads))
