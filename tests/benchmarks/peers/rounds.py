"""Rounds: every contender trains the cell once a round, one after the other, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .material import SPEC, TEACHER, Material
from .process import RESULT, TRAINED
from .spec import Spec

#: The module that a contender's process runs.
_PROCESS = "peers.process"


class ContenderFailed(Exception):
    """A contender's process ended with an error; the text is its last line."""


@dataclass
class Measured:
    """What the rounds of one contender gave; a missing one has the reason and nothing else.

    Attributes:
        steps: per round, the seconds between neighbouring steps of its epochs but the first.
        epochs: per round, the seconds of these epochs.
        steps_per_epoch: number of steps in one of them.
        top1: test accuracy per round, in percent.
        peak_mb: largest resident memory of the training process.
        loaders_mb: what loader processes take beside that.
        others: per round, how many processors were busy with anything else.
    """

    name: str
    missing: str | None = None
    steps: list[list[float]] = field(default_factory=list)
    epochs: list[list[float]] = field(default_factory=list)
    steps_per_epoch: int = 0
    top1: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    loaders_mb: float = 0.0
    others: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        """Add a round. The first epoch is for warming up: it is in no time."""
        timed = result["epochs"][1:]
        self.steps.append([seconds for epoch in timed for seconds in epoch["between"]])
        self.epochs.append([epoch["seconds"] for epoch in timed])
        self.steps_per_epoch = timed[0]["steps"]
        self.top1.append(result["top1"])
        self.others.append(result["others"])
        self.peak_mb = max(self.peak_mb, result["peak_mb"])
        self.loaders_mb = max(self.loaders_mb, result["loaders_mb"])

    @property
    def step_s(self) -> float:
        """Median over all steps."""
        return statistics.median(seconds for steps in self.steps for seconds in steps)

    @property
    def epoch_s(self) -> float:
        """Median over all epochs; it has the start of loader processes, which no step has."""
        return statistics.median(seconds for epochs in self.epochs for seconds in epochs)

    def faster_than(self, other: Measured) -> list[float]:
        """Return for each round how many times as long `other` takes for a step."""
        pairs = zip(self.steps, other.steps, strict=True)
        return [statistics.median(theirs) / statistics.median(ours) for ours, theirs in pairs]

    def epochs_faster_than(self, other: Measured) -> float:
        """Return how many times as long `other` takes for an epoch: the median over the rounds."""
        pairs = zip(self.epochs, other.epochs, strict=True)
        return statistics.median(statistics.median(b) / statistics.median(a) for a, b in pairs)


def measure(
    spec: Spec,
    names: Sequence[str],
    folder: Path,
    *,
    seeds: Sequence[int],
    teacher_epochs: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Measured]:
    """Train the cell with every contender, once for each of `seeds`; return what was measured, by name.

    Args:
        folder: an empty folder for files.
        seeds: of student and data, one a round; equal ones where only time matters.
        teacher_epochs: for how long the teacher is trained first; None: its weights are random.

    Raises:
        ContenderFailed: naming the contender and what it said last.
    """
    out = {name: Measured(name, CONTENDERS[name].missing) for name in names}
    here = [name for name in names if out[name].missing is None]
    teacher = _teacher(spec, folder / "teacher", teacher_epochs, tell)
    for number, seed in enumerate(seeds):
        cell = spec.model_copy(update={"seed": seed})
        for name in here:
            place = folder / f"{number}-{name}"
            place.mkdir(parents=True)
            shutil.copy(teacher, place / TEACHER)
            Material(cell, place).write_student()
            out[name].add(_child(cell, place, name))
            one = out[name]
            tell(
                f"{spec.pair}, round {number + 1} of {len(seeds)}, {name}: "
                f"{1e3 * statistics.median(one.steps[-1]):.1f} ms a step"
            )
            shutil.rmtree(place)
    return out


def _teacher(spec: Spec, folder: Path, epochs: int | None, tell: Callable[[str], None]) -> Path:
    folder.mkdir(parents=True)
    if epochs is None:
        Material(spec, folder).write_teacher()
        return folder / TEACHER
    result = _child(spec.model_copy(update={"epochs": epochs, "milestones": ()}), folder, "teacher")
    tell(f"{spec.pair}: the teacher has {result['top1']:.2f} % top-1")
    return folder / TRAINED


def _child(spec: Spec, folder: Path, name: str) -> dict[str, Any]:
    (folder / SPEC).write_text(spec.model_dump_json())
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(spec.threads)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    command = [sys.executable, "-m", _PROCESS, str(folder), name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ContenderFailed(f"{name} on {spec.pair} ended with {done.returncode}: {last}")
    return json.loads((folder / RESULT).read_text())  # type: ignore[no-any-return]
