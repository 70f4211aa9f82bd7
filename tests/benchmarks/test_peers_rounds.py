"""Rounds and figures of the comparison, with processes that only say what they are told to."""

import io
import json

import pytest
from click.testing import CliRunner
from peers import __main__ as command
from peers import rounds
from peers.contenders import CONTENDERS, Contender
from peers.rounds import ContenderFailed, measure
from peers.spec import PAIRS, spec_of
from peers.table import reference_of, rows_of, table_of
from rich.console import Console

SPEC = spec_of(PAIRS["test_vit3->test_vit"], images=128, epochs=2, workers=0)


@pytest.fixture
def order(monkeypatch):
    """Every contender is installed and takes its milliseconds a step, twice as long in the second round."""
    calls = []
    ms = {"kdbench": 10.0, "plain": 15.0, "torchdistill": 20.0, "timm": 18.0, "kdbench-bf16": 5.0}

    def child(spec, folder, name):
        assert {path.name for path in folder.iterdir()} == {"teacher.safetensors", "student.safetensors"}
        calls.append((name, spec.seed))
        step = ms[name] / 1e3 * (1 + sum(done == name for done, _ in calls[:-1]))
        epoch = {"seconds": 4 * step, "steps": 3, "between": [step, step]}
        first = {"seconds": 9.0, "steps": 3, "between": [3.0, 3.0]}
        top1 = 90.0 + spec.seed
        return {
            "epochs": [first, epoch, epoch],
            "top1": top1,
            "peak_mb": 100.0,
            "loaders_mb": 7.0,
            "others": 0.3 * len(calls),
        }

    monkeypatch.setattr(rounds, "_child", child)
    present = {name: Contender(one.summary, one.function) for name, one in CONTENDERS.items()}
    for module in (rounds, command):
        monkeypatch.setattr(module, "CONTENDERS", present)
    return calls


def test_figures(order, tmp_path):
    found = measure(SPEC, ["kdbench", "torchdistill"], tmp_path, seeds=[0, 3])
    assert order == [("kdbench", 0), ("torchdistill", 0), ("kdbench", 3), ("torchdistill", 3)]
    ours, theirs = rows_of(found, SPEC)
    # both rounds count, the first epoch does not
    assert (ours["step_ms"], ours["steps"]) == (pytest.approx(15.0), 8)
    assert ours["epoch_s"] == pytest.approx(0.06)
    assert ours["images_per_s"] == pytest.approx(64 * 3 / 0.06)
    assert [ours[key] for key in ("ratio", "ratio_min", "ratio_max", "epoch_ratio")] == pytest.approx(
        [2.0] * 4
    )
    assert theirs["ratio"] == 1.0
    assert ours["top1"] == [90.0, 93.0]
    assert (ours["peak_mb"], ours["loaders_mb"]) == (100.0, 7.0)


def test_a_missing_contender_says_how_to_get_it_and_the_others_run(order, tmp_path, monkeypatch):
    rounds.CONTENDERS["torchdistill"] = Contender("", "x:y", package="no_such_package_here")
    found = measure(SPEC, ["kdbench", "plain", "torchdistill"], tmp_path, seeds=[0])
    assert [name for name, _ in order] == ["kdbench", "plain"]
    rows = rows_of(found, SPEC)
    assert rows[2] == {"contender": "torchdistill", "missing": "not installed: pip install 'kdbench[peers]'"}
    assert reference_of(found).name == "plain"
    assert rows[0]["ratio"] == pytest.approx(1.5)
    console = Console(file=io.StringIO(), width=120)
    console.print(table_of(rows, "pair", "plain", accuracy=True))
    text = console.file.getvalue()
    for word in (
        "kdbench[peers]",
        "other processes kept up to 0.6 processors busy",
        "1.50 (1.50-1.50)",
        "x plain",
        "90.00",
    ):
        assert word in text


def test_one_time_of_a_step_has_no_spread(order, tmp_path):
    found = measure(SPEC, ["kdbench", "plain"], tmp_path, seeds=[0])
    for one in found.values():
        one.steps = [[one.steps[0][0]]]
    rows = rows_of(found, SPEC)
    assert (rows[0]["steps"], rows[0]["step_iqr_ms"]) == (1, None)
    console = Console(file=io.StringIO(), width=120)
    console.print(table_of(rows, "pair", "plain", accuracy=False))
    (line,) = (line for line in console.file.getvalue().splitlines() if "kdbench" in line)
    assert [cell.strip() for cell in line.split("│")[1:4]] == ["kdbench", "10.0", "-"]


def test_command_writes_the_figures(order, tmp_path):
    path = tmp_path / "figures.json"
    options = ["--pairs", "digits", "--harness", "kdbench,plain", "--rounds", "1", "--images", "128"]
    done = CliRunner().invoke(command.main, [*options, "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert "test_vit3->test_vit" in done.output
    content = json.loads(path.read_text())
    assert [one["spec"]["pair"] for one in content["pairs"]] == [
        "resnet10t->test_resnet",
        "test_vit3->test_vit",
    ]
    assert content["environment"]["threads"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--harness", "kdbench,timmm"], "no 'timmm' (did you mean 'timm'?); there are kdbench"),
        (["--pairs", "cifr"], "no 'cifr' (did you mean 'cifar'?); there are"),
        (["--pairs", "wrn"], "no 'wrn'; there are resnet10t->test_resnet"),
        (
            ["--images", "127"],
            "resnet10t->test_resnet: 127 images with --batch-size 64: expected 128 or more",
        ),
        (["--steps", "3", "--epochs", "3"], "--epochs and --steps exclude each other"),
    ],
)
def test_misuse(options, words):
    done = CliRunner().invoke(command.main, options)
    assert done.exit_code == 2
    assert words in done.output


def test_a_contender_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "_PROCESS", "peers.nothing")
    expected = r"^plain on test_vit3->test_vit ended with 1: .*No module named peers.nothing$"
    with pytest.raises(ContenderFailed, match=expected):
        measure(SPEC, ["plain"], tmp_path, seeds=[0])
