"""Interleaving, blocks, drift, and contenders that fall out."""

from __future__ import annotations

import time

import pytest
import torch

from kdbench.measure.rounds import BLOCK_S, Contender, play, seconds_of, warm_up

CPU = torch.device("cpu")


def contender(name, log, seconds=0.0, **kwargs):
    def call():
        log.append(name)
        time.sleep(seconds)

    return Contender(call, **kwargs)


def test_a_block_lasts_long_enough_for_the_clock():
    log = []
    one = contender("a", log, 0.004)
    warm_up(one, CPU)
    assert len(log) >= 3
    assert 0.004 <= one.once_s < 0.02
    # sleeping takes a little longer than asked
    assert 2 <= one.calls <= 5
    assert one.calls * one.once_s >= BLOCK_S


def test_a_long_call_is_a_block_of_its_own_and_its_single_call_too():
    log = []
    one = contender("a", log, 0.03)
    warm_up(one, CPU)
    warm = len(log)
    play([one], rounds=2, max_seconds=10, device=CPU)
    assert one.calls == 1
    assert one.blocks == one.singles
    # two rounds and two repeated ones, each with an untimed call before
    assert len(log) - warm == 2 * (2 + 2)


def test_rounds_are_interleaved_and_entered():
    log = []
    a = contender("a", log, enter=lambda: log.append("enter a"))
    b = contender("b", log, enter=lambda: log.append("enter b"))
    done = []
    play([a, b], rounds=2, max_seconds=10, device=CPU, told=done.append)
    assert log == ["enter a", "a", "a", "enter b", "b", "b"] * 4
    assert done == [1, 2]
    assert len(a.blocks) == len(a.again) == 2


def test_a_block_counts_the_time_of_one_call():
    one = contender("a", [], 0.004)
    warm_up(one, CPU)
    play([one], rounds=3, max_seconds=10, device=CPU)
    assert all(0.004 <= seconds < 0.02 for seconds in one.blocks)


def test_a_slow_contender_sits_out_after_three_rounds():
    slow, fast = contender("s", [], 0.03), contender("f", [])
    play([slow, fast], rounds=10, max_seconds=0.05, device=CPU)
    assert len(slow.blocks) == 3
    assert len(fast.blocks) == 10


def test_drift_compares_the_first_rounds_with_their_repetition():
    one = Contender(lambda: None)
    assert one.drift is None
    one.blocks, one.again = [1.0, 2.0, 3.0, 90.0, 90.0], [2.2, 2.0, 9.0]
    assert one.drift == pytest.approx(0.1)


def test_a_machine_that_slows_down_is_seen():
    began = time.perf_counter()

    def call():
        time.sleep(0.02 if time.perf_counter() - began < 0.6 else 0.04)

    one = Contender(call)
    warm_up(one, CPU)
    play([one], rounds=20, max_seconds=10, device=CPU)
    assert one.drift > 0.5


def test_one_that_raises_is_out_and_the_others_go_on():
    def call():
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("broken")

    calls: list[int] = []
    bad, good = Contender(call), Contender(lambda: None)
    play([bad, good], rounds=5, max_seconds=10, device=CPU)
    assert str(bad.error) == "broken"
    assert len(bad.blocks) == 1
    assert bad.again == []
    assert (len(good.blocks), good.error) == (5, None)


def test_seconds_are_those_of_all_calls():
    assert seconds_of(lambda: time.sleep(0.01), 3, CPU) >= 0.03
