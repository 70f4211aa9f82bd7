"""`kdbench submit`: what is refused, what changes, and that twice is once."""

import json

import pytest
from click.testing import CliRunner
from factories import make_record, signed, write_run

from kdbench.cli.leaderboard import leaderboard
from kdbench.cli.submit import submit
from kdbench.errors import KdbenchError, RecordError
from kdbench.leaderboard import render_board
from kdbench.leaderboard.folder import build_folder, check_folder
from kdbench.leaderboard.submit import plan_submission
from kdbench.leaderboard.submit import submit as write
from kdbench.results.schema import Record


def records(n=3, **more):
    return [signed(make_record(seed=s, top1=70.0 + s, **more)) for s in range(n)]


def run(*args):
    return CliRunner().invoke(submit, [str(a) for a in args])


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def board(tmp_path):
    folder = tmp_path / "board"
    write(plan_submission(write_run(tmp_path / "first", records()), folder))
    return folder


def test_a_new_board_is_made_and_passes_the_check(board):
    assert check_folder(board) == []
    assert len(list((board / "records").iterdir())) == 3


def test_submitting_twice_changes_nothing(tmp_path, board):
    before = files(board)
    plan = plan_submission(tmp_path / "first", board)
    assert (len(plan.same), plan.added, plan.replacing, plan.changes) == (3, (), (), ())
    write(plan)
    assert files(board) == before


def test_the_table_is_told_as_a_diff(tmp_path, board):
    more = [*records(4), *[signed(make_record(method="ab", seed=s, top1=80.0 + s)) for s in range(3)]]
    result = run(write_run(tmp_path / "second", more), "--board", board, "--dry-run")
    assert result.exit_code == 0, result.output
    title, *lines = result.output.splitlines()
    assert title.startswith("timm:test_resnet → timm:test_efficientnet · digits · quick")
    assert lines[:2] == [
        "  + ab: 81.00 ± 1.00 (3/3 seeds), rank 1",
        "  ~ kd: 71.00 ± 1.00 (3/3 seeds), rank 1 -> 71.50 ± 1.29 (4/4 seeds), rank 2",
    ]
    assert lines[2].endswith("4 new, 0 other results, 3 there already; nothing written")
    assert len(list((board / "records").iterdir())) == 3


def test_another_result_needs_to_be_asked_for(tmp_path, board):
    other = [signed(make_record(seed=0, top1=60.0))]
    again = write_run(tmp_path / "second", other)
    before = files(board)
    result = run(again, "--board", board)
    assert "--replace puts the new in their place" in str(result.exception)
    assert "seed 0: 70.00 % (done, 2026-01-02T03:05:05+00:00) -> 60.00 %" in result.output
    assert files(board) == before
    result = run(again, "--board", board, "--replace")
    assert result.exit_code == 0, result.output
    assert "~ kd: 71.00 ± 1.00 (3/3 seeds), rank 1 -> 67.67 ± 6.66 (3/3 seeds), rank 1" in result.output
    assert check_folder(board) == []
    assert json.loads((board / "records" / f"{other[0]['cell_id']}.json").read_text()) == other[0]


def edited():
    return {**signed(make_record()), "weights_sha256": "1" * 64}


def with_nan():
    record = make_record()
    record["deployables"]["student"]["last"]["top1"] = float("nan")
    return record


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (edited(), "edited after it was written"),
        (make_record(), "carries no content_sha256"),
        (with_nan(), "top1"),
        (signed(make_record() | {"identity": {}}), "not the sha256 of the identity"),
    ],
)
def test_records_that_are_refused(tmp_path, board, record, problem):
    before = files(board)
    folder = write_run(tmp_path / "second", [signed(make_record(seed=9)), record])
    with pytest.raises(RecordError, match=problem) as caught:
        plan_submission(folder, board)
    assert "\n" not in str(caught.value)
    assert files(board) == before


def other_revision(seed=5):
    record = make_record(seed=seed)
    identity = json.loads(json.dumps(record["identity"]))
    identity["dataset"]["revision"] = "1797-2"
    from kdbench.matrix.identity import cell_id

    return signed(record | {"identity": identity, "cell_id": cell_id(identity)})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (signed(make_record(seed=5, protocol=2)), "two protocols, 1 and 2"),
        (other_revision(), "two revisions of the data set 'digits', 1797-1 and 1797-2"),
    ],
)
def test_mixed_protocols_and_revisions_are_refused_and_never_ranked_together(tmp_path, record, problem):
    mixed = [*records(), record]
    folder = tmp_path / "board"
    with pytest.raises(KdbenchError, match=problem):
        plan_submission(write_run(tmp_path / "both", mixed), folder)
    assert not folder.exists()
    (folder / "records").mkdir(parents=True)
    for one in mixed:
        (folder / "records" / f"{one['cell_id']}.json").write_text(json.dumps(one))
    assert problem in check_folder(folder)[0]
    with pytest.raises(KdbenchError, match=problem):
        build_folder(folder)
    page = render_board([Record.model_validate(r) for r in mixed], title="x")["README.md"].decode()
    assert page.count("\n## timm:test\\_resnet") == 2


def test_a_record_whose_digest_was_taken_out_is_refused_by_boards(tmp_path, board):
    path = sorted((board / "records").iterdir())[0]
    record = json.loads(path.read_text())
    record["deployables"]["student"]["last"]["top1"] = 99.0
    del record["content_sha256"]
    path.write_text(json.dumps(record))
    (problem,) = check_folder(board)
    assert problem.startswith(f"{path}: carries no content_sha256")
    for refused in (build_folder, lambda b: plan_submission(tmp_path / "first", b)):
        with pytest.raises(RecordError, match="carries no content_sha256"):
            refused(board)


def test_old_records_get_a_digest_when_they_enter_a_board(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = signed(make_record(seed=1))
    run = write_run(tmp_path / "run", [make_record(), new], name="q")
    result = CliRunner().invoke(leaderboard, ["build", "--from", "run"])
    assert result.exit_code == 0, result.output
    assert "2 records copied from run; 1 had no digest of their content and were given it" in result.output
    assert CliRunner().invoke(leaderboard, ["check"]).exit_code == 0
    for name, there in ((make_record()["cell_id"], False), (new["cell_id"], True)):
        copied = tmp_path / "leaderboards" / "q" / "records" / f"{name}.json"
        same = copied.read_bytes() == (run / "cells" / name / "result.json").read_bytes()
        assert same == there
        assert json.loads(copied.read_text())["content_sha256"]


def test_the_board_is_named_after_the_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", records(1), name="quickstart")
    assert run("run").exit_code == 0
    assert run("run", "--board", "mine").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "leaderboards").iterdir()) == ["mine", "quickstart"]
    assert "cannot be a folder" in str(run("run", "--board", "..mine").exception)
