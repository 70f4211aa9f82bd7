"""The time limit of a cell on a node."""

import pytest

from kdbench.hooks import WAITS
from kdbench_launchers import node
from kdbench_launchers.node import Cell, Limit


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(node.time, "monotonic", lambda: now[0])
    return now


def test_what_a_cell_waits_for_others_does_not_count(tmp_path, clock):
    mark = tmp_path / WAITS
    mark.touch()  # of an attempt that was killed
    limit = Limit(Cell("1" * 64, tmp_path, timeout_s=10))
    for second in range(1, 41):
        clock[0] = 100.0 + second
        if second == 6:
            mark.touch()
        if second == 36:
            mark.unlink()
        # five seconds, thirty of waiting, and five more: the limit itself is not over it
        assert not limit.over()
    clock[0] += 1
    assert limit.over()


def test_without_a_limit_it_is_never_over(tmp_path, clock):
    limit = Limit(Cell("1" * 64, tmp_path))
    clock[0] += 1e9
    assert not limit.over()
