"""The launcher ``slurm``: submits job arrays, reads what they leave, and may be left and started again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.api import Job, KdbenchError, Place
from kdbench_launchers.followed import Report
from kdbench_launchers.node import Cell, endings
from kdbench_launchers.slurm.arrays import Array, arrays
from kdbench_launchers.slurm.group import CellGroup
from kdbench_launchers.slurm.options import Options, read_options
from kdbench_launchers.slurm.queue import look
from kdbench_launchers.slurm.submissions import Submission, fresh, open_submissions, unreported
from kdbench_launchers.slurm.watch import Watched

#: Looks at the queue that have to miss a task before it counts as over: a shared folder shows files late.
_MISSES = 2
#: Most tasks that a dependency names one by one.
_MOST_NAMED = 100


class SlurmLauncher:
    """Runs jobs as tasks of Slurm job arrays: teachers first, and an array for each set of resources.

    Options: ``settings`` (the matrix's ``launcher_options.slurm``, see
    :class:`kdbench_launchers.slurm.options.Options`), ``methods`` (those of the matrix), ``run`` (the run folder),
    ``workers`` (most tasks of an array at a time) and ``cost`` (gives a job's expected cost).

    Stopping it leaves the jobs alone: started again, it finds them by the names that it noted before it submitted
    them, and submits nothing twice.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = _read(options)
        self._run = Path(options["run"])
        self._workers = int(options.get("workers", 1))
        self._cost: Callable[[Job], float] = options.get("cost") or (lambda job: job.cost)
        self._watched: dict[str, Watched] = {}
        self._submissions: list[Submission] = []

    @classmethod
    def check(cls, settings: Mapping[str, Any], methods: Collection[str]) -> None:
        """Look at a block of the matrix; keys of submitit's only where it is installed. Raises OptionError."""
        there = importlib.util.find_spec("submitit") is not None
        read_options(settings, methods, _submitit_keys() if there else None)

    @classmethod
    def place(cls, options: Mapping[str, Any], device: str) -> Place:
        """Return where cells run. Raises KdbenchError for options that cannot be understood."""
        settings = _read(options)
        if device == "auto":
            device = "cuda" if settings.gpu else "cpu"
        return Place(
            device=device,
            cores=settings.cpus_per_task,
            leaving="leaving: the jobs go on, and the same command comes back to them (scancel ends them)",
            news=unreported(Path(options["run"])),
        )

    def run(self, jobs: Sequence[Job], report: Report, stop: Callable[[], int]) -> None:
        """Run all jobs. Raises KdbenchError where Slurm takes no job or does not answer at the start."""
        self._adopt(jobs, report)
        waiting = [job for job in jobs if job.cell_id not in self._watched]
        for array in arrays(waiting, self._options, self._cost):
            if stop():
                return
            self._submit(array)
        while self._watched and not stop():
            self._look(report)
            self._pause(stop)

    def _adopt(self, jobs: Sequence[Job], report: Report) -> None:
        """Take up what an earlier process submitted: watch what goes on, tell what nobody told."""
        self._submissions = open_submissions(self._run)
        queue = look(s.name for s in self._submissions)
        if queue is None:
            raise KdbenchError("squeue does not answer, so nobody knows which jobs run; try again later")
        open_jobs = {job.cell_id: job for job in jobs}
        for submission in self._submissions:
            job_id, tasks = queue.get(submission.name, (submission.job_id, frozenset()))
            if job_id != submission.job_id:
                submission.job_id = job_id
                submission.save()
            for task, group in enumerate(submission.groups):
                self._adopt_task(submission, task, group, task in tasks, open_jobs, report)
        if self._watched:
            report({"event": "note", "message": f"{len(self._watched)} cell(s) are in Slurm jobs already"})

    def _adopt_task(
        self,
        submission: Submission,
        task: int,
        group: Sequence[str],
        alive: bool,
        jobs: Mapping[str, Job],
        report: Report,
    ) -> None:
        events = submission.events(task)
        over = endings(events)
        for cell in [c for c in group if c not in submission.told]:
            job, ended = jobs.get(cell), over.get(cell)
            if job is not None and (alive if ended is None else _untold(ended, job, jobs)):
                self._watched[cell] = Watched(job, submission, task)
            elif ended is not None or not alive:
                if job is None and ended is not None:
                    report({"event": "found", "cell_id": cell})
                submission.tell([cell])

    def _submit(self, array: Array) -> None:
        groups = [[job.cell_id for job in group] for group in array.groups]
        submission = fresh(self._run, groups)
        parameters = array.resources.sbatch() | {"job_name": submission.name}
        parameters["array_parallelism"] = max(1, min(self._workers, len(groups)))
        needed = [a for group in array.groups for job in group for a in job.after if a in self._watched]
        if needed:
            # of whatever end: who lacks its teacher says so, and the others of the array go on
            parameters["dependency"] = "afterany:" + ":".join(self._tasks(needed))
        work = [
            CellGroup(
                [_cell(job) for job in group],
                submission.events_path(task).absolute(),
                array.resources.signal_delay_s,
            )
            for task, group in enumerate(array.groups)
        ]
        submission.job_id = _sbatch(submission, work, parameters, self._options.max_timeouts)
        submission.save()
        self._submissions.append(submission)
        for task, group in enumerate(array.groups):
            for job in group:
                self._watched[job.cell_id] = Watched(job, submission, task)

    def _tasks(self, cells: Sequence[str]) -> list[str]:
        """Return the tasks, or where they are many the arrays, that run these cells."""
        on = [self._watched[cell] for cell in dict.fromkeys(cells)]
        tasks = list(dict.fromkeys(w.submission.task_id(w.task) for w in on))
        if len(tasks) <= _MOST_NAMED:
            return tasks
        return list(dict.fromkeys(str(w.submission.job_id) for w in on))

    def _look(self, report: Report) -> None:
        """Report what is new of every cell that is watched."""
        queue = look(dict.fromkeys(w.submission.name for w in self._watched.values()))
        seen: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for cell, watched in list(self._watched.items()):
            name, task = watched.submission.name, watched.task
            if queue is not None:
                here = task in queue.get(name, ("", frozenset()))[1]
                watched.missed = 0 if here else watched.missed + 1
            if (name, task) not in seen:
                try:
                    seen[name, task] = watched.submission.events(task)
                except OSError:  # a file server that does not answer; the next look tells
                    continue
            if not watched.see(seen[name, task], report):
                if watched.missed < _MISSES:
                    continue
                watched.gone(report)
            del self._watched[cell]
            watched.submission.tell([cell])

    def _pause(self, stop: Callable[[], int]) -> None:
        end = time.monotonic() + self._options.poll_s
        while self._watched and not stop() and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.2, left))


def _untold(ended: Mapping[str, Any], job: Job, jobs: Mapping[str, Job]) -> bool:
    """Return whether an ending that nobody told still holds; else the cell is to run again.

    A cell that wrote a record and is yet to run has lost it, or is wanted again for its weights. One that lacked a
    teacher has another chance where that runs again.
    """
    if ended.get("teacher") is not None:
        return not any(a in jobs for a in job.after)
    return ended.get("late", False) or ended.get("code") not in (0, 1)


def _cell(job: Job) -> Cell:
    folder = job.folder.absolute()
    return Cell(job.cell_id, folder, tuple(folder.parent / a for a in job.after), job.timeout_s)


def _read(options: Mapping[str, Any]) -> Options:
    return read_options(options.get("settings", {}), set(options.get("methods", ())), _submitit_keys())


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as e:
        raise KdbenchError(
            "the launcher 'slurm' needs submitit, which is not installed: pip install 'kdbench[slurm]'"
        ) from e
    return submitit


def _submitit_keys() -> set[str]:
    return set(_submitit().SlurmExecutor._valid_parameters())


def _sbatch(
    submission: Submission, work: Sequence[CellGroup], parameters: Mapping[str, Any], timeouts: int
) -> str:
    """Submit an array. Returns its id; raises KdbenchError with what Slurm said."""
    submitit = _submitit()
    try:
        executor = submitit.SlurmExecutor(folder=submission.folder.absolute(), max_num_timeout=timeouts)
        executor.update_parameters(**parameters)
        # submitit prints what sbatch says, which stands in the error too
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            made = [executor.submit(group) for group in work]
        return str(made[0].job_id).partition("_")[0]
    except Exception as e:
        # nothing is in the queue under this name
        submission.tell(cell for group in submission.groups for cell in group)
        told = (str(e).strip() or type(e).__name__).splitlines()
        raise KdbenchError(f"Slurm took no job: {told[-1]}") from e
