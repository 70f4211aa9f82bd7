"""The `tune` block: what it refuses, the searches that it asks for, and the cells of its track."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from kdbench.errors import MatrixError
from kdbench.matrix import cell_id, expand, identity, load_matrix
from kdbench.matrix.studies import TUNED, Study, read_studies

PAIRS = [
    {"teacher": "timm:a", "student": "timm:b"},
    {"teacher": "timm:a", "student": "timm:c", "label": "to-c"},
]
OTHER = {"teacher": "timm:x", "student": "timm:b"}
SPACE = {"beta": {"low": 1.0, "high": 9.0, "log": True}}


@pytest.fixture
def load(tmp_path):
    def make(tune=None, **overrides):
        content = {
            "name": "m",
            "datasets": ["one", "two"],
            "pairs": PAIRS,
            "methods": ["plain", "rich", {"name": "rich", "params": {"gamma": 2.0}}],
            "seeds": 2,
            "recipe": "quick",
            "tune": {"trials": 3, "seeds": [100], **(tune or {})},
            **overrides,
        }
        path = tmp_path / "m.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_matrix(path)

    return make


def study(values, *, space=SPACE, **more):
    trials = [
        {
            "number": n,
            "status": "failed" if v is None else "done",
            "value": v,
            "params": {"beta": 1.0 + n} if space else {},
        }
        for n, v in enumerate(values)
    ]
    facts = {"variant": "rich", "method": "rich", "pair": "p", "dataset": "d", "study": "s"}
    return Study.model_validate({**facts, "space": space, "trials": trials, **more})


def found(searches, values=(50.0, 70.0, 60.0)):
    return {s.key: study(values) for s in searches}


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"seeds": [1]}, "tune.seeds: the matrix ranks by seed 1; the search needs others, such as 2"),
        ({"seeds": [7, 7]}, "tune.seeds: a seed is given twice"),
        ({"trial": 3}, "unknown key 'trial' (did you mean 'trials'"),
        ({"trials": 0}, "tune.trials: "),
        ({"epochs": 0}, "a trial has at least 1 epoch"),
        ({"epochs": 1.5}, "a fraction of the recipe's epochs lies above 0"),
        ({"scope": "one-pair"}, "tune.pair: the scope 'one-pair' needs the pair to search on"),
        ({"pair": OTHER}, "tune.pair: 'pair' belongs to the scope 'one-pair'"),
        ({"scope": "one-pair", "pair": PAIRS[1]}, "tune.pair: the matrix ranks on the pair 'to-c'"),
        ({"scope": "one-pair", "pair": OTHER, "dataset": "tow"}, "no data set 'tow' (did you mean 'two'?)"),
        ({"search": {"rihc": SPACE}}, "the matrix has no such method (did you mean 'rich'"),
        ({"search": {"rich": {"beta": {"low": 2, "high": 1}}}}, "low below high, not 2 and 1"),
        ({"search": {"rich": {"beta": {"low": 0, "high": 1, "log": True}}}}, "starts above 0, not at 0"),
        ({"search": {"rich": {"beta": {"choices": [1]}}}}, "at least two different choices"),
        ({"search": {"rich": {"beta": {"low": 1}}}}, "expected low and high, or choices"),
    ],
)
def test_what_is_refused(load, tune, said):
    with pytest.raises(MatrixError, match=r"m\.yaml:\d+: tune") as error:
        expand(load(tune))
    assert said in str(error.value)


def test_seeds_of_include_are_ranked_by_too(load):
    with pytest.raises(MatrixError, match="ranks by seed 100"):
        expand(load(include=[{"method": "rich", "seed": 100}]))


def test_nothing_to_search_where_only_speed_is_measured(load):
    with pytest.raises(MatrixError, match="measures speed only has nothing to search"):
        load(pairs=[{"teacher": None, "student": "timm:b"}], methods=["plain"], throughput={"only": True})


def test_one_search_for_each_method_pair_and_data_set(load):
    expansion = expand(load({"seeds": [100, 101], "epochs": 0.5}))
    assert len(expansion.searches) == 3 * 2 * 2
    assert sorted(p for s in expansion.searches for p in s.cells) == list(range(len(expansion.cells)))
    one = expansion.searches[1]
    cells = [expansion.cells[p] for p in one.cells]
    assert {c.seed for c in cells} == {0, 1}
    trials = one.trials({"beta": 4.0}, 7)
    assert [(t.seed, t.role, dict(t.method.params), t.method.label) for t in trials] == [
        (seed, "trial", {"beta": 4.0}, "rich #7") for seed in (100, 101)
    ]
    assert {(t.recipe.epochs, t.throughput, t.evaluators) for t in trials} == {(6, None, ())}
    assert all(t.teacher == cells[0].teacher and t.dataset == cells[0].dataset for t in trials)


def test_one_search_for_all_pairs(load):
    expansion = expand(load({"scope": "one-pair", "pair": OTHER, "dataset": "two"}))
    assert [s.variant for s in expansion.searches] == ["plain", "rich", "rich(gamma=2.0)"]
    trial = expansion.searches[0].trial
    assert (trial.teacher.name, trial.student.name, trial.dataset.name) == ("timm:x", "timm:b", "two")
    cells = expand(load({"scope": "one-pair", "pair": OTHER}), found=found(expansion.searches)).cells
    assert len(cells) == 24  # the data set is the first one now, which is another search
    tuned = expand(
        load({"scope": "one-pair", "pair": OTHER, "dataset": "two"}), found=found(expansion.searches)
    )
    assert {c.tuning.track for c in tuned.cells[24:]} == {"one-pair-tuned"}
    assert tuned.cells[-1].tuning.conditions()["pair"] == "timm:x->timm:b"


def test_the_track_has_the_same_cells_with_what_was_found(load):
    loaded = load()
    plain = expand(loaded)
    both = expand(loaded, found=found(plain.searches))
    assert both.cells[:24] == plain.cells
    assert both.warnings == plain.warnings == []
    for before, after in zip(plain.cells, both.cells[24:], strict=True):
        assert dict(after.method.params) == {**before.method.params, "beta": 2.0}
        assert (after.tuning.budget, after.tuning.trials, after.tuning.value) == (3, 3, 70.0)
        assert replace(after, method=before.method, tuning=None) == before
    assert expand(loaded, found=found(plain.searches), only=["track=per-pair-tuned"]).cells == both.cells[24:]
    assert expand(loaded, found=found(plain.searches), only=["track=default"]).cells == plain.cells


def test_of_more_trials_than_the_budget_the_first_count(load):
    loaded = load({"trials": 2})
    searches = expand(loaded).searches
    tuned = expand(loaded, found=found(searches, (50.0, None, 90.0))).cells[-1].tuning
    assert (tuned.trials, tuned.failed, tuned.value, dict(tuned.params)) == (2, 1, 50.0, {"beta": 1.0})


def test_where_every_trial_failed_the_values_stay(load):
    loaded = load()
    cell = expand(loaded, found=found(expand(loaded).searches, (None,) * 3)).cells[-1]
    assert (dict(cell.method.params), cell.tuning.value, cell.tuning.failed) == ({"gamma": 2.0}, None, 3)


def test_the_first_of_equal_trials_is_the_best():
    assert study((60.0, 70.0, 70.0)).best(3).number == 1
    assert study((60.0, 70.0, 50.0), higher_is_better=False).best(3).number == 2
    assert study((None, None)).best(2) is None


def test_searches_that_are_not_finished_have_no_cells(load):
    loaded = load()
    searches = expand(loaded).searches
    none = expand(loaded, found={})
    assert len(none.cells) == 24
    assert "none of the 12 searches is finished" in none.warnings[0]
    part = found(searches)
    part[searches[0].key] = study((50.0,))
    some = expand(loaded, found=part)
    assert len(some.cells) == 24 + 22
    assert "lacks plain | timm:a->timm:b | one: 1 of 3 trials;" in some.warnings[0]


def test_a_method_with_nothing_to_search_is_in_the_track_as_it_is(load):
    loaded = load(methods=["plain"])
    searches = expand(loaded).searches
    cells = expand(loaded, found={s.key: study((), space={}) for s in searches}).cells
    tuning = cells[-1].tuning
    assert (len(cells), tuning.trials, tuning.budget, tuning.conditions()["space"]) == (16, 0, 3, None)


@pytest.mark.parametrize(
    "change", [{"trials": 9}, {"sampler_seed": 1}, {"seeds": [101]}, {"select": "best"}, {"epochs": 3}]
)
def test_only_the_budget_leaves_a_search_what_it_is(load, change):
    before, after = ({s.key for s in expand(load(tune)).searches} for tune in (None, change))
    assert (before == after) == (change == {"trials": 9})


def test_values_by_hand_are_another_cell_than_values_found(load):
    loaded = load()
    tuned = expand(loaded, found=found(expand(loaded).searches)).cells[-1]
    facts = {
        "params": tuned.method.params,
        "method_version": "1",
        "student_version": "1",
        "dataset_revision": "1",
        "dataset_version": "1",
        "task_version": "1",
        "teachers": [],
        "storage": "resident",
    }
    by_hand = replace(tuned, tuning=None)
    trial = replace(by_hand, role="trial")
    larger = replace(tuned, tuning=replace(tuned.tuning, budget=20))
    luckier = replace(tuned, tuning=replace(tuned.tuning, value=99.0))
    ids = [cell_id(identity(cell, **facts)) for cell in (tuned, by_hand, trial, larger, luckier)]
    assert len(set(ids)) == 4
    assert ids[0] == ids[4]  # what came of the search is a result


def test_a_broken_file_is_told(tmp_path):
    assert read_studies(tmp_path) == {}
    for text, said in (("{", "cannot be read"), (json.dumps({"studies": {"k": {}}}), "studies.k.variant")):
        (tmp_path / TUNED).write_text(text)
        with pytest.raises(MatrixError, match=said):
            read_studies(tmp_path)
