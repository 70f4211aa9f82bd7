"""Questions that need torch are asked of another process, and answers are kept while the code is the same."""

import pytest

from kdbench.errors import KdbenchError
from kdbench.launch import resolve
from kdbench.launch.resolve import Resolver
from kdbench.registry import Registry


@pytest.fixture
def resolver(monkeypatch, tmp_path):
    """A resolver with a cache of its own that notes what it asks a process; returns (resolver, notes)."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    made, asked = Resolver(Registry.load()), []
    real = made._in_process

    def noted(questions):
        asked.append(len(questions))
        return real(questions)

    monkeypatch.setattr(made, "_in_process", noted)
    return made, asked


def method(name, **more):
    return {"ask": "method", "name": name, "preset": None, "params": {}, **more}


def test_method_answers(resolver):
    ask, _ = resolver
    kd, ffl, bad = ask.ask(
        [method("kd", params={"temperature": 2}), method("ffl"), method("kd", params={"tempreature": 2})]
    )
    assert kd["params"]["temperature"] == 2.0
    assert (kd["teachers"], kd["error"]) == (1, None)
    assert ffl["teachers"] == 0
    assert "tempreature: unknown (did you mean 'temperature'" in bad["error"]


def test_answers_are_kept_and_errors_are_not(resolver):
    ask, asked = resolver
    questions = [method("kd"), method("dkd"), method("kd", preset="nowhere")]
    first = ask.ask(questions)
    second = ask.ask(questions)
    assert first == second
    assert asked == [3, 1]


def test_waiting_is_told_once_and_only_where_a_process_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    told = []
    asking = Resolver(Registry.load(), waits=lambda: told.append("asks"))
    asking.ask([method("kd")])
    asking.ask([method("dkd")])
    assert told == ["asks"]
    Resolver(Registry.load(), waits=lambda: told.append("again")).ask([method("kd"), method("dkd")])
    assert told == ["asks"]


def test_changed_code_is_asked_again(resolver, monkeypatch):
    ask, asked = resolver
    ask.ask([method("kd")])
    monkeypatch.setattr(resolve, "code_digest", lambda target: f"new {target}")
    ask.ask([method("kd")])
    assert asked == [1, 1]


def test_damaged_cache_is_asked_again(resolver, tmp_path):
    ask, asked = resolver
    first = ask.ask([method("kd")])
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("{")
    assert ask.ask([method("kd")]) == first
    assert asked == [1, 1]


def test_unwritable_cache_costs_time_only(resolver, monkeypatch, tmp_path):
    ask, asked = resolver
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "file"))
    assert ask.ask([method("kd")])[0]["error"] is None
    assert ask.ask([method("kd")])[0]["error"] is None
    assert asked == [1, 1]


def test_device(resolver, monkeypatch):
    ask, asked = resolver
    question = {"ask": "device", "device": "cpu", "precisions": ["fp32"]}
    for _ in range(2):
        (answer,) = ask.ask([question])
        assert (answer["device"], answer["error"]) == ("cpu", None)
    assert asked == [1, 1]  # what a machine has is never remembered


def test_process_that_dies(resolver, monkeypatch):
    ask, _ = resolver
    monkeypatch.setattr(resolve, "answer_all", die)
    with pytest.raises(KdbenchError, match=r"ended with code 5; a plug-in may crash at import"):
        ask.ask([method("kd")])


def test_questions_are_shared_out_and_answered_in_order(resolver, monkeypatch):
    ask, asked = resolver
    started = []
    real = ask._start
    monkeypatch.setattr(ask, "_start", lambda qs: started.append(len(qs)) or real(qs))
    monkeypatch.setattr(resolve, "SMALLEST_SHARE", 2)
    monkeypatch.setattr(resolve.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    questions = [method("kd", params={"temperature": t}) for t in range(1, 9)]
    answers = ask.ask(questions)
    assert started == [3, 3, 2]
    assert asked == [8]
    assert [a["params"]["temperature"] for a in answers] == list(range(1, 9))


def die(connection, disable, questions, life=None):
    import os

    os._exit(5)
