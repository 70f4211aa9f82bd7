"""The order of starts and the time of the last end, with made-up costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.hooks import Job
from kdbench.launch.schedule import Order, chain_costs, finish, ordered


def job(name: str, cost: float, *after: str, **more: Any) -> Job:
    return Job(cell_id=name, folder=Path(name), label=name, after=after, cost=cost, **more)


def names(jobs: list[Job]) -> list[str]:
    return [j.cell_id for j in jobs]


def test_the_teacher_of_the_longest_chain_starts_first() -> None:
    jobs = [
        job("alone", 5.0),
        job("teacher-a", 1.0),
        job("teacher-b", 2.0),
        job("student-a", 7.0, "teacher-a"),
        job("student-b", 3.0, "teacher-b"),
    ]
    assert chain_costs(jobs) == {
        "alone": 5.0,
        "teacher-a": 8.0,
        "teacher-b": 5.0,
        "student-a": 7.0,
        "student-b": 3.0,
    }
    assert names(ordered(jobs)) == ["teacher-a", "student-a", "alone", "teacher-b", "student-b"]


def test_longest_first_and_equal_ones_in_their_order() -> None:
    jobs = [job("a", 1.0), job("b", 3.0), job("c", 1.0), job("d", 2.0)]
    assert names(ordered(jobs)) == ["b", "d", "a", "c"]


def test_chains_go_through_gangs() -> None:
    gang = job("x", 4.0, "teacher", gang=(job("x", 2.0, "teacher"), job("y", 2.0, "teacher")))
    last = job("last", 10.0, "y")
    assert chain_costs([job("teacher", 1.0), gang, last])["teacher"] == 15.0


def test_what_is_not_among_the_jobs_is_done() -> None:
    assert finish([job("student", 3.0, "done before")], {}, 1) == 3.0


@pytest.mark.parametrize(("workers", "expected"), [(1, 12.0), (2, 6.0), (9, 6.0)])
def test_finish(workers: int, expected: float) -> None:
    jobs = [job("teacher", 2.0), job("s1", 4.0, "teacher"), job("s2", 3.0, "teacher"), job("alone", 3.0)]
    assert finish(jobs, {}, workers) == expected


def test_finish_counts_what_is_left_of_running_jobs() -> None:
    jobs = [job("teacher", 20.0), job("student", 5.0, "teacher"), job("other", 1.0)]
    assert finish(jobs, {"teacher": 0.5}, 1) == 6.5
    assert finish(jobs, {"teacher": 0.5, "other": 9.0}, 2) == 9.0
    assert finish([], {}, 2) == 0.0


def test_longest_first_ends_sooner_than_shortest_first() -> None:
    jobs = [job(f"c{i}", cost) for i, cost in enumerate([1.0, 1.0, 1.0, 1.0, 4.0])]
    assert finish(jobs, {}, 2) == 4.0
    assert finish(jobs, {"c0": 1.0, "c1": 1.0}, 2) == 5.0  # two short ones had begun


def test_order_follows_costs_that_change_and_costs_little() -> None:
    now, calls, costs = [0.0], [0], {"a": 1.0, "b": 2.0}

    def cost(one: Job) -> float:
        calls[0] += 1
        now[0] += 0.01  # as if it took a hundredth of a second
        return costs[one.cell_id]

    order, jobs = Order(cost, clock=lambda: now[0]), [job("a", 0.0), job("b", 0.0)]
    order.renew(jobs)
    assert names(jobs) == ["b", "a"]
    costs["a"] = 3.0
    order.renew(jobs)  # too soon: it would eat the time that it is to save
    assert (names(jobs), calls[0]) == (["b", "a"], 2)
    now[0] += 1.01
    order.renew(jobs)
    assert names(jobs) == ["a", "b"]


def test_thousands_of_cells_are_no_burden() -> None:
    teachers = [job(f"t{i}", 1.0) for i in range(50)]
    students = [job(f"s{i}", 1.0 + i % 7, f"t{i % 50}") for i in range(5000)]
    jobs = [*students, *teachers]
    end = finish(jobs, {}, 8)
    total = sum(j.cost for j in jobs)
    assert total / 8 <= end <= total / 8 + 8.0
    assert finish([replace(j, after=()) for j in jobs], {}, 8) <= end
