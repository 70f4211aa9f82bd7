"""Methods over all settings of a board."""

import csv
import io
import random

import pytest
from factories import TEACHER_ARCH, make_record

from kdbench.leaderboard import render_board
from kdbench.leaderboard.board import make_board
from kdbench.results.schema import Record


def study(methods, pairs, seeds=3, *, skip=(), failed=(), noise=0.5, **kw):
    """Records of several pairs; a method's number is its gain in points over the student alone."""
    rng = random.Random(1)
    records = []
    for p in range(pairs):
        for method, gain in methods.items():
            for seed in range(seeds):
                top1 = 60 + 2 * p + gain + rng.uniform(-noise, noise)
                if (method, p) in skip:
                    continue
                records.append(
                    make_record(
                        method=method,
                        student=f"timm:student{p:02d}",
                        teacher=TEACHER_ARCH if gain else None,
                        teacher_top1=70.0 + 2 * p,
                        seed=seed,
                        top1=top1,
                        status="diverged" if (method, p, seed) in failed else "done",
                        **kw,
                    )
                )
    return records


def board(records, **kw):
    return make_board([Record.model_validate(r) for r in records], title="T", **kw)


METHODS = {"plain": 0, "kd": 2, "hint": 5, "map": 5.1}


def test_ranks_test_and_groups():
    overall = board(study(METHODS, 8)).overall
    assert overall.n == 8
    lines = {line.variant: line for line in overall.lines}
    assert [line.rank for line in overall.lines] == sorted(line.rank for line in overall.lines)
    assert lines["plain"].rank == 4.0
    assert lines["kd"].rank == 3.0
    assert lines["hint"].rank + lines["map"].rank == 3.0
    assert overall.friedman.rejects
    assert overall.critical_difference == pytest.approx(2.569 * (20 / 48) ** 0.5, abs=0.001)
    assert any({"hint", "map"} <= set(group) for group in overall.cliques)
    assert not any({"plain", "map"} <= set(group) for group in overall.cliques)
    assert overall.why == ""


def test_iqm_is_of_the_gap_closed():
    lines = {line.variant: line for line in board(study(METHODS, 8)).overall.lines}
    assert lines["hint"].iqm == pytest.approx(0.5, abs=0.06)
    assert lines["hint"].iqm_low < lines["hint"].iqm < lines["hint"].iqm_high
    assert lines["kd"].iqm_high < lines["hint"].iqm_low
    assert (lines["plain"].iqm, lines["plain"].why) == (None, "the baseline")


def test_few_settings_give_ranks_and_no_test():
    overall = board(study(METHODS, 5)).overall
    assert (overall.friedman, overall.critical_difference, overall.cliques) == (None, None, [])
    assert overall.why == "5 settings; a test needs 6"
    assert overall.lines[0].iqm is not None
    assert overall.lines[0].iqm_low is None, "10 degrees of freedom"
    assert board(study(METHODS, 1)).overall is None


def test_two_methods_give_no_test():
    assert board(study({"plain": 0, "kd": 2}, 6)).overall.why == "2 methods; a test needs 3"


def test_methods_that_do_not_differ_are_one_group():
    overall = board(study({"plain": 0, "a": 1e-6, "b": 2e-6, "c": 3e-6}, 7, noise=3)).overall
    assert not overall.friedman.rejects
    assert overall.cliques == [tuple(line.variant for line in overall.lines)]


def test_all_equal_everywhere():
    overall = board(study({"plain": 0, "a": 1e-12, "b": 1e-12}, 6, noise=0)).overall
    assert {line.rank for line in overall.lines} == {2.0}
    assert overall.why == "all methods are equal in every setting"


def test_only_complete_blocks_and_it_says_what_is_left_out():
    overall = board(study(METHODS, 7, skip=[("map", 1), ("map", 2)], failed=[("hint", 3, 1)])).overall
    assert [line.variant for line in overall.lines] == ["kd", "plain"]
    assert overall.n == 7
    hint, mapped = overall.left_out
    assert hint.startswith("hint: no mean (seed 1 diverged) in timm:test_resnet → timm:student03, digits")
    assert mapped == "map: no cells in timm:test_resnet → timm:student01, digits and in 1 more"


def test_a_setting_that_few_methods_ran_in_does_not_cost_the_others():
    many = {**METHODS, "more": 1.0}
    overall = board(study(many, 7, skip=[(m, 6) for m in ("hint", "map", "more")])).overall
    assert (overall.n, len(overall.lines)) == (6, 5)
    (gone,) = overall.left_out
    assert gone.startswith("setting timm:test_resnet → timm:student06, digits: 2 of 5 methods")


def test_settings_without_a_gap_are_not_in_the_mean():
    records = study(METHODS, 7)
    for record in records:
        if record["labels"]["student"].endswith("06"):
            for teacher in record.get("teachers", []):
                teacher["top1"] = 60.0
    overall = board(records).overall
    assert (overall.n, overall.iqm_settings) == (7, 6)
    assert "no gap to close" in overall.notes[0]


@pytest.mark.parametrize("change", [{"protocol": 2}, {"identity": {"task": {"version": "2"}}}])
def test_protocols_are_never_ranked_together(change):
    found = board([*study(METHODS, 6), *study(METHODS, 4, **change)])
    assert [o.n for o in found.overalls] == [6, 4]


def test_data_sets_and_recipes_are_settings():
    found = board([*study(METHODS, 3), *study(METHODS, 3, dataset="other")])
    assert found.overall.n == 6
    assert found.overall.notes == []
    again = board([*study(METHODS, 3), *study(METHODS, 3, recipe={"epochs": 9})])
    assert again.overall.n == 6
    assert "several recipes" in again.overall.notes[0]


def test_order_and_names_do_not_matter():
    first = board(study(METHODS, 6), references=[]).overall
    shuffled = study(METHODS, 6)
    random.Random(3).shuffle(shuffled)
    assert board(shuffled, references=[]).overall == first
    names = {"plain": "zz", "kd": "aa", "hint": "mm", "map": "bb"}
    other = board(study({names[k]: v for k, v in METHODS.items()}, 6), references=[]).overall
    assert [(names[a.variant], a.rank, a.iqm, a.iqm_low, a.iqm_high) for a in first.lines] == [
        (b.variant, b.rank, b.iqm, b.iqm_low, b.iqm_high) for b in other.lines
    ]
    assert [tuple(names[v] for v in group) for group in first.cliques] == other.cliques


def test_files_have_the_section():
    out = {
        k: v.decode()
        for k, v in render_board(map(Record.model_validate, study(METHODS, 8)), title="T").items()
    }
    assert "## Over all settings: task classification" in out["README.md"]
    assert "Critical difference of average ranks" in out["README.md"]
    assert "critical difference" in out["plots/ranks-1.svg"]
    table = list(csv.DictReader(io.StringIO(out["overall.csv"])))
    assert [row["variant"] for row in table][-1] == "plain"
    assert table[0]["settings"] == "8"
    assert float(table[0]["iqm_gap_closed"]) > 0.4
    assert "overall.csv" not in render_board(map(Record.model_validate, study(METHODS, 1)), title="T")
