"""A cell that does not finish: its status and one line of why, in the record, the log and on the board."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from matrices import write_matrix

from kdbench.engine.cell import CellTrainer
from kdbench.engine.divergence import Diverged
from kdbench.errors import DataError, KdbenchError
from kdbench.launch.plan import Planner
from kdbench.launch.worker import FAILED, run_folder
from kdbench.leaderboard.board import make_board
from kdbench.matrix import load_matrix
from kdbench.protocol.types import NotApplicable
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, atomic_write_bytes, parse_record

Outcome = tuple[Record, str]
TOLD = (
    "diverged at step 37 (epoch 2 of phase 'main'): term 'kd' was nan first; then 'loss', 'task' at step 38"
)


@pytest.fixture
def ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Exception], Outcome]:
    """Run a cell that raises, as a worker does; return its record and what went to its log."""

    def run(error: Exception) -> Outcome:
        def raises(self: CellTrainer) -> Record:
            raise error

        monkeypatch.setattr(CellTrainer, "run", raises)
        loaded = load_matrix(write_matrix(tmp_path / "m.yaml", methods=["vanilla"]))
        (cell,) = Planner(Registry.load(), loaded, RunFolder(tmp_path / "runs"), []).plan().cells
        cell.folder.mkdir(parents=True)
        atomic_write_bytes(cell.folder / "cell.json", cell.file.model_dump_json().encode())
        capfd.readouterr()
        assert run_folder(cell.folder, lambda event: None, threading.Event()) == FAILED
        log = capfd.readouterr().err
        return parse_record((cell.folder / "result.json").read_bytes(), cell.folder), log

    return run


def test_divergence_names_step_and_term_everywhere(ends_with: Callable[[Exception], Outcome]) -> None:
    record, log = ends_with(Diverged(TOLD))
    assert record.status == "diverged"
    assert record.error is not None
    assert record.error.message == TOLD
    assert record.error.traceback is None
    assert f"diverged: {TOLD}" in log.splitlines()
    assert "Traceback" not in log
    (unfinished,) = make_board([record], title="t").unfinished
    assert (unfinished.status, unfinished.message) == ("diverged", TOLD)


def test_a_cell_that_cannot_be_says_why_in_its_log(ends_with: Callable[[Exception], Outcome]) -> None:
    record, log = ends_with(NotApplicable("teacher0 cannot take 32x32 images"))
    assert record.status == "not_applicable"
    assert "not_applicable: teacher0 cannot take 32x32 images" in log.splitlines()


def test_what_a_nan_made_fail_is_diverged_and_the_cause_stays_in_view(
    ends_with: Callable[[Exception], Outcome],
) -> None:
    error = Diverged(TOLD)
    error.__cause__ = RuntimeError("linalg.eigh: the input has a nan")
    record, log = ends_with(error)
    assert record.status == "diverged"
    assert "linalg.eigh: the input has a nan" in log
    assert record.error is not None
    assert record.error.message == TOLD
    assert "linalg.eigh" in (record.error.traceback or "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("act9"), "KeyError: 'act9'"),
        (RuntimeError(), "RuntimeError"),
        (KdbenchError("no file"), "no file"),
        (DataError("bad image"), "bad image"),
    ],
)
def test_the_class_of_an_exception_is_told(
    ends_with: Callable[[Exception], Outcome], error: Exception, message: str
) -> None:
    record, _ = ends_with(error)
    assert record.error is not None
    assert (record.error.type, record.error.message) == (type(error).__name__, message)


@pytest.mark.parametrize(("number", "status"), [(errno.ESTALE, "crashed"), (errno.ENOENT, "failed")])
def test_a_file_server_that_gives_errors_is_no_failure_of_the_method(
    ends_with: Callable[[Exception], Outcome], number: int, status: str
) -> None:
    record, _ = ends_with(OSError(number, os.strerror(number), "checkpoint.safetensors"))
    assert record.status == status  # of `crashed`, `--rerun failed` keeps the checkpoint
