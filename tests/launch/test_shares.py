"""Workers, threads and reading processes for a number of cores."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.launch.shares import share_out


@pytest.mark.parametrize(
    ("cores", "asked", "expected"),
    [
        (8, {}, (8, 1, 0)),
        (8, {"threads": 2}, (4, 2, 0)),
        (8, {"threads": 3}, (2, 3, 1)),
        (8, {"workers": 2}, (2, 1, 3)),
        (8, {"workers": 1}, (1, 1, 4)),
        (1, {"threads": 1}, (1, 1, 0)),
        (16, {"gpus": 2}, (2, None, 4)),
        (16, {"gpus": 2, "slots_per_gpu": 3}, (6, None, 1)),
        (16, {"gpus": 1, "slots_per_gpu": 4, "workers": 2}, (2, None, 4)),
        (2, {"gpus": 4}, (4, None, 0)),
        (8, {"processes": 2}, (4, 1, 0)),
        (8, {"processes": 2, "threads": 2}, (2, 2, 0)),
        (8, {"processes": 2, "workers": 1}, (1, 1, 3)),
        (16, {"gpus": 8, "processes": 4}, (2, None, 1)),
        (16, {"gpus": 8, "processes": 3, "workers": 9}, (2, None, 1)),
    ],
)
def test_shares(cores: int, asked: dict[str, Any], expected: tuple[int, int | None, int]) -> None:
    shares = share_out(cores, jobs=100, **asked)
    assert (shares.workers, shares.threads, shares.loaders) == expected
    assert shares.warning is None


def test_one_cell_may_read_with_the_cores_that_are_free() -> None:
    shares = share_out(8, jobs=1)
    assert (shares.workers, shares.threads, shares.loaders) == (1, 1, 4)


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 16])
@pytest.mark.parametrize("jobs", [1, 2, 5, 40])
@pytest.mark.parametrize("threads", [None, 1, 2, 3])
def test_nothing_is_oversubscribed_unasked(cores: int, jobs: int, threads: int | None) -> None:
    shares = share_out(cores, jobs, threads=threads)
    assert shares.threads is not None
    if (threads or 1) <= cores:
        assert shares.workers * (shares.threads + shares.loaders) <= cores
        assert shares.warning is None


@pytest.mark.parametrize("asked", [{"workers": 4}, {"workers": 2, "threads": 2}, {"threads": 4}])
def test_more_than_the_cores_is_done_and_warned_of(asked: dict[str, int]) -> None:
    shares = share_out(2, jobs=100, **asked)
    assert shares.workers * (shares.threads or 1) > 2
    assert shares.loaders == 0
    assert shares.warning is not None
    assert f"{shares.workers} worker(s) with {shares.threads} thread(s) each" in shares.warning
    assert "2 core(s)" in shares.warning


def test_processes_of_a_cell_need_a_gpu_each() -> None:
    with pytest.raises(KdbenchError, match="--processes-per-cell 3: each process needs a GPU of its own"):
        share_out(16, jobs=1, gpus=2, processes=3)


def test_more_processes_than_cores_are_warned_of() -> None:
    warning = share_out(2, jobs=1, processes=4).warning
    assert warning is not None
    assert warning.startswith("1 worker(s) of 4 processes with 1 thread(s) each are more than the 2 core(s)")
