"""kill -9, SIGTERM and Ctrl-C at random moments, of workers, the parent and both."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import storm as storms
from fault_cases import METHODS
from matrices import DIGITS
from storm import LIFE_S

pytestmark = pytest.mark.e2e


@pytest.fixture
def storm(cases: Any, kdbench: Any, check: Any, tmp_path: Path, request: Any) -> Any:
    def begin(name: str, methods: Any, *arguments: Any, **more: Any) -> Any:
        case = cases.get(name, methods=methods, **more)
        return storms.begin(kdbench, case, check, tmp_path / "runs" / name, request.node.name, *arguments)

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
def test_storm_of_terms_of_workers(storm: Any) -> None:
    """A cluster's warning to a worker: it saves its step and leaves; the parent says that it was cut."""
    made, settle = storm("methods", METHODS)
    for _ in range(4):
        made.once(made.workers(signal.SIGTERM))
    assert made.faults
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
