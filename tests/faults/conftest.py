"""One undisturbed run that all tests of faults compare with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fault_site
import ledger
from commands import done_files, outcome
from fault_cases import EVERY, Case, Cases


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what takes minutes, unless KDBENCH_FAULTS=all asks for it."""
    if not EVERY:
        out = [i for i in items if i.get_closest_marker("faults")]
        items[:] = [i for i in items if i not in out]
        config.hook.pytest_deselected(items=out)


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
        # who is killed while it takes a lease leaves a file that later takers remove when it is old
        left = [p.name for p in run.rglob("*.tmp") if not p.name.startswith(".lease.")]
        assert not left

    return checked
