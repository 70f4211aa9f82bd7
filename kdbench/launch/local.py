"""The local launcher: worker processes on this machine, one cell each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.hooks import Job
from kdbench.launch.failure import log_tail
from kdbench.launch.server import context
from kdbench.launch.worker import INTERRUPTED, NO_SPACE, child

Report = Callable[[Mapping[str, Any]], None]


@dataclass
class _Worker:
    job: Job
    process: Any
    connection: Connection
    slot: int
    began: float = field(default_factory=time.monotonic)
    killed: bool = False
    asked: int = 0
    no_space: str | None = None


class LocalLauncher:
    """Runs jobs in processes from a preloaded fork server.

    Options: ``workers`` (number of slots), ``gpus`` (number of GPUs; slots go round them; 0 on the CPU).
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._slots = int(options.get("workers", 1))
        self._gpus = int(options.get("gpus", 0))
        self._poll_s = 0.1

    def run(self, jobs: Sequence[Job], report: Report, stop: Callable[[], int]) -> None:
        """Run all jobs. Raises KdbenchError when the disk is full: nothing more could be kept."""
        ctx = context()
        waiting = sorted(jobs, key=lambda j: (len(j.after) > 0, -j.cost))
        open_ids = {j.cell_id for j in jobs}
        # a teacher that is neither done nor among the jobs failed in an earlier run
        bad: set[str] = {c for j in jobs for c in j.after} - open_ids
        running: list[_Worker] = []
        free = list(range(self._slots))
        fatal: str | None = None
        try:
            while waiting or running:
                asked = stop()
                if asked or fatal:
                    waiting.clear()
                while free and (job := self._next(waiting, open_ids, bad, report)) is not None:
                    running.append(self._start(ctx, job, free.pop(0)))
                self._serve(running, report, asked)
                for worker in [w for w in running if not w.process.is_alive()]:
                    self._drain(worker, report)
                    running.remove(worker)
                    free.append(worker.slot)
                    open_ids.discard(worker.job.cell_id)
                    if not self._close(worker, report):
                        bad.add(worker.job.cell_id)
                    fatal = fatal or worker.no_space
        finally:
            for worker in running:
                _kill(worker)
        if fatal:
            raise KdbenchError(
                f"{fatal}; finished cells are safe: free some space and run the same command again"
            )

    def _next(self, waiting: list[Job], open_ids: set[str], bad: set[str], report: Report) -> Job | None:
        for job in list(waiting):
            broken = [c for c in job.after if c in bad]
            if broken:
                waiting.remove(job)
                open_ids.discard(job.cell_id)
                bad.add(job.cell_id)
                message = f"its teacher cell {broken[0][:12]} did not finish"
                report({"event": "died", "cell_id": job.cell_id, "status": "failed", "message": message})
            elif not any(c in open_ids for c in job.after):
                waiting.remove(job)
                return job
        return None

    def _start(self, ctx: Any, job: Job, slot: int) -> _Worker:
        ours, theirs = ctx.Pipe()
        environment = {"CUDA_VISIBLE_DEVICES": _gpu(slot, self._gpus)} if self._gpus > 1 else {}
        process = ctx.Process(target=child, args=(str(job.folder), theirs, environment), name=job.label)
        process.start()
        theirs.close()
        return _Worker(job, process, ours, slot)

    def _serve(self, running: list[_Worker], report: Report, asked: int) -> None:
        for worker in running:
            if asked and worker.asked == 0:
                with contextlib.suppress(OSError):
                    worker.connection.send("stop")
                worker.asked = 1
            limit = worker.job.timeout_s
            late = limit is not None and time.monotonic() - worker.began > limit
            if (late or asked > 1) and not worker.killed:
                worker.killed = late
                _kill(worker)
        sources: list[Any] = [w.connection for w in running] + [w.process.sentinel for w in running]
        if not sources:
            return
        ready = wait(sources, timeout=self._poll_s)
        for worker in running:
            if worker.connection in ready:
                self._drain(worker, report)

    def _drain(self, worker: _Worker, report: Report) -> None:
        try:
            while worker.connection.poll():
                event = worker.connection.recv()
                if event.get("event") == "no_space":
                    worker.no_space = event["message"]
                else:
                    report(event)
        except (EOFError, OSError):
            # the worker closed its end; the sentinel tells the rest
            time.sleep(0.01)

    def _close(self, worker: _Worker, report: Report) -> bool:
        """Say how a worker ended; true when its cell is done."""
        worker.process.join()
        code = worker.process.exitcode
        worker.connection.close()
        job = worker.job
        told = {"cell_id": job.cell_id}
        if code == 0:
            report({"event": "finished", **told})
            return True
        if code in (INTERRUPTED, NO_SPACE) or (worker.asked and not worker.killed and code != 1):
            report({"event": "interrupted", **told})
        elif worker.killed:
            message = f"stopped after the limit of {job.timeout_s:g} s"
            report({"event": "died", "status": "timeout", "message": message, **told})
        elif (job.folder / "result.json").exists():
            report({"event": "finished", **told})
        else:
            # SIGKILL comes from outside, by a person or for want of memory: the next run goes on from there
            status = "interrupted" if code == -signal.SIGKILL else "crashed"
            report({"event": "died", "status": status, "message": _how(code, job), **told})
        return False


def _gpu(slot: int, gpus: int) -> str:
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    return visible[slot % gpus] if len(visible) >= gpus else str(slot % gpus)


def _kill(worker: _Worker) -> None:
    """Kill a worker and everything it started."""
    try:
        os.killpg(worker.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        worker.process.kill()


def _how(code: int | None, job: Job) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory; the same command resumes it" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{hint}"
    tail = log_tail(job.folder)
    return f"the worker ended with code {code} and left no record" + (
        f"; its log ends:\n{tail}" if tail else ""
    )
