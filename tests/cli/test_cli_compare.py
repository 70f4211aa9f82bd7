"""``kdbench compare`` as a command: folders, tables, JSON, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from commands import error_line
from factories import make_record, write_run

ENV = {"device": "cpu", "threads": 1}


def run_folder(path, shift=0.0, status="done", **kw):
    tops = [72.0, 72.4, 71.8]
    made = [
        make_record(seed=s, top1=t + shift * (1 + s / 10), environment={**ENV, **kw})
        for s, t in enumerate(tops)
    ]
    if status != "done":
        made[0] = make_record(seed=0, status=status, environment=ENV)
    return write_run(path, made)


@pytest.fixture
def a(tmp_path):
    return run_folder(tmp_path / "a")


def test_equal_folders_give_code_0(kdbench, a):
    done = kdbench("compare", a, a)
    assert done.returncode == 0, done.stderr
    assert "~ +0.00 [+0.00, +0.00]" in done.stdout
    assert done.stdout.endswith("0 regression(s)\n")


def test_a_regression_gives_code_1_unless_tolerated(kdbench, a, tmp_path):
    b = run_folder(tmp_path / "b", shift=-2.0)
    done = kdbench.here("compare", a, b)
    assert done.returncode == 1
    assert "regression: digits" in done.stdout
    assert "top-1 -2.20 points" in done.stdout
    assert kdbench.here("compare", a, b, "--tolerance", 3).returncode == 0
    assert kdbench.here("compare", b, a).returncode == 0


def test_the_help_says_which_cells_count(kdbench):
    assert "a cell that is done in A and failed in B" in " ".join(
        kdbench.here("compare", "--help").stdout.split()
    )


def test_a_cell_that_broke_gives_code_1(kdbench, a, tmp_path):
    b = run_folder(tmp_path / "b", status="failed")
    done = kdbench.here("compare", a, b, "--tolerance", 99, "--ignore-speed")
    assert done.returncode == 1
    assert "seed 0: done in A, failed in B" in done.stdout


def test_json(kdbench, a, tmp_path):
    b = run_folder(tmp_path / "b", shift=-2.0, device_name="Other")
    done = kdbench.here("compare", a, b, "--json")
    content = json.loads(done.stdout)
    (line,) = content["lines"]
    assert line["accuracy"]["value"] == pytest.approx(-2.2)
    assert line["speeds"] == {}
    assert len(content["regressions"]) == 1
    assert done.returncode == 1


def test_a_board_and_its_folder_of_records(kdbench, a, tmp_path):
    board = tmp_path / "board"
    (board / "records").mkdir(parents=True)
    for path in (a / "cells").glob("*/result.json"):
        shutil.copy(path, board / "records" / f"{path.parent.name}.json")
    assert kdbench.here("compare", a, board).returncode == 0
    assert kdbench.here("compare", board / "records", a).returncode == 0


def test_bad_input_is_told_in_one_line(kdbench, a, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    assert "holds no records" in error_line(kdbench.here("compare", a, tmp_path / "empty"))
    for left, right in ((a, "nope"), (tmp_path / "x.json", "nope"), ("nope", a)):
        assert error_line(kdbench.here("compare", left, right)) == "nope: no such file or folder"
    assert "did you mean 'x.json'" in error_line(kdbench.here("compare", "y.json", "x.json"))
    (tmp_path / "d.csv").write_text("model,mode\n")
    line = error_line(kdbench.here("compare", "d.csv", "x.json"))
    assert line == "d.csv: not a speed sheet of `kdbench throughput` (expected the .json file of --out)"
    assert "expected two folders, or two files" in error_line(kdbench.here("compare", a, tmp_path / "x.json"))
    for text in ("{}", '{"seeds": 3}', "[]"):
        (tmp_path / "x.json").write_text(text)
        line = error_line(kdbench.here("compare", tmp_path / "x.json", tmp_path / "x.json"))
        assert line.endswith("not a speed sheet of `kdbench throughput` (expected the .json file of --out)")
    other = write_run(tmp_path / "o", [make_record(dataset="other")])
    line = error_line(kdbench.here("compare", a, other))
    assert "have nothing in common; A has digits" in line
    assert line.endswith("they differ in dataset.name digits and other")


def test_it_stays_light():
    code = (
        "import sys, kdbench.cli.compare, kdbench.leaderboard.compare, kdbench.leaderboard.compare_sheets;"
        "print(*[m for m in ('torch', 'timm', 'mlflow', 'pandas', 'numpy', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
