"""Tables of speed: what is ranked against what, and what is not."""

from __future__ import annotations

import csv
import io

import pytest
from factories import make_record, make_speed_record, make_speed_row, signed

from kdbench.leaderboard.board import make_board
from kdbench.leaderboard.build import render_board
from kdbench.leaderboard.folder import build_folder, check_folder
from kdbench.leaderboard.speeds import SPEED_COLUMNS, speed_lines, speed_ranks
from kdbench.results.schema import Record
from kdbench.results.store import atomic_write_json


def valid(*found):
    return [Record.model_validate(r) for r in found]


def board(*found):
    return make_board(valid(*found), title="T")


def fast(images_per_s, **kw):
    return make_speed_row(images_per_s=images_per_s, step_ms=64e3 / images_per_s, **kw)


def models(section):
    return [line.labels.student for line in section.rows]


def test_models_are_ranked_by_their_fastest_inference():
    slow = [fast(900.0), fast(500.0, batch_size=1), fast(5000.0, mode="train")]
    (section,) = board(make_speed_record("a", slow), make_speed_record("b", [fast(950.0)])).sections
    assert (models(section), section.ranks) == (["b", "a"], [1, 2])
    texts = {c.title: c.text(section.rows[1]) for c in SPEED_COLUMNS}
    assert texts["Images/s"] == "900"
    assert texts["Batch"] == "64"
    assert texts["Train images/s"] == "5000"
    assert texts["p50, ms, b1"] == "65.0"
    assert texts["Params"] == "40.0 k"


@pytest.mark.parametrize(
    "other",
    [{"device_name": "A GPU"}, {"threads": 2}, {"channels_last": True}],
    ids=lambda other: next(iter(other)),
)
def test_records_of_different_hardware_are_not_ranked_together(other):
    made = board(make_speed_record("a", [fast(900.0)]), make_speed_record("b", [fast(9e5)], **other))
    assert [models(s) for s in made.sections] in ([["a"], ["b"]], [["b"], ["a"]])
    assert [s.ranks for s in made.sections] == [[1], [1]]
    lines = [line for s in made.sections for line in s.rows]
    with pytest.raises(ValueError, match=r"not to be ranked together: Speed in fp32.*; Speed in fp32"):
        speed_ranks(lines)


def test_precisions_have_tables_of_their_own():
    rows = [fast(900.0), fast(1800.0, precision="bf16")]
    sections = board(make_speed_record("a", rows)).sections
    assert [s.title.split(" on ")[0] for s in sections] == ["Speed in bf16", "Speed in fp32"]
    assert sections[1].rows[0].infer.images_per_s == 900.0


def test_what_was_not_measured_is_a_dash_and_has_no_rank():
    failed = make_speed_row(status="oom", images_per_s=None, step_ms=None, samples_ms=[])
    (section,) = board(make_speed_record("a", [failed, fast(5.0, mode="train", batch_size=8)])).sections
    texts = {c.title: c.text(section.rows[0]) for c in SPEED_COLUMNS}
    assert (texts["Images/s"], texts["Train images/s"], texts["Train batch"]) == ("—", "5.00", "8")
    assert speed_lines(board(make_speed_record("a", [failed])).rows) == {}


def test_trained_cells_keep_their_tables():
    made = board(make_record(method="plain", teacher=None), make_speed_record("a"))
    assert len(made.sections) == 2
    assert sorted("Speed in" in s.title for s in made.sections) == [False, True]
    assert "speeds.csv" not in render_board(valid(make_record()), title="T")


def test_versions_that_differ_are_told():
    made = board(make_speed_record("a"), make_speed_record("b", torch="2.16.0"))
    assert "Versions differ between rows: torch 2.15.0, torch 2.16.0." in made.sections[0].notes


def test_a_board_of_speeds_is_built_and_checked(tmp_path):
    names = "a", "<blink>"
    (tmp_path / "records").mkdir()
    for record in [make_speed_record(n, [fast(900.0), fast(1.0, batch_size=1)]) for n in names]:
        atomic_write_json(tmp_path / "records" / f"{record['cell_id']}.json", signed(record))
    assert build_folder(tmp_path) == 2
    assert check_folder(tmp_path) == []
    lines = list(csv.DictReader(io.StringIO((tmp_path / "speeds.csv").read_text())))
    assert [line["images_per_s"] for line in lines] == ["900.0000", "1.0000"] * 2
    assert {line["model"] for line in lines} == set(names)
    page = (tmp_path / "README.md").read_text()
    assert "Ranked by images/s" in page
    assert "<blink>" not in page
    (tmp_path / "speeds.csv").write_text("model\n")
    assert "speeds.csv: line 1 is not what the records give" in check_folder(tmp_path)[0]
