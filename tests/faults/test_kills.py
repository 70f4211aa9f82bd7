"""kill -9, SIGTERM and Ctrl-C at random moments, of workers, the parent and both, until the matrix is done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Started, alive, done_files, records, wait_until
from fault_cases import METHODS
from matrices import DIGITS

pytestmark = pytest.mark.e2e

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

    def parent(self, *numbers: int, workers: bool = False) -> Callable[[Started], Iterator[dict[str, Any]]]:
        """Return what sends signals to the parent, at some moment of some worker's life."""

        def strike(started: Started) -> Iterator[dict[str, Any]]:
            wait_until(lambda: started.workers() or started.process.poll() is not None, "a worker")
            after_s = self.dice.uniform(0, 2 * LIFE_S)
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


@pytest.fixture
def storm(cases: Any, kdbench: Any, check: Any, tmp_path: Path, request: Any) -> Any:
    def begin(name: str, methods: Any, *arguments: Any, **more: Any) -> Any:
        case = cases.get(name, methods=methods, **more)
        made = Storm(kdbench, case, tmp_path / "runs" / name, request.node.name, *arguments)

        def settle() -> None:
            made.end()
            check(case, tmp_path / "runs" / name, made.before, made.faults)

        return made, settle

    return begin


SLOW = pytest.mark.faults


@SLOW
@pytest.mark.parametrize("gang", ["off", "auto"])
def test_kill_of_workers(storm: Any, gang: str) -> None:
    made, settle = storm("few", ["crd", "ab"], "--gang", gang)
    # an idle machine is done with a cell within a part of its usual life
    for within_s in (0.1, LIFE_S):
        made.once(made.workers(signal.SIGKILL, within_s))
    # a student is not begun while its teacher is not done
    assert made.faults
    settle()


ENDS = ["SIGKILL", "SIGTERM", "SIGINT", "twice", "both"]


@pytest.mark.parametrize("name", [n if n == "twice" else pytest.param(n, marks=SLOW) for n in ENDS])
def test_end_of_the_parent(storm: Any, name: str) -> None:
    made, settle = storm("few", ["crd", "ab"])
    strike = {
        "SIGKILL": made.parent(signal.SIGKILL),
        "SIGTERM": made.parent(signal.SIGTERM),
        "SIGINT": made.parent(signal.SIGINT),
        "twice": made.parent(signal.SIGINT, signal.SIGINT),
        "both": made.parent(signal.SIGKILL, workers=True),
    }[name]
    code = made.once(strike)
    if made.faults:  # it may have been done before
        assert code == (-signal.SIGKILL if name in ("SIGKILL", "both") else 130)
        settle()


@pytest.mark.faults
@pytest.mark.parametrize("gang", ["off", "auto"])
def test_storm_of_kills_of_workers(storm: Any, gang: str) -> None:
    made, settle = storm("methods", METHODS, "--gang", gang)
    for _ in range(10):
        if made.once(made.workers(signal.SIGKILL)) == 0 or len(made.faults) >= 25:
            break
    assert len(made.faults) >= 4  # how many come in time depends on the machine
    settle()


@pytest.mark.faults
def test_storm_of_terms_of_workers(storm: Any) -> None:
    """A cluster's warning to a worker: it saves its step and leaves; the parent says that it was cut."""
    made, settle = storm("methods", METHODS)
    for _ in range(4):
        made.once(made.workers(signal.SIGTERM))
    assert made.faults
    settle()


@pytest.mark.faults
def test_storm_of_ends_of_the_parent(storm: Any) -> None:
    made, settle = storm("methods", METHODS)
    for number in range(20):
        strikes = [
            made.parent(signal.SIGKILL),
            made.parent(signal.SIGTERM),
            made.parent(signal.SIGKILL, workers=True),
            made.parent(signal.SIGINT, signal.SIGINT),
        ]
        if made.once(strikes[number % 4]) == 0:
            break
    settle()


@pytest.mark.faults
def test_storm_over_streamed_images(storm: Any) -> None:
    """The streaming data path: it finds its place in an epoch again."""
    data = {**DIGITS, "storage": "stream"}
    made, settle = storm("streamed", ["kd", "crd", "ffl"], datasets=[data])
    for _ in range(3):
        made.once(made.workers(signal.SIGKILL))
    for _ in range(3):
        made.once(made.parent(signal.SIGTERM))
    assert made.faults
    settle()
