"""All statistics of a matrix of 30 methods, 13 pairs and 5 seeds. Goal: 5 s."""

import random

import pytest
from factories import make_record

from kdbench.leaderboard.board import make_board
from kdbench.results.schema import Record

METHODS, PAIRS, SEEDS = 30, 13, 5


@pytest.fixture(scope="module", params=[SEEDS, 10], ids=["5-seeds", "10-seeds"])
def records(request):
    """With ten seeds, intervals of differences are bootstraps."""
    rng = random.Random(0)
    return [
        Record.model_validate(
            make_record(
                method=f"method{method:02d}",
                teacher=f"timm:teacher{pair % 7}" if method else None,
                student=f"timm:student{pair}",
                seed=seed,
                top1=60.0 + method / 4 + rng.gauss(0, 0.3),
            )
        )
        for method in range(METHODS)
        for pair in range(PAIRS)
        for seed in range(request.param)
    ]


def test_statistics_of_30_methods_13_pairs(benchmark, records):
    def statistics():
        # the tables with their columns too: what is computed when it is asked for is asked for there
        board = make_board(records, title="T", references=["method01"])
        return board, [c.text(row) for s in board.sections for row in s.rows for c in s.shown]

    board, _ = benchmark.pedantic(statistics, rounds=3, warmup_rounds=1)
    assert board.overall.n == PAIRS
    assert board.overall.friedman.rejects
    assert board.overall.lines[0].iqm_low is not None
    assert board.sections[0].references == ["method00", "method01"]
    if benchmark.enabled:
        assert benchmark.stats.stats.median < 5.0
