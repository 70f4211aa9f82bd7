"""A process of a cell that dies or fails: all end within seconds, one record says why, the next run goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from together_world import TOLERANCE, Cells, content, distance, record, together

from kdbench.hooks import Job
from kdbench.launch.local import LocalLauncher
from kdbench.launch.worker import FAILED, INTERRUPTED

#: Seconds to the end of all, on a machine that is busy with other tests. Torch would wait for minutes.
SOON_S = 20


def test_a_process_that_is_killed_ends_the_cell_and_the_next_run_goes_on(
    cells: Cells, tmp_path: Path
) -> None:
    whole = cells(tmp_path / "whole", "kd", epochs=2)
    cells.train(whole)
    folder = cells(tmp_path / "cut", "kd", epochs=2)
    began = time.monotonic()
    assert together(2, [folder], tmp_path, act="kill", at=7) == [FAILED, -signal.SIGKILL]
    assert time.monotonic() - began < SOON_S
    left = record(folder)
    assert left["status"] == "crashed"
    assert left["error"]["message"].startswith("process 1 of the 2 of this cell ended without a word")
    assert together(2, [folder], tmp_path) == [0, 0]
    assert record(folder)["status"] == "done"
    assert distance(whole, folder) < TOLERANCE


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_process_is_the_cells(cells: Cells, tmp_path: Path, who: int) -> None:
    folder = cells(tmp_path, "kd")
    assert together(2, [folder], tmp_path, act="raise", who=who, at=2) == [FAILED, FAILED]
    assert not list(tmp_path.glob("meeting-*"))
    left = record(folder)
    assert (left["status"], left["error"]["message"]) == ("failed", "ValueError: only here")
    assert "_misbehave" in left["error"]["traceback"]


def test_without_the_leading_process_nobody_stays(cells: Cells, tmp_path: Path) -> None:
    folder = cells(tmp_path, "kd")
    assert together(2, [folder], tmp_path, act="kill", who=0, at=2) == [-signal.SIGKILL, FAILED]
    assert not (folder / "result.json").exists()


def test_who_lost_the_cell_writes_nothing_and_nobody_stays(cells: Cells, tmp_path: Path) -> None:
    """As after a machine that was suspended: another has the cell by now, and even its record."""
    folder = cells(tmp_path, "kd", epochs=2)
    assert together(2, [folder], tmp_path, act="lose", who=0, at=7) == [INTERRUPTED, INTERRUPTED]
    assert content(folder) == content(folder.with_name("then"))
    assert "node7 took over; nothing is written here" in (folder / "test-0.txt").read_text()


def test_the_local_launcher_starts_the_processes_of_a_cell(cells: Cells, tmp_path: Path) -> None:
    folder = cells(tmp_path, "kd")
    events: list[dict[str, Any]] = []

    def report(event: Mapping[str, Any]) -> None:
        events.append(dict(event))

    launcher = LocalLauncher({"workers": 1, "processes": 2})
    launcher.run([Job(cell_id=folder.name, folder=folder, label="kd")], report, lambda: 0)
    assert [e["event"] for e in events] == ["started", "epoch", "finished"]
    assert record(folder)["environment"]["processes"] == 2
    assert {p.name for p in folder.glob("log*")} == {"log.txt", "log-1.txt"}
