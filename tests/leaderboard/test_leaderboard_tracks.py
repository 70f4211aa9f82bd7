"""Tracks: methods as they come and methods that were searched are never in one table."""

import csv
import io

import pytest
from factories import make_record

from kdbench.leaderboard.board import make_board
from kdbench.leaderboard.build import render_board
from kdbench.leaderboard.site import SiteBoard, render_site
from kdbench.results.schema import Record

SPACE = {"alpha": {"low": 0.1, "high": 10.0, "log": True}}


def tuned(method, top1, *, budget=20, space=SPACE, seed=0, track="per-pair-tuned", failed=0, **more):
    conditions = {"track": track, "budget": budget, "epochs": 6, "seeds": [100]} | more
    facts = {
        "trials": budget if space else 0,
        "failed": failed,
        "dataset": "digits",
        "pair": "a->b",
        "select": "last",
        "sampler": "tpe",
        "sampler_seed": 0,
        "batch": 1,
        "space": space,
        "params": {"alpha": 1.23456} if space else {},
    }
    return Record.model_validate(
        make_record(
            method=method,
            top1=top1,
            seed=seed,
            teacher=None if method == "plain" else "timm:test_resnet",
            labels={"track": track},
            identity={"tuning": conditions},
            tuning={**facts, **conditions},
        )
    )


def plain(method, top1, seed=0):
    teacher = None if method == "plain" else "timm:test_resnet"
    return Record.model_validate(make_record(method=method, top1=top1, seed=seed, teacher=teacher))


@pytest.fixture
def records():
    both = [plain("plain", 70.0), plain("rich", 74.0)]
    return [*both, tuned("plain", 71.0, space={}), tuned("rich", 76.0, failed=2)]


def test_each_track_has_its_table_and_its_baseline(records):
    board = make_board(records, title="T")
    assert [(s.setting.track, [r.labels.variant for r in s.rows]) for s in board.sections] == [
        ("default", ["rich", "plain"]),
        ("per-pair-tuned", ["rich", "plain"]),
    ]
    rich = {r.setting.track: r for r in board.rows if r.labels.variant == "rich"}
    assert rich["default"].gap_closed == pytest.approx(4 / 10)
    assert rich["per-pair-tuned"].gap_closed == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    "other", [{"budget": 5}, {"track": "one-pair-tuned"}, {"seeds": [200]}, {"pair": "c->d", "dataset": "x"}]
)
def test_other_searches_have_tables_of_their_own(records, other):
    board = make_board([*records, tuned("other", 99.0, **other)], title="T")
    assert len(board.sections) == 3
    assert all(len(s.rows) == 2 for s in board.sections if s.rows[0].labels.variant != "other")


def test_the_heading_says_track_and_budget_and_the_row_what_was_found(records):
    files = render_board(records, title="T")
    page = files["README.md"].decode()
    budget = "20 trials of 6 epochs on seed 100"
    assert f"(per-pair-tuned, {budget})\n" in page
    assert f"track per-pair-tuned · search budget of each method {budget}" in page
    assert "| 20 trials, 2 failed: alpha=1.235 |" in page
    assert "| 0 trials: nothing to search |" in page
    default, _, searched = page.partition("(per-pair-tuned")
    assert "Search" not in default
    assert "| Search |" in searched
    rows = list(csv.DictReader(io.StringIO(files["leaderboard.csv"].decode())))
    assert {(r["track"], r["search_budget"]) for r in rows} == {("default", ""), ("per-pair-tuned", budget)}


def test_a_budget_of_one(records):
    (row,) = make_board([tuned("rich", 76.0, budget=1, epochs=1)], title="T").rows
    assert row.setting.budget == "1 trial of 1 epoch on seed 100"
    assert row.search == "1 trial: alpha=1.235"


def test_labels_and_conditions_of_strangers_are_escaped():
    records = [tuned("rich", 76.0, track="<script>alert(1)</script>", pair="<b>x</b>", dataset="|y|")]
    made = [SiteBoard("b", make_board(records, title="T"), home="boards/b", records="{id}.json")]
    pages = [text for name, text in render_site(made) if name.endswith(".html")]
    assert any(b"&lt;script&gt;alert(1)" in page for page in pages)
    for text in (render_board(records, title="T")["README.md"], *pages):
        assert b"<script>alert(1)" not in text
        assert b"<b>x" not in text
