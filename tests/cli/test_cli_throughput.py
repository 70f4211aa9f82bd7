"""``kdbench throughput`` as a command."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from commands import error_line
from matrices import write_matrix

QUICK = ("--image-size", 32, "--num-classes", 10, "--rounds", 2, "--max-seconds", 0.2, "--device", "cpu")


def test_a_table_and_a_file(kdbench, tmp_path):
    out = tmp_path / "sheet.json"
    done = kdbench(
        *("throughput", "timm:test_resnet", "resnet20", "--batch-sizes", "1,2", "--precision", "fp32,bf16"),
        *(*QUICK, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert content["kind"] == "kdbench-speed"
    assert len(content["rows"]) == 8
    assert content["environment"]["threads"] == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["resnet20", "infer", "bf16", "2"] in [line[:4] for line in lines]
    assert "drift of the machine" in done.stdout


def test_timm_columns_and_training(kdbench, tmp_path):
    out = tmp_path / "timm.csv"
    done = kdbench.here(
        *("throughput", "timm:test_resnet", "--batch-sizes", 2, "--train", "--no-infer", *QUICK),
        *("--format", "timm-csv", "--out", out),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.read_text()
    (line,) = csv.DictReader(io.StringIO(done.stdout))
    assert line["model"] == "test_resnet"
    assert float(line["train_samples_per_sec"]) == pytest.approx(
        2e3 / float(line["train_step_time"]), rel=0.01
    )


def test_records_make_a_board(kdbench, tmp_path):
    done = kdbench.here("throughput", "timm:test_resnet", "--batch-sizes", 2, *QUICK, "--records", "speeds")
    assert done.returncode == 0, done.stderr
    assert "1 record(s) in speeds" in done.stderr
    built = kdbench.here("leaderboard", "build", "board", "--from", "speeds")
    assert built.returncode == 0, built.stderr
    assert kdbench.here("leaderboard", "check", "board").returncode == 0
    assert "Speed in fp32 on " in (tmp_path / "board" / "README.md").read_text()
    same = kdbench.here("compare", "speeds", "board")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "infer fp32 b2" in same.stdout


def test_a_matrix_of_speeds_is_the_same_product(kdbench, tmp_path):
    matrix = write_matrix(
        tmp_path / "m.yaml",
        name="speeds",
        datasets=[{"name": "synthetic", "args": {"num_classes": 10, "image_size": 32}}],
        pairs=None,
        teachers=[None],
        students=["timm:test_resnet"],
        methods=["vanilla"],
        throughput={"only": True, "batch_sizes": [2], "rounds": 2, "max_seconds": 0.1},
    )
    done = kdbench.run_here(matrix)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for mode in ("infer", "train"):
        assert ["timm:test_resnet", mode, "fp32", "2"] in [line[:4] for line in lines]
    assert "Speed in fp32 on " in (tmp_path / "runs" / "speeds" / "board" / "README.md").read_text()
    assert "nothing to do, 1 done" in kdbench.run_here(matrix).stdout
    again = kdbench.run_here(matrix, "--set", "throughput.batch_sizes=[4]", "--dry-run")
    assert "1 cell(s) would run" in again.stdout


def test_a_matrix_says_why_a_row_failed(kdbench, tmp_path):
    matrix = write_matrix(
        tmp_path / "m.yaml",
        name="speeds",
        datasets=[{"name": "synthetic", "args": {"num_classes": 10, "image_size": 32}}],
        pairs=None,
        teachers=[None],
        students=["timm:test_resnet"],
        methods=["vanilla"],
        throughput={
            "only": True,
            "modes": ["train"],
            "batch_sizes": [1, 2],
            "rounds": 2,
            "max_seconds": 0.1,
        },
    )
    done = kdbench.run_here(matrix)
    assert done.returncode == 0, done.stderr
    (reason,) = (line for line in done.stdout.splitlines() if ": failed: " in line)
    assert reason.startswith("warning: vanilla | timm:test_resnet | ")
    assert ": train, fp32, batch 1: failed: ValueError: " in reason
    assert reason in kdbench.run_here(matrix).stdout


def test_a_row_that_fails_is_shown_and_gives_code_1(kdbench):
    done = kdbench.here(
        "throughput", "timm:test_resnet", "--batch-sizes", "1,2", "--train", "--no-infer", *QUICK
    )
    assert done.returncode == 1
    assert "failed: timm:test_resnet, train, fp32, batch 1: ValueError" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["timm:resnt18"], "unknown architecture 'timm:resnt18' (did you mean 'timm:resnet18'"),
        (["resnet18"], "did you mean 'timm:resnet18'?"),
        (["timm:no_such_*"], "no architecture matches 'timm:no_such_*'"),
        (
            ["resnet20", "--precision", "bf61"],
            "--precision bf61: expected fp32, tf32, bf16, fp16 (did you mean 'bf16'?)",
        ),
        (["resnet20", "--batch-sizes", "1,x"], "--batch-sizes x: expected a number of images, or auto"),
        (["resnet20", "--batch-sizes", "1,,2"], "--batch-sizes '1,,2': an item is empty, expected a number"),
        (["resnet20", "--batch-sizes", ""], "--batch-sizes '': an item is empty"),
        (["resnet20", "--precision", "fp32,"], "--precision 'fp32,': an item is empty, expected fp32, tf32"),
        (["resnet20", "--device", "gpu"], "--device gpu: expected auto, cpu or cuda"),
        (["resnet20", "--no-infer"], "nothing to measure"),
        (["resnet20", "--out", "x.txt"], "--out x.txt: expected a name that ends in .json or .csv"),
        (["resnet20", "--out", "no/x.csv"], "--out no/x.csv: the folder no does not exist"),
        (["resnet20", "--device", "cpu", "--precision", "tf32"], "--precision: tf32 needs a CUDA device"),
    ],
)
def test_bad_input_is_told_in_one_line(kdbench, arguments, expected):
    assert expected in error_line(kdbench.here("throughput", *arguments))


def test_a_tag_of_weights_is_part_of_a_name():
    from kdbench.cli.throughput import _resolve
    from kdbench.registry import Registry

    registry = Registry.load()
    names = ("timm:resnet18.a1_in1k", "resnet20", "resnet20", "timm:test_res*")
    assert _resolve(registry, names) == ["timm:resnet18.a1_in1k", "resnet20", "timm:test_resnet"]


def test_the_command_itself_stays_light():
    code = (
        "import sys, kdbench.cli.throughput, kdbench.launch.speed, kdbench.results.timm_csv;"
        "print(*[m for m in ('torch', 'timm', 'mlflow', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
