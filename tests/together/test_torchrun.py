"""The entry point for torch's own starter, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from together_world import Cells, record

from kdbench.errors import KdbenchError
from kdbench.launch.peers import seat_of_environment, take_gpu


def test_torchrun_trains_a_cell(cells: Cells, tmp_path: Path) -> None:
    folder = cells(tmp_path, "vanilla")
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [*starter, "-m", "kdbench", "cell", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "result.json")]
    assert record(folder)["environment"]["processes"] == 2


def test_a_process_alone_has_no_seat() -> None:
    assert seat_of_environment({}) is None
    assert seat_of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert seat_of_environment({"WORLD_SIZE": "4"}) is None


def test_variables_that_make_no_sense_are_told() -> None:
    with pytest.raises(KdbenchError, match="RANK is 2, and WORLD_SIZE is 2: expected 0 to 1"):
        seat_of_environment({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(KdbenchError, match="must be numbers"):
        seat_of_environment({"RANK": "x", "WORLD_SIZE": "2"})


def test_each_process_of_a_machine_sees_its_own_gpu() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    environment["CUDA_VISIBLE_DEVICES"] = "4,6,7,9"
    seat = seat_of_environment(environment)
    assert seat is not None
    assert (seat.rank, seat.size, seat.here) == (5, 8, False)
    assert environment["CUDA_VISIBLE_DEVICES"] == "6"
    take_gpu(3, environment)  # fewer than there are processes: torch says what is missing
    assert environment["CUDA_VISIBLE_DEVICES"] == "6"
