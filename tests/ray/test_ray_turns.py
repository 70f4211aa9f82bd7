"""The order in which cells are handed out, and what becomes of those whose teacher does not finish."""

from pathlib import Path

from kdbench.api import Job
from kdbench_launchers.ray.turns import Turns


def job(name, *after, cost=1.0):
    return Job(name, Path("cells") / name, name, after, cost=cost)


def turns(*jobs):
    return Turns(jobs, lambda j: j.cost)


def taken(order):
    return [j.cell_id for j in iter(order.next, None)]


def test_the_longest_chains_come_first_and_students_after_their_teachers():
    order = turns(
        job("short"),
        job("teacher"),
        job("long", cost=3),
        job("student", "teacher", cost=5),
        job("other", cost=1),
        job("taught", "done", "teacher"),
    )
    # one whose teacher is not among the jobs and not done: it failed before
    assert [(j.cell_id, status) for j, status, _ in order.orphans()] == [("taught", "failed")]
    assert taken(order) == ["teacher", "long", "short", "other"]
    order.ended("long", True, False)
    assert taken(order) == []
    order.ended("teacher", True, False)
    assert taken(order) == ["student"]


def test_a_student_waits_for_all_of_its_teachers():
    order = turns(job("a"), job("b"), job("student", "a", "b"))
    assert taken(order) == ["a", "b"]
    order.ended("b", True, False)
    assert taken(order) == []
    order.ended("a", True, False)
    assert taken(order) == ["student"]


def test_what_becomes_of_students_becomes_of_their_students():
    for cut, status, told in ((False, "failed", "did not finish"), (True, "interrupted", "was interrupted")):
        order = turns(job("a"), job("b", "a"), job("c", "b"), job("d"))
        assert taken(order) == ["a", "d"]
        order.ended("a", False, cut)
        assert list(order.orphans()) == [
            (job("b", "a"), status, f"its teacher cell a {told}"),
            (job("c", "b"), status, f"its teacher cell b {told}"),
        ]
        assert taken(order) == []
        assert not list(order.orphans())


def test_a_cell_that_was_lost_comes_again():
    order = turns(job("a", cost=1), job("b", cost=2), job("c", "b"))
    first = order.next()
    assert first is not None
    assert first.cell_id == "b"
    order.again(first)
    assert taken(order) == ["b", "a"]
    order.ended("b", True, False)
    assert taken(order) == ["c"]


def test_nothing_begins_after_clear():
    order = turns(job("a"), job("b", "a"), job("c"))
    order.next()
    order.clear()
    order.ended("a", True, False)
    assert taken(order) == []
    assert not list(order.orphans())
