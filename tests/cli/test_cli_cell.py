"""``kdbench cell``: what it says, and what it leaves for those who started it."""

import json
import signal
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from factories import make_record

from kdbench.cli import main
from kdbench.hooks import WAITS


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run a cell, which has one teacher, by the given function instead of the engine."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    folder = tmp_path / "student"
    folder.mkdir()
    teacher = SimpleNamespace(source="cell", ref="teacher")
    monkeypatch.setattr("kdbench.engine.cell.read_cell", lambda folder: SimpleNamespace(teachers=[teacher]))

    def go(run):
        monkeypatch.setattr("kdbench.launch.worker.run_folder", run)
        return CliRunner().invoke(main, ["cell", str(folder)])

    go.folder, go.teacher = folder, tmp_path / "teacher"
    yield go
    for number, handler in handlers.items():
        signal.signal(number, handler)


def put(folder, status):
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(make_record(status=status)))


def test_it_marks_that_it_waits(cell):
    put(cell.teacher, "done")
    seen = []

    def run(folder, report, *more):
        for event in ("started", "waiting", "going_on"):
            report({"event": event, "cell_id": "1"})
            seen.append((folder / WAITS).exists())
        return 130

    done = cell(run)
    assert seen == [False, True, False]
    assert done.exit_code == 130
    assert done.stderr == f"{cell.folder}: interrupted; the same command resumes it\n"


@pytest.mark.parametrize("status", ["to run", "failed"])
def test_it_waits_for_no_teacher_and_leaves_no_failure(cell, status):
    if status == "failed":
        put(cell.teacher, status)
    done = cell(lambda *arguments: pytest.fail("it ran"))
    told = f"{cell.folder}: the cell of its teacher, {cell.teacher}, is not done ({status}); run it first"
    assert (done.exit_code, done.stderr) == (2, f"kdbench: error: {told}\n")
    assert list(cell.folder.iterdir()) == []


def test_a_finished_cell_needs_no_teacher(cell):
    put(cell.folder, "done")
    done = cell(lambda *arguments: 0)
    assert (done.exit_code, done.stdout) == (0, f"{cell.folder / 'result.json'}\n")
