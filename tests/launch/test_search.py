"""Studies: budgets, resuming, determinism. Nothing is trained: a formula stands for a trial."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from kdbench.errors import KdbenchError
from kdbench.launch.search import Book, Search, digest_of, holds, open_space
from kdbench.matrix import expand, load_matrix
from kdbench.matrix.studies import TUNED, read_studies

SPACE = {
    "alpha": {"low": 0.1, "high": 10.0, "log": True},
    "depth": {"low": 1, "high": 8, "log": False},
    "kind": {"choices": ["a", "b", "c"]},
}
START = {"alpha": 1.0, "depth": 2, "kind": "b"}


@pytest.fixture
def search(tmp_path):
    def make(space=SPACE, start=START, **tune):
        content = {
            "name": "m",
            "datasets": ["one"],
            "pairs": [{"teacher": "timm:a", "student": "timm:b"}],
            "methods": ["rich"],
            "seeds": 1,
            "recipe": "quick",
            "tune": {"trials": 4, "seeds": [9], **tune},
        }
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(content))
        (spec,) = expand(load_matrix(tmp_path / "m.yaml")).searches
        return Search(spec, space, start, digest_of(spec, space, ["c" * 64]))

    return make


def value(params):
    return 50.0 - abs(params["alpha"] - 3.0) - params.get("depth", 0)


def go_on(folder, search, budget, *, stop_after=None, fails=()):
    """Open the book anew, as another process would, and go on; returns the trials that ran."""
    book, ran = Book(folder), []
    book.open(search)
    while trials := book.propose(search, budget):
        for number, params in trials:
            if stop_after is not None and len(ran) == stop_after:
                book.write([search])
                return ran
            ran.append((number, params))
            bad = number in fails
            book.tell(search, number, None if bad else value(params), "diverged" if bad else "done")
    book.write([search])
    return ran


def told(folder, search):
    return read_studies(folder)[search.spec.key]


def test_a_search_resumes_to_its_budget_and_no_further(tmp_path, search):
    one = search()
    assert [n for n, _ in go_on(tmp_path, one, 2)] == [0, 1]
    assert [n for n, _ in go_on(tmp_path, one, 4)] == [2, 3]
    assert go_on(tmp_path, one, 4) == []
    assert [t.number for t in told(tmp_path, one).trials] == [0, 1, 2, 3]
    assert told(tmp_path, one).best(4).value == max(t.value for t in told(tmp_path, one).trials)


def test_where_it_was_cut_makes_no_difference(tmp_path, search):
    space = {"alpha": SPACE["alpha"]}
    trials = 12  # the estimator learns from the eleventh on; before, it draws at random
    one = search(space, None)
    whole = go_on(tmp_path / "whole", one, trials)
    cut = go_on(tmp_path / "cut", one, trials - 3)
    # killed while a trial ran: it was proposed and nobody told what came of it
    cut += go_on(tmp_path / "cut", one, trials, stop_after=1)
    assert len(told(tmp_path / "cut", one).trials) == trials - 2
    cut += go_on(tmp_path / "cut", one, trials)
    assert cut == whole
    assert (tmp_path / "cut" / TUNED).read_bytes() == (tmp_path / "whole" / TUNED).read_bytes()
    assert go_on(tmp_path / "other", search(space, None, sampler_seed=1), 1) != whole[:1]


def test_the_first_trial_is_the_method_as_it_is(tmp_path, search):
    assert go_on(tmp_path, search(), 1) == [(0, START)]
    ((_, params),) = go_on(tmp_path / "b", search(start=None), 1)
    assert params != START


def test_proposals_lie_in_the_space(tmp_path, search):
    for _, params in go_on(tmp_path, search(start=None), 4):
        assert holds(SPACE, params) == params
        assert isinstance(params["depth"], int)
    assert holds(SPACE, {**START, "alpha": 11.0}) is None
    assert holds(SPACE, {**START, "alpha": None}) is None
    assert holds(SPACE, {**START, "kind": "d"}) is None
    assert holds({"on": {"choices": [True, False]}}, {"on": 1}) is None


def test_trials_that_fail_count_and_have_no_value(tmp_path, search):
    one = search()
    ran = go_on(tmp_path, one, 4, fails=(0, 2))
    assert len(ran) == 4
    trials = told(tmp_path, one).trials
    assert [(t.status, t.value is None) for t in trials] == [
        ("diverged", True),
        ("done", False),
        ("diverged", True),
        ("done", False),
    ]
    assert go_on(tmp_path, one, 4) == []


def test_a_batch_is_proposed_at_once_and_resumes(tmp_path, search):
    one = search(batch=3)
    book = Book(tmp_path)
    book.open(one)
    first = book.propose(one, 5)
    assert [n for n, _ in first] == [0, 1, 2]
    book.tell(one, 1, 50.0, "done")
    again = Book(tmp_path)
    again.open(one)
    assert again.propose(one, 5) == [first[0], first[2]]
    for number in (0, 2):
        again.tell(one, number, 60.0, "done")
    assert [n for n, _ in again.propose(one, 5)] == [3, 4]


def test_lower_may_be_better(tmp_path, search):
    one = search()
    book = Book(tmp_path)
    book.open(one)
    for loss in (0.5, 0.2, 0.9):
        ((number, _),) = book.propose(one, 3)
        book.tell(one, number, loss, "done", sign=-1)
    book.write([one])
    study = told(tmp_path, one)
    assert (study.higher_is_better, study.best(3).value) == (False, 0.2)
    assert one.study.best_trial.number == 1


def test_another_space_is_another_search(tmp_path, search):
    go_on(tmp_path, search(), 2)
    narrow = {"alpha": {"low": 1.0, "high": 2.0, "log": False}}
    other = search(space=narrow, start=None)
    book = Book(tmp_path)
    book.open(other)
    assert book.taken(other) == 0


def test_what_the_matrix_sets_is_not_searched(search):
    spec = search().spec
    object.__setattr__(spec.trial.method, "params", {"alpha": 2.0})
    assert list(open_space(spec, SPACE)) == ["depth", "kind"]
    object.__setattr__(spec, "override", {"alpha": SPACE["alpha"]})
    assert list(open_space(spec, SPACE)) == ["alpha"]


def test_searches_of_others_stay_in_the_file(tmp_path, search):
    go_on(tmp_path, search(), 1)
    go_on(tmp_path, search(sampler_seed=5), 2)
    content = json.loads((tmp_path / TUNED).read_text())
    assert [len(s["trials"]) for s in content["studies"].values()] in ([1, 2], [2, 1])


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KdbenchError, match=r"pip install 'kdbench\[tune\]'"):
        Book(tmp_path)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "tune.db").write_text("not a database, by far")
    with pytest.raises(KdbenchError, match=r"tune\.db: cannot be opened"):
        Book(tmp_path)
