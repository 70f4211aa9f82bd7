"""Two workers of one thread against one worker of two threads, through the real launcher. Goal: 1.3 times as fast.

The same cells in both, in rounds that take turns, so that what else the machine does hits both alike. Both leave
the same records; the fork server is up before the first round.
"""

import statistics

import pytest
from matrix_runs import run

from kdbench.measure.cores import cores

ROUNDS = 3
CELLS = {
    "name": "workers",
    "datasets": [{"name": "digits", "limit_train": 320, "limit_test": 200}],
    "pairs": [
        {"teacher": None, "student": "timm:test_resnet"},
        {"teacher": None, "student": "timm:test_efficientnet"},
        {"teacher": None, "student": "timm:test_vit"},
    ],
    "methods": ["vanilla"],
    "seeds": 2,
    "recipe": {"base": "quick", "epochs": 3},
    "gang": "off",
}


@pytest.mark.timeout(1800)  # threads that wait for a busy core's make it slow beyond measure
@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_two_workers_of_one_thread_against_one_of_two(benchmark, tmp_path, monkeypatch):
    small = {**CELLS, "seeds": 1, "recipe": {"base": "quick", "epochs": 1}}
    run(tmp_path / "warm", monkeypatch, small, workers=2)
    walls = {(2, 1): [], (1, 2): []}

    def go():
        for k in range(ROUNDS):
            for workers, threads in walls if k % 2 else reversed(walls):
                folder = tmp_path / f"{k}-{workers}x{threads}"
                times, _ = run(folder, monkeypatch, CELLS, workers=workers, threads=threads)
                walls[workers, threads].append(times.wall_s)

    benchmark.pedantic(go, rounds=1)
    ratios = [one / two for two, one in zip(walls[2, 1], walls[1, 2], strict=True)]
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {
        "ratio": ratio,
        "two_workers_s": statistics.median(walls[2, 1]),
        "two_threads_s": statistics.median(walls[1, 2]),
    }
    print(
        f"\n2 workers x 1 thread: {ratio:.2f} times as fast as 1 x 2 "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {ROUNDS} rounds)"
    )
    # the goal is 1.3; the bound leaves room for a machine that is busy
    assert ratio > 1.1
