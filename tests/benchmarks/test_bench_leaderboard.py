"""Building a board from 10,000 records, validation included. Goal: 5 s."""

import json

import pytest
from factories import make_record, signed

from kdbench.leaderboard import render_board
from kdbench.leaderboard.folder import read_records

METHODS = 40
PAIRS = 50
SEEDS = 5


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    (folder / "records").mkdir()
    for method in range(METHODS):
        for pair in range(PAIRS):
            for seed in range(SEEDS):
                record = make_record(
                    method=f"method{method:02d}",
                    teacher=f"timm:teacher{pair % 10}" if method else None,
                    student=f"timm:student{pair}",
                    seed=seed,
                    top1=60.0 + method / 4 + seed / 10,
                    status="diverged" if (method + pair + seed) % 50 == 49 else "done",
                )
                (folder / "records" / f"{record['cell_id']}.json").write_text(json.dumps(signed(record)))
    return folder


def test_build_board_of_10000_records(benchmark, board):
    def build():
        return render_board(read_records(board), title="Large board")

    files = benchmark.pedantic(build, rounds=3, warmup_rounds=1)
    assert len(files["leaderboard.csv"].splitlines()) == 1 + METHODS * PAIRS
    if benchmark.enabled:
        assert benchmark.stats.stats.median < 5.0
