"""How the machine is shared out: workers, the threads of each, and the processes that read its data."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.errors import KdbenchError

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
    processes: int = 1,
) -> Shares:
    """Share `cores` out among the workers that run `jobs` cells.

    Threads times workers never exceed the cores, unless the user says both, or more workers than there are cores:
    then there is a warning. On a GPU there are `slots_per_gpu` workers for each; ``workers`` is then a bound. Of
    workers with several `processes` each process has the threads and the loaders, and a GPU.

    Raises KdbenchError when there are fewer GPUs than processes.
    """
    if gpus and processes > gpus:
        raise KdbenchError(
            f"--processes-per-cell {processes}: each process needs a GPU of its own, and here are {gpus}"
        )
    if gpus:
        slots = gpus // processes * slots_per_gpu
        # of several processes a worker has so many GPUs, so there is no room for more
        most = min(jobs, slots) if processes > 1 else jobs
        workers = max(1, min(most, workers or slots))
        return Shares(workers, threads, _loaders(cores, workers * processes, 1))
    each = threads or 1
    count = max(1, min(jobs, workers or max(1, cores // (each * processes))))
    warning = None
    if count * processes * each > cores:
        several = f" of {processes} processes" if processes > 1 else ""
        warning = (
            f"{count} worker(s){several} with {each} thread(s) each are more than the {cores} core(s) of this "
            f"machine: cells wait for one another, which can cost more than half of the speed"
        )
    return Shares(count, each, _loaders(cores, count * processes, each), warning)


def _loaders(cores: int, workers: int, threads: int) -> int:
    """Return the reading processes that the cores have room for, beside the threads that train."""
    return min(MOST_LOADERS, max(0, cores // workers - threads))
