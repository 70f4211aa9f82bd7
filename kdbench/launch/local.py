"""The local launcher: worker processes on this machine, one cell or one gang of cells each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.errors import KdbenchError, OptionError
from kdbench.hooks import Job
from kdbench.launch.failure import log_tail
from kdbench.launch.gang_worker import gang_child
from kdbench.launch.gangs import gang_of
from kdbench.launch.holding import DONE, INTERRUPTED
from kdbench.launch.life import kill_all, kill_group
from kdbench.launch.packing import Packing
from kdbench.launch.peers import PROCESSES
from kdbench.launch.schedule import Cost, Order
from kdbench.launch.server import context
from kdbench.launch.worker import FAILED, NO_SPACE, child
from kdbench.results.store import put_record_aside, read_record_dict

Report = Callable[[Mapping[str, Any]], None]


@dataclass
class _Worker:
    job: Job
    process: Any
    connection: Connection
    slot: int
    began: float = field(default_factory=time.monotonic)
    #: since when it waits for others that train or measure, which its limit does not count
    waits_since: float | None = None
    killed: bool = False
    #: whether its cell was interrupted
    cut: bool = False
    asked: int = 0
    #: closed by the parent's death, at which the worker's whole group is killed
    life: Any = None
    #: cells that had a finished record before it began
    known: set[str] = field(default_factory=set)
    no_space: str | None = None
    #: cells of a gang that are not over, and those of them that left for want of memory
    left: dict[str, Job] = field(default_factory=dict)
    starved: set[str] = field(default_factory=set)
    #: cells of a gang that there was no room for
    crowded: list[Job] = field(default_factory=list)
    #: cells that began
    begun: set[str] = field(default_factory=set)
    #: cells of a gang that ended otherwise than done
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left = {j.cell_id: j for j in self.job.gang}

    def wait(self, at: float, *, begins: bool) -> None:
        """Take note of the time at which it began to wait, or went on."""
        if self.waits_since is not None:
            self.began += at - self.waits_since
        self.waits_since = at if begins else None

    def late(self) -> bool:
        """Return whether it worked for longer than its limit."""
        now = time.monotonic() if self.waits_since is None else self.waits_since
        return self.job.timeout_s is not None and now - self.began > self.job.timeout_s


class LocalLauncher:
    """Runs jobs in processes from a preloaded fork server.

    Options: ``workers`` (number of slots), ``gpus`` (number of GPUs; slots go round them; 0 on the CPU),
    ``slots_per_gpu`` (a number or ``auto``: workers are then a bound), ``processes`` (of each cell; on GPUs each
    has one), ``cost`` (gives a job's expected cost as known at the time; left out: what the job says).
    """

    #: jobs of several cells are understood, and cells of several processes
    gangs = processes = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._slots = int(options.get("workers", 1))
        self._gpus = int(options.get("gpus", 0))
        self._processes = int(options.get("processes", 1))
        self._cost: Cost = options.get("cost") or (lambda job: job.cost)
        self._packing = Packing("auto") if self._gpus and options.get("slots_per_gpu") == "auto" else None
        self._poll_s = 0.1
        #: cells that were cut: the next run takes them up
        self._cut: set[str] = set()

    @classmethod
    def check(cls, settings: Mapping[str, Any], methods: object) -> None:
        """Look at its block of the matrix, which is to be empty. Raises OptionError."""
        for key in settings:
            path = ("launcher_options", "local", key)
            raise OptionError(f"{'.'.join(path)}: the launcher 'local' takes no options", *path)

    def run(self, jobs: Sequence[Job], report: Report, stop: Callable[[], int]) -> None:
        """Run all jobs. Raises KdbenchError when the disk is full: nothing more could be kept."""
        ctx = context()
        waiting, order = list(jobs), Order(self._cost)
        open_ids = {m.cell_id for j in jobs for m in j.gang or (j,)}
        # a teacher that is neither done nor among the jobs failed in an earlier run
        bad: set[str] = {c for j in jobs for c in j.after} - open_ids
        running: list[_Worker] = []
        fatal: str | None = None
        try:
            while waiting or running:
                asked = stop()
                if asked or fatal:
                    waiting.clear()
                if waiting and self._slot(running) is not None:
                    order.renew(waiting)
                while (slot := self._slot(running)) is not None:
                    if (job := self._next(waiting, open_ids, bad, report)) is None:
                        break
                    running.append(self._start(ctx, job, slot))
                self._serve(running, report, asked)
                for worker in [w for w in running if not w.process.is_alive()]:
                    self._drain(worker, report)
                    running.remove(worker)
                    again: list[Job] = []
                    if self._packing is not None:
                        self._packing.ended(worker.job.cell_id)
                    if self._starved(worker, running):
                        again = _set_aside(worker, report)
                    elif worker.job.gang:
                        again = self._close_gang(worker, report)
                        bad |= worker.failed
                    elif not self._close(worker, report):
                        bad.add(worker.job.cell_id)
                        self._cut |= {worker.job.cell_id} if worker.cut else set()
                    waiting[:0] = again
                    gone = {m.cell_id for m in worker.job.gang or (worker.job,)}
                    open_ids -= gone - {m.cell_id for j in again for m in j.gang or (j,)}
                    fatal = fatal or worker.no_space
        finally:
            for worker in running:
                _kill(worker)
        if fatal:
            raise KdbenchError(
                f"{fatal}; finished cells are safe: free some space and run the same command again"
            )

    def _slot(self, running: Sequence[_Worker]) -> int | None:
        """Return the first slot that is free."""
        room = self._slots
        if self._packing is not None:
            room = min(room, self._packing.slots * self._gpus)
        taken = {worker.slot for worker in running}
        return next((slot for slot in range(room) if slot not in taken), None)

    def _starved(self, worker: _Worker, running: Sequence[_Worker]) -> bool:
        """Return whether a cell ran out of memory because of others that ``auto`` put on its GPU."""
        if self._packing is None or worker.job.gang or worker.process.exitcode != FAILED or worker.asked:
            return False
        if not any(other.slot % self._gpus == worker.slot % self._gpus for other in running):
            return False
        try:
            status = read_record_dict(worker.job.folder / "result.json")["status"]
        except (OSError, KdbenchError):  # told of where it is read to be shown
            return False
        if status != "oom":
            return False
        self._packing.starved()
        return True

    def _next(self, waiting: list[Job], open_ids: set[str], bad: set[str], report: Report) -> Job | None:
        for job in list(waiting):
            if any(c in bad for c in job.after):
                waiting.remove(job)
                cells = job.gang or (job,)
                # who came into a gang for its batches may have no teacher, or another one
                if unharmed := [cell for cell in cells if not any(c in bad for c in cell.after)]:
                    waiting.append(gang_of(unharmed))
                for cell in (cell for cell in cells if cell not in unharmed):
                    open_ids.discard(cell.cell_id)
                    bad.add(cell.cell_id)
                    report({"event": "died", "cell_id": cell.cell_id, **self._orphaned(cell, bad)})
            elif not any(c in open_ids for c in job.after):
                waiting.remove(job)
                return job
        return None

    def _orphaned(self, job: Job, bad: set[str]) -> dict[str, str]:
        """Return status and message of a cell whose teacher did not finish."""
        teacher = next(c for c in job.after if c in bad)
        if teacher in self._cut:  # the next run goes on with both
            self._cut.add(job.cell_id)
            return {"status": "interrupted", "message": f"its teacher cell {teacher[:12]} was interrupted"}
        return {"status": "failed", "message": f"its teacher cell {teacher[:12]} did not finish"}

    def _start(self, ctx: Any, job: Job, slot: int) -> _Worker:
        ours, theirs = ctx.Pipe()
        end, life = ctx.Pipe(duplex=False)
        environment = self._environment(slot)
        target, what = (
            (child, str(job.folder)) if not job.gang else (gang_child, [str(j.folder) for j in job.gang])
        )
        if self._packing is not None:
            self._packing.started(job.cell_id, slot % self._gpus)
        known = {j.cell_id for j in job.gang or (job,) if _is_done(j)}
        process = ctx.Process(target=target, args=(what, theirs, environment, end), name=job.label)
        process.start()
        theirs.close()
        end.close()
        return _Worker(job, process, ours, slot, life=life, known=known)

    def _environment(self, slot: int) -> dict[str, str]:
        several = {} if self._processes == 1 else {PROCESSES: str(self._processes)}
        if self._gpus <= 1:
            return several
        first = slot * self._processes
        chosen = [_gpu(first + k, self._gpus) for k in range(self._processes)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(chosen), **several}

    def _serve(self, running: list[_Worker], report: Report, asked: int) -> None:
        for worker in running:
            if asked and worker.asked == 0:
                with contextlib.suppress(OSError):
                    worker.connection.send("stop")
                worker.asked = 1
            if worker.late():  # unless it said since that it waits
                self._drain(worker, report)
            late = worker.late()
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
                elif event.get("event") in ("waiting", "going_on"):
                    worker.wait(event["at"], begins=event["event"] == "waiting")
                elif event.get("event") in ("ended", "released"):
                    _one_of_gang(worker, event, report)
                else:
                    # one cell of a gang speaks for all, since they are in step
                    if self._packing is not None and event["cell_id"] == worker.job.cell_id:
                        self._packing.see(event, time.monotonic(), max(1, len(worker.left)))
                    worker.begun |= {event["cell_id"]} if event.get("event") == "started" else set()
                    report(event)
        except (EOFError, OSError):
            # the worker closed its end; the sentinel tells the rest
            time.sleep(0.01)

    def _close(self, worker: _Worker, report: Report) -> bool:
        """Say how a worker ended; true when its cell is done."""
        _bury(worker)
        code = worker.process.exitcode
        job = worker.job
        told = {"cell_id": job.cell_id}
        if code == 0 and (job.folder / "result.json").exists():  # a method may have ended the process
            report({"event": "finished", **told})
            return True
        # a record that was written just before the end holds, whatever became of the worker after it
        if not worker.known and _is_done(job):
            report({"event": "finished", **told})
            return True
        if code in (INTERRUPTED, NO_SPACE) or (worker.asked and not worker.killed and code != 1):
            worker.cut = True
            report({"event": "interrupted", **told, **_unsaved(code)})
        elif worker.killed:
            message = f"stopped after the limit of {job.timeout_s:g} s"
            report({"event": "died", "status": "timeout", "message": message, **told})
        elif (job.folder / "result.json").exists():
            report({"event": "finished", **told})
        else:
            # SIGKILL comes from outside, by a person or for want of memory: the next run goes on from there
            worker.cut = code == -signal.SIGKILL
            status = "interrupted" if worker.cut else "crashed"
            report({"event": "died", "status": status, "message": _how(code, job), **told})
        return False

    def _close_gang(self, worker: _Worker, report: Report) -> list[Job]:
        """Say how the cells of a gang ended; returns jobs for those that have to go on in other processes."""
        _bury(worker)
        stopped = bool(worker.asked or worker.no_space)
        # a record that was written just before the end holds, though nobody told of it
        for job in [j for j in worker.left.values() if (j.folder / "result.json").exists()]:
            if job.cell_id not in worker.known:
                code = DONE if _is_done(job) else FAILED
                _one_of_gang(worker, {"event": "ended", "cell_id": job.cell_id, "code": code}, report)
        alone, crowded = list(worker.left.values()), worker.crowded
        if stopped:
            worker.failed |= {job.cell_id for job in (*alone, *crowded)}
            for job in alone:
                if job.cell_id in worker.begun:
                    report({"event": "interrupted", "cell_id": job.cell_id})
            return []
        if worker.killed:
            why = f"its gang was stopped after the limit of {worker.job.timeout_s:g} s"
        else:
            why = f"the worker of its gang ended ({_code(worker.process.exitcode)})"
        for job in alone:
            reason = "out of memory in its gang" if job.cell_id in worker.starved else why
            report({"event": "released", "cell_id": job.cell_id, "message": f"{reason}; it goes on alone"})
        return [*alone, *([gang_of(crowded)] if crowded else [])]


def _set_aside(worker: _Worker, report: Report) -> list[Job]:
    """Put the record of a starved cell aside, so that the cell runs again; returns its job."""
    _bury(worker)
    job = worker.job
    put_record_aside(job.folder)
    message = "out of memory beside another cell on its GPU; it goes on with fewer beside it"
    report({"event": "released", "cell_id": job.cell_id, "message": message})
    return [job]


def _one_of_gang(worker: _Worker, event: Mapping[str, Any], report: Report) -> None:
    """Take note of a cell that left its gang."""
    if event["event"] == "released" and event["why"] == "oom":
        worker.starved.add(event["cell_id"])
        return
    job = worker.left.pop(event["cell_id"])
    if event["event"] == "released":
        worker.crowded.append(job)
        return
    worker.failed |= {job.cell_id} if event["code"] != DONE else set()
    kind = "interrupted" if event["code"] in (INTERRUPTED, NO_SPACE) else "finished"
    report({"event": kind, "cell_id": job.cell_id, **_unsaved(event["code"])})


def _unsaved(code: int | None) -> dict[str, str]:
    return {"message": "its state could not be saved"} if code == NO_SPACE else {}


def _code(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"code {code}"


def _gpu(slot: int, gpus: int) -> str:
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    return visible[slot % gpus] if len(visible) >= gpus else str(slot % gpus)


def _kill(worker: _Worker) -> None:
    """Kill a worker and everything it started."""
    kill_all(worker.process.pid)


def _bury(worker: _Worker) -> None:
    """Let go of a worker that ended, and end what it left behind."""
    worker.process.join()
    kill_group(worker.process.pid)
    worker.connection.close()
    worker.life.close()


def _is_done(job: Job) -> bool:
    try:
        return bool(read_record_dict(job.folder / "result.json")["status"] == "done")
    except (OSError, KdbenchError):
        return False


def _how(code: int | None, job: Job) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory; the same command resumes it" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{hint}"
    tail = log_tail(job.folder)
    return f"the worker ended with code {code} and left no record" + (
        f"; its log ends:\n{tail}" if tail else ""
    )
