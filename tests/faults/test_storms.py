"""kill -9 of a worker, of the parent and of both, each at twenty random moments at least."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import storm
from fault_cases import METHODS

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

#: Runs from their beginning that are begun at most, until there were enough kills.
RUNS = 8


@pytest.mark.parametrize(
    ("whom", "gang", "kills"),
    [("worker", "off", 10), ("worker", "auto", 10), ("parent", "auto", 20), ("both", "auto", 20)],
)
def test_twenty_kills(
    cases: Any, kdbench: Any, check: Any, tmp_path: Path, whom: str, gang: str, kills: int
) -> None:
    """How many come before a matrix is done depends on the machine, so it is run anew until there are enough."""
    case = cases.get("methods", methods=METHODS)
    count = 0
    for number in range(RUNS):
        run = tmp_path / f"runs-{number}" / "methods"
        made, settle = storm.begin(kdbench, case, check, run, f"{whom} {gang} {number}", "--gang", gang)
        strike = {
            "worker": made.workers(signal.SIGKILL),
            "parent": made.parent(signal.SIGKILL),
            "both": made.parent(signal.SIGKILL, workers=True),
        }[whom]
        while count + len(made.faults) < kills and made.once(strike) != 0:
            pass
        count += len(made.faults)
        if made.faults:
            settle()
        if count >= kills:
            return
    pytest.fail(f"{count} kills came in time, expected {kills}")


def test_ends_of_the_parent(cases: Any, kdbench: Any, check: Any, tmp_path: Path) -> None:
    case = cases.get("methods", methods=METHODS)
    made, settle = storm.begin(kdbench, case, check, tmp_path / "runs" / "methods", "ends")
    for number in range(6):
        numbers = [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)][number % 2]
        if made.once(made.parent(*numbers)) == 0:
            break
    settle()
