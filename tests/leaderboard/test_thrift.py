"""Records that share their parts make the same board, in less memory."""

from factories import make_record

from kdbench.leaderboard import render_board
from kdbench.leaderboard.thrift import Thrift
from kdbench.results.store import validate_record


def records():
    made = [make_record(method=m, seed=s, top1=60.0 + s) for m in ("kd", "dkd") for s in range(3)]
    return [validate_record(r, "test") for r in made]


def test_board_is_the_same_and_parts_are_shared():
    plain, thrift = records(), Thrift()
    shared = [thrift(r) for r in records()]
    assert shared == plain
    assert render_board(shared, title="t") == render_board(plain, title="t")
    assert len({id(r.environment) for r in shared}) == 1
    assert len({id(r.identity["recipe"]) for r in shared}) == 1
    assert len({id(r.identity["method"]) for r in shared}) == 2
    assert [r.model_dump_json(exclude_unset=True) for r in shared] == [
        r.model_dump_json(exclude_unset=True) for r in plain
    ]
