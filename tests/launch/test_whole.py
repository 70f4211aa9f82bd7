"""The board of a run and what its seeds tell together are the same from a process of their own."""

import pytest
from factories import make_record, write_run

from kdbench.errors import KdbenchError
from kdbench.launch import whole
from kdbench.launch.whole import build, told
from kdbench.results.store import RunFolder


@pytest.fixture
def run(tmp_path):
    records = [make_record(method=m, seed=s) for m in ("kd", "dkd") for s in range(2)]
    return RunFolder(write_run(tmp_path, records, name="m"))


def files(run):
    return {
        str(p.relative_to(run.path)): p.read_bytes() for p in (run.path / "board").rglob("*") if p.is_file()
    }


def test_many_cells_give_what_few_give(run, monkeypatch):
    assert build(run, set(), "T", "words") == []
    few, said = files(run), told(run)
    assert len(said.annotations) == 4
    monkeypatch.setattr(whole, "MANY", 1)
    monkeypatch.setattr("kdbench.leaderboard.build_board", None)  # it is not called here
    monkeypatch.setattr("kdbench.leaderboard.mirrored.tell", None)
    for name in few:
        (run.path / name).unlink()
    assert build(run, set(), "T", "words") == []
    assert files(run) == few
    assert repr(told(run)) == repr(said)


@pytest.mark.parametrize("many", [1, 100])
def test_broken_records_are_told(run, monkeypatch, many):
    monkeypatch.setattr(whole, "MANY", many)
    broken = sorted(run.path.glob("cells/*/result.json"))[0]
    broken.write_text("{")
    (line,) = build(run, set(), "T", "")
    assert line.startswith(f"warning: {broken}: not JSON")
    assert line.endswith("; it is left out of the board")


@pytest.mark.parametrize("many", [1, 100])
def test_board_that_cannot_be_written_is_told(run, monkeypatch, many):
    monkeypatch.setattr(whole, "MANY", many)
    (run.path / "board").write_text("no folder")
    with pytest.raises((OSError, KdbenchError), match="board"):
        build(run, set(), "T", "")


def test_failures_of_cells_that_are_no_more_are_history(run, tmp_path):
    old = make_record(method="kd", seed=9, status="failed")
    write_run(tmp_path, [old], name="m")
    build(run, set(), "T", "")
    without = files(run)
    build(run, {old["cell_id"]}, "T", "")
    assert files(run) != without
