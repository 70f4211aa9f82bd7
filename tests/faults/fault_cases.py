"""Matrices of faults, each with the outcome of a run that nobody disturbed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Command, outcome, records
from matrices import DIGITS, RECIPE, write_matrix

#: Set to ``all`` for every fault; otherwise a test takes a few of its moments.
EVERY = os.environ.get("KDBENCH_FAULTS") == "all"

NET = {"name": "tiny-net", "args": {"width": 8}}
#: Several phases (ab), several optimizers and students (ffl), a bank (crd), a generator and no data (dfad).
METHODS = [
    "vanilla",
    "kd",
    "crd",
    "ffl",
    {"name": "dfad", "params": {"batch_size": 8, "iterations": 1}},
    "ab",
]
EPOCHS = 3


@dataclass
class Case:
    """A matrix, the environment in which it runs, and what an undisturbed run of it gives."""

    matrix: Path
    env: dict[str, str]
    expected: dict[str, Any]

    @property
    def run(self) -> Path:
        """The undisturbed run."""
        return self.matrix.parent / "runs" / self.name

    @property
    def name(self) -> str:
        return self.matrix.stem


class Cases:
    """Matrices, each run once without a fault."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env
        self._cases: dict[str, Case] = {}

    def get(self, name: str, **overrides: Any) -> Case:
        """Return a case; the keyword arguments are keys of its matrix, the same on each call."""
        if name not in self._cases:
            content = {
                "datasets": [DIGITS],
                "pairs": [{"teacher": NET, "student": "tiny-net"}],
                "recipe": {**RECIPE, "epochs": EPOCHS},
                **overrides,
            }
            matrix = write_matrix(self._folder / f"{name}.yaml", name=name, **content)
            command = Command(self._folder)
            done = command.run(matrix, "--gang", "off", env=self._env)
            assert done.returncode == 0, done.stderr
            run = self._folder / "runs" / name
            expected = outcome(run)
            assert {r["status"] for r in records(run).values()} == {"done"}
            self._cases[name] = Case(matrix, self._env, expected)
        return self._cases[name]
