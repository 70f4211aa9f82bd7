"""The launcher ``ray``: hands cells to a Ray cluster and sees them through."""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.api import Job, KdbenchError, Place
from kdbench_launchers.followed import Followed, Report
from kdbench_launchers.node import NO_SPACE, Cell, is_done, read_events
from kdbench_launchers.ray.cluster import Cluster, Ended, connected, need_ray
from kdbench_launchers.ray.options import Options, read_options
from kdbench_launchers.ray.turns import Turns

#: Most cells that Ray has at a time, those that wait there for resources included.
_MOST = 1000
#: Longest wait for Ray in seconds, after which the wish to leave is looked at.
_LOOK_S = 0.2
#: Seconds in which a shared folder shows a record that a node says is there.
_SHOWN_S = 60.0
#: Seconds in which killed tasks are to end.
_DYING_S = 15.0


class RayLauncher:
    """Runs each job as a task of a Ray cluster, teachers first.

    Options: ``settings`` (the matrix's ``launcher_options.ray``, see
    :class:`kdbench_launchers.ray.options.Options`), ``methods`` (those of the matrix), ``run`` (the run folder),
    ``workers`` (most cells at a time) and ``cost`` (gives a job's expected cost).

    A cell whose node or Ray worker dies is handed out again and goes on from its checkpoint; one that fails by
    itself is not. Ray ends the tasks of a parent that dies.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = _read(options)
        self._run = Path(options["run"])
        self._most = min(_MOST, max(1, int(options.get("workers", 1))))
        self._cost: Callable[[Job], float] = options.get("cost") or (lambda job: job.cost)

    @classmethod
    def check(cls, settings: Mapping[str, Any], methods: Collection[str]) -> None:
        """Look at a block of the matrix, also where Ray is not installed. Raises OptionError."""
        read_options(settings, methods)

    @classmethod
    def place(cls, options: Mapping[str, Any], device: str) -> Place:
        """Return where cells run. Raises KdbenchError for options that cannot be understood, or without Ray."""
        settings = _read(options)
        if device == "auto":
            device = "cuda" if settings.num_gpus else "cpu"
        return Place(device=device, cores=settings.cores)

    def run(self, jobs: Sequence[Job], report: Report, stop: Callable[[], int]) -> None:
        """Run all jobs. Raises KdbenchError without a cluster, where a node cannot run cells, for a full disk."""
        # of earlier parents, whose tasks Ray ended with them
        shutil.rmtree(self._run / "ray", ignore_errors=True)
        events = self._run / "ray" / secrets.token_hex(4)
        events.mkdir(parents=True)
        try:
            with connected(self._options) as cluster:
                self._greet(cluster, {job.method for job in jobs}, report)
                _Round(cluster, self._options, events, report).run(Turns(jobs, self._cost), self._most, stop)
        finally:
            shutil.rmtree(events.parent, ignore_errors=True)

    def _greet(self, cluster: Cluster, methods: set[str], report: Report) -> None:
        """Say what there is, and what no node has."""
        nodes = cluster.nodes()
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        message = f"Ray: {len(nodes)} node(s) with {cpus:g} CPU(s) and {gpus:g} GPU(s)"
        report({"event": "note", "message": message})
        told = set()
        for method in sorted(methods):
            asked = self._options.of(method).asked()
            if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
                continue
            text = ", ".join(f"{name}: {amount:g}" for name, amount in asked.items())
            if cluster.local:
                raise KdbenchError(f"cells of {method} ask for {{{text}}}, which this machine does not have")
            if text not in told:
                told.add(text)
                message = f"warning: no node has {{{text}}}, as cells of {method} ask: they wait for one"
                report({"event": "note", "message": message})


class _Try:
    """A cell that Ray has."""

    def __init__(self, job: Job, events: Path) -> None:
        self.job, self.events = job, events / f"{job.cell_id}.jsonl"
        self.seen = Followed(job)
        # a record from before, of a cell that runs again for its weights, says nothing of this run
        self.known = is_done(job.folder)
        self.count = 0

    def follow(self, report: Report) -> None:
        """Report what is new."""
        with contextlib.suppress(OSError):  # a file server that does not answer; the next look tells
            self.seen.news(read_events(self.events), report)


class _Round:
    """One run of the launcher."""

    def __init__(self, cluster: Cluster, options: Options, events: Path, report: Report) -> None:
        self._cluster, self._options, self._events, self._report = cluster, options, events, report
        self._tries: dict[str, _Try] = {}
        self._running: dict[Any, _Try] = {}
        #: cells that ended and whose record is on its way, with the time until which it may be
        self._landing: list[tuple[_Try, Ended, float]] = []
        self._asked, self._patient_until = 0, math.inf
        self._fatal: str | None = None

    def run(self, turns: Turns, most: int, stop: Callable[[], int]) -> None:
        """Hand out every cell and see it to its end."""
        look_at = 0.0
        while True:
            asked = stop()
            if asked or self._fatal:
                turns.clear()
                self._leave(2 if asked > 1 else 1)
            for job, status, message in turns.orphans():
                self._tell(job, "died", status=status, message=message)
            while len(self._running) < most and (job := turns.next()) is not None:
                self._hand_out(job)
            if not self._running and not self._landing:
                break
            pause = min(_LOOK_S, self._options.poll_s)
            if self._running:
                for task in self._cluster.ended(self._running, pause):
                    self._over(self._running.pop(task), self._cluster.how(task), turns)
            else:
                time.sleep(pause)
            self._land(turns)
            if time.monotonic() >= look_at:
                for one in self._running.values():
                    one.follow(self._report)
                look_at = time.monotonic() + self._options.poll_s
        if self._fatal:
            raise KdbenchError(self._fatal)

    def _hand_out(self, job: Job) -> None:
        one = self._tries.setdefault(job.cell_id, _Try(job, self._events))
        one.count += 1
        folder = job.folder.absolute()
        task = self._cluster.submit(
            job.label,
            Cell(job.cell_id, folder, timeout_s=job.timeout_s),
            one.events.absolute(),
            Path.cwd(),
            self._options.of(job.method),
        )
        self._running[task] = one

    def _leave(self, how: int) -> None:
        """Ask what runs to save, or kill it."""
        if how > self._asked:
            self._asked = how
            self._patient_until = time.monotonic() + _DYING_S if how > 1 else math.inf
            for task in self._running:
                self._cluster.cancel(task, force=how > 1)
        if time.monotonic() > self._patient_until:  # of nodes that do not answer
            self._running.clear()
            self._landing.clear()
        busy = {*self._running.values(), *(one for one, *_ in self._landing)}
        for one in [o for o in self._tries.values() if o not in busy]:  # or that were to go on elsewhere
            del self._tries[one.job.cell_id]
            if one.seen.starts:
                self._tell(one.job, "interrupted")

    def _over(self, one: _Try, ended: Ended, turns: Turns) -> None:
        """Say how a cell's task ended, or hand the cell out again."""
        one.follow(self._report)
        if ended.event is not None:
            self._returned(one, ended, turns, time.monotonic() + _SHOWN_S)
        elif ended.error is not None:
            self._fatal = self._fatal or ended.error
            self._close(one, turns, "interrupted" if one.seen.starts else None)
        elif one.seen.recorded and not one.known:
            self._close(one, turns, "finished")
        elif ended.cancelled or self._asked:
            self._close(one, turns, "interrupted" if one.seen.starts else None)
        elif one.count > self._options.max_retries:
            message = f"{ended.lost}, as in {one.count - 1} tries before; the same command resumes it"
            self._close(one, turns, "died", status="interrupted", message=message)
        else:
            left = self._options.max_retries - one.count
            message = f"{one.job.label}: {ended.lost}; it goes on elsewhere ({left} more time(s) if need be)"
            self._report({"event": "note", "message": message})
            turns.again(one.job)

    def _returned(self, one: _Try, ended: Ended, turns: Turns, until: float) -> bool:
        """Say how a cell's process ended. Returns False for one whose record does not show yet."""
        event = ended.event or {}
        if event["event"] == "cut":
            if event["code"] == NO_SPACE and not self._fatal:
                self._fatal = (
                    f"{one.job.folder}: {event['host']} finds no space left there; finished cells are safe: free "
                    f"some space and run the same command again"
                )
            self._close(one, turns, "interrupted")
            return True
        if not one.known and is_done(one.job.folder):  # it holds, whatever became of the process after it
            self._close(one, turns, "finished")
            return True
        late = event.get("recorded", False) and time.monotonic() < until
        if not one.seen.ended(event, self._report, wait=late):
            self._landing.append((one, ended, until))
            return False
        killed = event["code"] == -signal.SIGKILL and not event["late"]
        self._settle(one, turns, done=event["code"] == 0, cut=killed)
        return True

    def _land(self, turns: Turns) -> None:
        waiting, self._landing = self._landing, []
        for one, ended, until in waiting:
            self._returned(one, ended, turns, until)

    def _close(self, one: _Try, turns: Turns, event: str | None, **more: Any) -> None:
        if event is not None:
            self._tell(one.job, event, **more)
        self._settle(one, turns, done=event == "finished", cut=event != "finished")

    def _settle(self, one: _Try, turns: Turns, *, done: bool, cut: bool) -> None:
        """Let those who wait for a cell begin, or know that it did not finish."""
        turns.ended(one.job.cell_id, done and is_done(one.job.folder), cut)
        del self._tries[one.job.cell_id]

    def _tell(self, job: Job, event: str, **more: Any) -> None:
        self._report({"event": event, "cell_id": job.cell_id, **more})


def _read(options: Mapping[str, Any]) -> Options:
    need_ray()
    return read_options(options.get("settings", {}), set(options.get("methods", ())))
