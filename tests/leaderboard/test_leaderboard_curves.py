"""Learning curves that a board keeps."""

import json

import pytest
from factories import make_record, write_run

from kdbench.errors import RecordError
from kdbench.leaderboard.curves import (
    MAX_POINTS,
    Curve,
    band,
    dump,
    extract,
    parse,
    read_board_curves,
    run_curves,
)
from kdbench.leaderboard.folder import build_folder, check_folder, copy_records
from kdbench.results.schema import Record


def rows(*top1, **more):
    return [
        {
            "epoch": n,
            "train": {"loss": 1.0 / n},
            "eval": {"student": {"val/top1": v - 1, "test/top1": v}} if v is not None else None,
            **more,
        }
        for n, v in enumerate(top1, 1)
    ]


def curve(*test, start=1):
    none = (None,) * len(test)
    return Curve(
        tuple(range(start, start + len(test))), {"train_loss": none, "val_top1": none, "test_top1": test}
    )


def records(n):
    return [Record.model_validate(make_record(seed=seed)) for seed in range(n)]


def test_an_epoch_without_an_evaluation_has_no_accuracy():
    found = extract(rows(10.0, None, 30.0), "student")
    assert found.epochs == (1, 2, 3)
    assert found.columns["test_top1"] == (10.0, None, 30.0)
    assert found.columns["val_top1"] == (9.0, None, 29.0)
    assert found.columns["train_loss"] == (1.0, 0.5, 1 / 3)


def test_the_ranked_network_is_taken():
    both = {"a": {"test/top1": 1.0}, "b": {"test/top1": 2.0}}
    assert extract(rows(5.0, eval=both), "b").columns["test_top1"] == (2.0,)


@pytest.mark.parametrize("strange", [[], [{}], [{"epoch": True}], [{"epoch": 1, "train": 3, "eval": []}]])
def test_nothing_to_draw(strange):
    assert extract(strange, "student") is None


def test_infinite_values_are_left_out():
    assert extract(rows(float("nan"), 2.0), None).columns["test_top1"] == (None, 2.0)


def test_files_are_read_as_they_were_written():
    found = extract(rows(10.0, None, 30.123456), "student")
    again = parse(dump(found), "x")
    assert again.epochs == found.epochs
    assert again.columns["test_top1"] == (10.0, None, 30.1235)
    assert dump(again) == dump(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1"),
        ("epoch,other\n", "line 1"),
        ("epoch,train_loss,val_top1,test_top1\n1,2,3\n", "line 2"),
        ("epoch,train_loss,val_top1,test_top1\n1,2,3,inf\n", "line 2"),
        ("epoch,train_loss,val_top1,test_top1\n1,2,3,x\n", "line 2"),
        ("epoch,train_loss,val_top1,test_top1\n2,,,1\n1,,,1\n", "must rise"),
    ],
)
def test_broken_files_are_refused(text, problem):
    with pytest.raises(RecordError, match=problem):
        parse(text.encode(), "c.csv")


def test_a_band_is_over_the_epochs_that_every_seed_has():
    a, b, c = records(3)
    found = {a.cell_id: curve(10.0, 20.0, 30.0), b.cell_id: curve(14.0, 28.0)}
    made = band([a, b, c], found, "test_top1")
    assert (made.epochs, made.mean, made.low, made.high, made.seeds) == (
        *([1, 2], [12.0, 24.0], [10.0, 20.0], [14.0, 28.0], 2),
    )
    assert band([c], found, "test_top1") is None
    assert band([a], found, "val_top1") is None
    assert band([a, b], {a.cell_id: curve(1.0), b.cell_id: curve(1.0, start=5)}, "test_top1") is None


def test_long_curves_are_thinned_and_keep_their_ends():
    (one,) = records(1)
    made = band([one], {one.cell_id: curve(*map(float, range(1000)))}, "test_top1")
    assert len(made.epochs) == MAX_POINTS
    assert (made.epochs[0], made.epochs[-1]) == (1, 1000)
    assert made.epochs == sorted(set(made.epochs))


@pytest.fixture
def run(tmp_path):
    made = [make_record(seed=0), make_record(seed=1), make_record(seed=2, status="oom")]
    folder = write_run(tmp_path / "runs" / "r", made)
    for record in made[:2]:
        text = "".join(json.dumps(row) + "\n" for row in rows(50.0, 70.0))
        (folder / "cells" / record["cell_id"] / "curves.jsonl").write_text(text)
    return folder, [r["cell_id"] for r in made]


def test_curves_come_to_the_board_with_the_records(run, tmp_path):
    folder, ids = run
    board = tmp_path / "board"
    assert copy_records(folder, board) == (3, 3)
    build_folder(board)
    assert check_folder(board) == []
    assert {p.stem for p in (board / "curves").iterdir()} == set(ids[:2])
    assert read_board_curves(board, ids)[ids[0]].columns["test_top1"] == (50.0, 70.0)


def test_a_cell_that_lost_its_curves_has_none_on_the_board(run, tmp_path):
    folder, ids = run
    copy_records(folder, tmp_path / "b")
    (folder / "cells" / ids[0] / "curves.jsonl").unlink()
    (folder / "cells" / ids[1] / "curves.jsonl").write_text('{"epoch": \n{}\n')
    copy_records(folder, tmp_path / "b")
    assert list((tmp_path / "b" / "curves").iterdir()) == []
    assert run_curves(folder, [Record.model_validate(make_record(seed=1))]) == {}


def test_check_finds_strange_curves(run, tmp_path):
    folder, ids = run
    board = tmp_path / "b"
    copy_records(folder, board)
    build_folder(board)
    (board / "curves" / "note.txt").write_text("x")
    (board / "curves" / f"{'0' * 64}.csv").write_text("epoch,train_loss,val_top1,test_top1\n")
    (board / "curves" / f"{ids[0]}.csv").write_text("epoch\n")
    target = tmp_path / "elsewhere.csv"
    (board / "curves" / f"{ids[1]}.csv").rename(target)
    (board / "curves" / f"{ids[1]}.csv").symlink_to(target)
    problems = check_folder(board)
    assert len(problems) == 4
    assert sum("of a record of this board" in p for p in problems) == 2
    assert any("is a link" in p for p in problems)
    assert any("line 1: expected epoch,train_loss" in p for p in problems)
