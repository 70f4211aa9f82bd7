"""The search for a batch size, on contenders whose speed and needs are known."""

from __future__ import annotations

import time

import pytest
import torch

from kdbench.engine.speed import batch as search
from kdbench.engine.speed.batch import LARGEST, Found, find_batch
from kdbench.measure.rounds import Contender

CPU = torch.device("cpu")


@pytest.fixture
def find(monkeypatch):
    """Search where a batch takes `seconds(batch)` by a clock that only calls move."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(seconds, *, limit=None, need=lambda batch: 0, free=None, start=1):
        tried, dropped = [], []

        def make(batch):
            tried.append(batch)

            def call():
                if limit is not None and batch > limit:
                    raise torch.OutOfMemoryError("no")
                clock[0] += seconds(batch)

            return Contender(call)

        found = find_batch(make, lambda c, b: need(b), lambda: free, CPU, start=start, drop=dropped.append)
        assert dropped == tried
        return found, tried

    return run


def test_it_ends_where_speed_no_longer_rises(find):
    found, tried = find(lambda b: max(0.1, b * 0.01))
    # up to 10 images cost the same; 16 images are the fastest: 100 a second against 80 at 8
    assert found == Found(16, "speed")
    assert tried == [1, 2, 4, 8, 16, 32, 64]


def test_one_bad_moment_does_not_end_it(find):
    found, _ = find(lambda b: 0.5 if b == 4 else max(0.1, b * 0.01))
    assert found == Found(16, "speed")


def test_it_ends_at_out_of_memory_with_the_largest_that_fits(find):
    found, tried = find(lambda b: 0.1, limit=40)
    assert found == Found(32, "memory")
    assert tried[-1] == 64


def test_nothing_that_is_expected_not_to_fit_is_tried(find):
    # 100 bytes an image, 1000 free: 8 images would need 800 of at most 800 bytes, 16 would not fit
    found, tried = find(lambda b: 0.1, need=lambda b: 100 * b, free=1000)
    assert found == Found(8, "memory")
    assert tried == [1, 2, 4, 8]


def test_not_even_the_first_fits(find):
    assert find(lambda b: 0.1, limit=0)[0] == Found(None, "memory")


def test_there_is_a_largest(find):
    found, tried = find(lambda b: 0.1, start=2)
    assert found == Found(LARGEST, "limit")
    assert tried[0] == 2


def test_other_errors_are_raised():
    def make(batch):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        find_batch(make, lambda c, b: 0, lambda: None, CPU)


def test_the_threshold_is_five_percent(find):
    # over two doublings: 1.04 of the speed is not worth it, 1.06 is
    assert find(lambda b: b / (100 * 1.02 ** (b.bit_length() - 1)))[0] == Found(1, "speed")
    assert find(lambda b: b / (100 * 1.03 ** (b.bit_length() - 1)))[0] == Found(LARGEST, "limit")
    assert search.WORTH == 1.05
