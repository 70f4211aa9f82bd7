"""A cell's clock runs in its own turns only, and counts what others did for it."""

from __future__ import annotations

import pytest
import torch

from kdbench.engine import clock as module
from kdbench.engine.clock import Clock, TurnClock

CPU = torch.device("cpu")


class FakeTime:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(module, "time", fake)
    return fake


def test_a_lone_cell_has_real_time(time: FakeTime) -> None:
    clock = Clock()
    before = clock()
    time.now += 3.0
    assert clock() - before == 3.0
    assert clock.take() == 0.0


def test_turns_of_others_do_not_count(time: FakeTime) -> None:
    mine, other = TurnClock(CPU), TurnClock(CPU)
    assert mine() == 0.0
    for k in range(3):
        mine.resume()
        time.now += 1.0
        assert mine() == k + 1.0
        mine.pause()
        other.resume()
        time.now += 10.0
        other.pause()
        assert mine() == k + 1.0
    assert other() == 30.0
    mine.pause()  # a second end of a turn is none
    assert mine() == 3.0


def test_what_others_did_counts_once_and_is_told_once(time: FakeTime) -> None:
    clock = TurnClock(CPU)
    clock.resume()
    clock.charge(0.5)
    time.now += 1.0
    clock.charge(0.25)
    assert clock() == 1.75
    assert clock.take() == 0.75
    assert clock.take() == 0.0
    clock.pause()
    assert clock() == 1.75


def test_on_a_gpu_a_turn_ends_when_the_device_is_done(
    time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize(device: torch.device) -> None:
        time.now += 2.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = TurnClock(torch.device("cuda"))
    clock.resume()
    time.now += 1.0
    clock.pause()
    assert clock() == 3.0
