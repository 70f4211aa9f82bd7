"""One undisturbed run that all tests of faults compare with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fault_site
import ledger
from commands import Command, done_files, outcome, records
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


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what takes minutes, unless KDBENCH_FAULTS=all asks for it."""
    if not EVERY:
        out = [i for i in items if i.get_closest_marker("faults")]
        items[:] = [i for i in items if i not in out]
        config.hook.pytest_deselected(items=out)


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


@pytest.fixture(scope="session")
def cases(tmp_path_factory: Any, _cache: None) -> Cases:
    """Undisturbed runs of the session."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return Cases(folder, fault_site.make(folder / "site"))


@pytest.fixture
def check(request: Any) -> Any:
    """Check a run that was disturbed and completed, and put its faults into the ledger."""

    def checked(
        case: Case,
        run: Path,
        before: dict[str, bytes],
        faults: list[dict[str, Any]],
        ignore: Any = (),
    ) -> None:
        assert faults
        got = {cell: value for cell, value in outcome(run).items() if cell not in ignore}
        found = ledger.losses(got, case.expected)
        again = ledger.kept(before, done_files(run))
        found.lost += again.lost
        found.differing += again.differing
        ledger.note(faults, run=request.node.name, **ledger.noted(found))
        assert not found, found
        left = [p.name for p in run.rglob("*.tmp")]
        assert not left

    return checked
