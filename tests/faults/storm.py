"""Hits the processes of a matrix at moments that dice choose."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from commands import Started, alive, done_files, records, wait_until

#: Seconds from the start of a worker within which it is hit; a cell takes about as long.
LIFE_S = 1.0
Faults = list[dict[str, Any]]


def hit(pid: int, number: int) -> bool:
    """Send a signal; false when nobody was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def moment(run: Path, after_s: float) -> str:
    """Say where a run is, for the ledger."""
    done = sum(r["status"] == "done" for r in records(run).values())
    saved = len(list(run.glob("cells/*/checkpoint.safetensors")))
    return f"{after_s:.2f} s after the start of the worker, {done} cells done, {saved} checkpoints"


class Storm:
    """Runs the same command again and again, and hits its processes at moments that dice choose."""

    def __init__(self, kdbench: Any, case: Any, run: Path, seed: str, *arguments: Any) -> None:
        self._kdbench, self._case, self._run, self._arguments = kdbench, case, run, arguments
        self.dice = random.Random(seed)
        self.faults: Faults = []
        self.before: dict[str, bytes] = {}
        self._none = threading.Event()

    def pause(self, seconds: float, started: Started) -> None:
        """Let time pass, but no longer than the command lives."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: started.process.poll() is not None, "", limit_s=seconds)

    def once(self, strike: Callable[[Started], Iterator[dict[str, Any]]]) -> int:
        """Start the command, let `strike` do its harm, and return the exit code."""
        self.before = done_files(self._run)
        started = self._kdbench.start(self._case.matrix, *self._arguments, env=self._case.env)
        self.faults += strike(started)
        code = started.wait()
        after = done_files(self._run)
        assert {name: after[name] for name in self.before} == self.before
        return int(code)

    def end(self) -> None:
        """Run it to its end, undisturbed."""
        self.before = done_files(self._run)
        done = self._kdbench.run(self._case.matrix, *self._arguments, env=self._case.env)
        assert done.returncode == 0, done.stdout + done.stderr

    def workers(self, number: int, within_s: float = LIFE_S) -> Callable[[Started], Iterator[dict[str, Any]]]:
        """Return what hits every worker of one run of the command, each once."""

        def strike(started: Started) -> Iterator[dict[str, Any]]:
            struck: set[int] = set()
            while started.process.poll() is None:
                new = [pid for pid in started.workers() if pid not in struck]
                if not new:
                    self._none.wait(0.03)
                    continue
                after_s = self.dice.uniform(0, within_s)
                self._none.wait(after_s)
                where = moment(self._run, after_s)
                struck.add(new[0])
                if hit(new[0], number):
                    yield {"fault": f"{signal.Signals(number).name} to a worker", "moment": where}

        return strike

    def parent(
        self, *numbers: int, workers: bool = False, within_s: float = 2 * LIFE_S
    ) -> Callable[[Started], Iterator[dict[str, Any]]]:
        """Return what sends signals to the parent, at some moment of some worker's life."""

        def strike(started: Started) -> Iterator[dict[str, Any]]:
            wait_until(lambda: started.workers() or started.process.poll() is not None, "a worker")
            after_s = self.dice.uniform(0, within_s)
            self.pause(after_s, started)
            where, found = moment(self._run, after_s), started.workers()
            both = " and its workers" if workers else ""
            name = " and ".join(signal.Signals(n).name for n in numbers)
            if all(hit(started.pid, n) for n in numbers) and started.wait():
                yield {"fault": f"{name} to the parent{both}", "moment": where}
            for pid in found if workers else ():
                hit(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(alive, found)), "the workers to leave", limit_s=30)

        return strike


def begin(
    kdbench: Any, case: Any, check: Any, run: Path, seed: str, *arguments: Any
) -> tuple[Storm, Callable[[], None]]:
    """Return a storm, and what brings the run to its end and compares it with an undisturbed one."""
    made = Storm(kdbench, case, run, seed, "--runs", run.parent, *arguments)

    def settle() -> None:
        made.end()
        check(case, run, made.before, made.faults)

    return made, settle
