"""Board folders and `kdbench leaderboard`."""

import json

import pytest
from click.testing import CliRunner
from factories import make_record, signed, write_run

from kdbench.cli.leaderboard import leaderboard
from kdbench.errors import KdbenchError, RecordError
from kdbench.leaderboard.folder import build_folder, check_folder, copy_records, read_info


def make_board(folder, n=3):
    records = folder / "records"
    records.mkdir(parents=True)
    for seed in range(n):
        record = signed(make_record(seed=seed, top1=70.0 + seed))
        (records / f"{record['cell_id']}.json").write_text(json.dumps(record))
    return folder


def run(*args):
    return CliRunner().invoke(leaderboard, [str(a) for a in args])


def test_build_then_check(tmp_path):
    board = make_board(tmp_path / "b")
    assert build_folder(board) == 3
    assert check_folder(board) == []


@pytest.mark.parametrize("name", ["README.md", "leaderboard.csv"])
def test_check_detects_one_changed_byte(tmp_path, name):
    board = make_board(tmp_path / "b")
    build_folder(board)
    data = bytearray((board / name).read_bytes())
    at = data.index(b"71")
    data[at + 1] = ord("2")
    (board / name).write_bytes(data)
    (problem,) = check_folder(board)
    line = data[:at].count(b"\n") + 1
    assert problem.startswith(f"{board / name}: line {line} ")


def test_check_detects_missing_and_longer_files(tmp_path):
    board = make_board(tmp_path / "b")
    build_folder(board)
    (board / "README.md").unlink()
    with (board / "leaderboard.csv").open("a") as file:
        file.write("x\n")
    problems = check_folder(board)
    assert len(problems) == 2
    assert any("README.md: missing" in p for p in problems)


def test_changed_record_is_found(tmp_path):
    board = make_board(tmp_path / "b")
    build_folder(board)
    path = sorted((board / "records").iterdir())[0]
    record = json.loads(path.read_text())
    record["deployables"]["student"]["last"]["top1"] = 99.0
    path.write_text(json.dumps(signed(record)))
    assert len(check_folder(board)) == 2


def _tamper(record):
    yield "identity", record | {"identity": record["identity"] | {"seed": 5}}
    yield "not those of the identity", record | {"labels": record["labels"] | {"seed": 5}}
    yield "not those of the identity", record | {"labels": record["labels"] | {"method": "x"}}
    yield "not those of the identity", record | {"protocol": 2}
    yield "name of the file", make_record(seed=77)
    yield "top1", make_record(deployables={"student": {"last": {"top1": float("inf")}}})


@pytest.mark.parametrize(("problem", "record"), list(_tamper(make_record())))
def test_tampered_records_are_found(tmp_path, problem, record):
    board = make_board(tmp_path / "b", n=1)
    build_folder(board)
    (path,) = (board / "records").iterdir()
    path.write_text(json.dumps(record))
    (line,) = check_folder(board)
    assert line.startswith(str(path))
    assert problem in line
    with pytest.raises(RecordError):
        build_folder(board)


def test_strange_files_and_links_are_found(tmp_path):
    board = make_board(tmp_path / "b", n=1)
    build_folder(board)
    (path,) = (board / "records").iterdir()
    secret = tmp_path / "secret.json"
    path.rename(secret)
    path.symlink_to(secret)
    (board / "records" / "note.txt").write_text("hello")
    problems = check_folder(board)
    assert len(problems) == 2
    assert any("link" in p for p in problems)


def test_board_yaml(tmp_path):
    board = make_board(tmp_path / "b")
    (board / "board.yaml").write_text("title: My board\ndescription: What it is.\n")
    build_folder(board)
    assert (board / "README.md").read_text().startswith("# My board\n\nWhat it is.\n")
    assert check_folder(board) == []


def test_notes_stand_under_the_tables(tmp_path):
    board = make_board(tmp_path / "b")
    (board / "board.yaml").write_text("notes: ['a *b* c', second]\n")
    build_folder(board)
    text = (board / "README.md").read_text()
    assert text.endswith("## Notes\n\n- a \\*b\\* c\n- second\n")
    assert check_folder(board) == []
    (board / "board.yaml").write_text("notes: [other]\n")
    assert len(check_folder(board)) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("notes: text\n", "notes: expected a list"),
        ("notes: [3]\n", "notes: expected a text of at most 1000"),
        (f"notes: [{'x' * 1001}]\n", "notes: expected a text of at most 1000"),
        ("titel: x\n", "did you mean 'title'"),
        ("title: 3\n", "title: expected a text"),
        ("[1, 2]\n", "expected the keys"),
        ("a: [\n", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is not allowed"),
        ("title: " + "x" * 300 + "\n", "at most 200"),
    ],
)
def test_broken_board_yaml(tmp_path, content, problem):
    board = make_board(tmp_path / "b")
    (board / "board.yaml").write_text(content)
    with pytest.raises(KdbenchError) as caught:
        read_info(board)
    assert "board.yaml" in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_copy_records_takes_every_status_and_refuses_broken_ones(tmp_path):
    records = [make_record(seed=0), make_record(seed=1, status="oom")]
    folder = write_run(tmp_path / "run", records)
    assert copy_records(folder, tmp_path / "b") == (2, 2)
    names = {p.stem for p in (tmp_path / "b" / "records").iterdir()}
    assert names == {r["cell_id"] for r in records}
    (folder / "cells" / records[0]["cell_id"] / "result.json").write_text("{")
    with pytest.raises(RecordError):
        copy_records(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "quickstart", [make_record(seed=s) for s in range(3)])
    result = run("build", "--from", "runs/quickstart")
    assert result.exit_code == 0, result.output
    board = tmp_path / "leaderboards" / "quickstart"
    assert (board / "README.md").exists()
    assert len(list((board / "curves").iterdir())) == 3
    assert "site: leaderboards/_site/index.html" in result.output
    assert (tmp_path / "leaderboards/_site/boards/quickstart/index.html").exists()
    make_board(tmp_path / "leaderboards" / "other")
    assert run("check").exit_code == 1
    result = run("build")
    assert result.exit_code == 0
    assert "other" in result.output
    result = run("check")
    assert (result.exit_code, result.output.count(": ok")) == (0, 2)
    assert run("check", "other").output == "leaderboards/other: ok\n"
    assert "did you mean 'other'" in str(run("check", "othe").exception)
    (tmp_path / "leaderboards" / "other" / "README.md").write_text("x")
    result = run("check", "leaderboards/other", "leaderboards/quickstart")
    assert result.exit_code == 1
    assert "leaderboards/other/README.md" in result.output


def test_unknown_board_and_no_boards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no boards" in str(run("check").exception)
    make_board(tmp_path / "leaderboards" / "cifar")
    assert "did you mean" in str(run("build", "leaderboards/cifa").exception)


def test_name_of_a_run_cannot_lead_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [make_record()], name="../../x")
    assert "cannot be a folder" in str(run("build", "--from", "run").exception)


def test_references_of_a_board(tmp_path):
    board = make_board(tmp_path / "b")
    for seed in range(3):
        record = signed(make_record(method="plain", teacher=None, seed=seed, top1=65.0 + seed**2))
        (board / "records" / f"{record['cell_id']}.json").write_text(json.dumps(record))
    (board / "board.yaml").write_text("references: [kd]\n")
    build_folder(board)
    assert "Minus kd, points" in (board / "README.md").read_text()
    assert check_folder(board) == []
    (board / "board.yaml").write_text("references: []\n")
    build_folder(board)
    assert "Minus kd, points" not in (board / "README.md").read_text()
    assert "Minus plain, points" in (board / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("references: kd", "references: expected a list of at most 8 texts"),
        ("references: [1]", "references: expected a text"),
        ("references: [kdd]", r"references: the records have no method 'kdd'.*'kd'"),
        ("refrences: [kd]", "did you mean 'references'"),
    ],
)
def test_wrong_references_are_told(tmp_path, text, problem):
    board = make_board(tmp_path / "b")
    (board / "board.yaml").write_text(text)
    with pytest.raises(KdbenchError, match=problem):
        build_folder(board)
