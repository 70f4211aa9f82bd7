"""``kdbench run-matrix`` and bad input: one line, exit code 2, nothing finished touched."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import Command, by_variant, done_files, error_line, records
from matrices import DIGITS, STUDENT, TEACHER, write_matrix
from PIL import Image

from kdbench.cli import main
from kdbench.cli.run_matrix import _again as again
from kdbench.measure.cores import cores
from kdbench.results.lease import Lease


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of the matrix 'bad': (folder, its finished records)."""
    folder = tmp_path_factory.mktemp("finished")
    done = Command(folder).run(write_matrix(folder / "good.yaml", name="bad", methods=["vanilla"]))
    assert done.returncode == 0, done.stderr
    kept = done_files(folder / "runs" / "bad")
    assert len(kept) == 1
    return folder, kept


@pytest.fixture
def refused(finished, tmp_path, monkeypatch, capfd):
    """Run the matrix 'bad' with other keys in this process, and return the line of its error."""
    folder, kept = finished
    monkeypatch.chdir(folder)

    def run(*arguments, **overrides):
        path = write_matrix(tmp_path / "bad.yaml", **{"name": "bad", **overrides})
        line = ["run-matrix", str(path), "--sink", "none", *arguments]
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(line, prog_name="kdbench")
        out, err = capfd.readouterr()
        line = error_line(subprocess.CompletedProcess(line, ended.value.code, out, err))
        assert done_files(folder / "runs" / "bad") == kept
        return line

    return run


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"methods": ["kdd"]}, ["bad.yaml:", "'kdd'", "did you mean", "'kd'"]),
        ({"methods": ["vanila"]}, ["bad.yaml:", "'vanilla'"]),
        ({"pairs": [{"teacher": "timm:test_resnett", "student": STUDENT}]}, ["bad.yaml:7:", "'test_resnet'"]),
        ({"pairs": [{"teacher": "resnet21", "student": STUDENT}]}, ["bad.yaml:", "'resnet20'"]),
        ({"datasets": ["digit"]}, ["bad.yaml:", "'digits'"]),
        ({"task": "clasification"}, ["bad.yaml:", "'classification'"]),
        ({"evaluators": ["teacher-agrement"]}, ["bad.yaml:", "'teacher-agreement'"]),
        ({"recipe": "quik"}, ["bad.yaml:", "'quick'"]),
        ({"method": ["kd"]}, ["bad.yaml:", "'method'", "'methods'"]),
        ({"recipe": {"base": "quick", "epoch": 2}}, ["bad.yaml:", "'epochs'"]),
        ({"recipe": {"base": "quick", "epochs": "many"}}, ["bad.yaml:", "epochs"]),
        ({"seeds": "three"}, ["bad.yaml:", "seeds", "integer"]),
        ({"seeds": [0, 1.5]}, ["bad.yaml:", "seeds"]),
        ({"seeds": [0, "one"]}, ["bad.yaml:", "seeds"]),
        ({"methods": [{"name": "kd", "params": {"alhpa": 1.0}}]}, ["bad.yaml:", "alhpa", "'alpha'"]),
        (
            {"methods": [{"name": "kd", "params": {"temperature": 0}}]},
            ["bad.yaml:", "temperature", "greater"],
        ),
        ({"methods": [{"name": "kd", "params": {"alpha": "much"}}]}, ["bad.yaml:", "alpha"]),
        ({"methods": [{"name": "kd", "preset": "cifar10"}]}, ["bad.yaml:", "'cifar10'", "'cifar100'"]),
        ({"datasets": [{"name": "digits", "args": {"size": 16}}]}, ["bad.yaml:", "size"]),
        ({"pairs": [{"teacher": TEACHER, "student": {"name": STUDENT, "args": {"depht": 3}}}]}, ["depht"]),
    ],
)
def test_bad_matrix(refused, overrides, expected):
    line = refused(**overrides)
    for text in expected:
        assert text in line


def test_line_number_is_that_of_the_item(finished, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\n"
        "datasets: [digits]\n"
        "pairs:\n"
        f'  - {{teacher: "{TEACHER}", student: "{STUDENT}"}}\n'
        "methods:\n"
        "  - vanilla\n"
        "  - kdd\n"
        "seeds: 1\n"
        "recipe: quick\n"
    )
    line = error_line(Command(finished[0]).run_here(path))
    assert line.startswith(f"{path}:7:")


def test_several_problems_are_listed_each_on_its_line(finished, tmp_path):
    path = write_matrix(tmp_path / "bad.yaml", name="bad", seeds="x", methodes=["kd"], task=3)
    done = Command(finished[0]).run_here(path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("kdbench: error: ")
    assert len(lines) >= 3
    for key in ("seeds", "methodes", "task"):
        assert any(key in line and f"{path}:" in line for line in lines)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "name: [unclosed\n", "name: \x00\n"])
def test_not_a_matrix(finished, tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert str(path) in error_line(Command(finished[0]).run_here(path))


def test_missing_matrix(finished):
    assert "'quickstart'" in error_line(Command(finished[0]).run_here(Path("quickstrat")))
    assert "nowhere.yaml" in error_line(Command(finished[0]).run_here(Path("nowhere.yaml")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "methd=kd"], ["methd", "method"]),
        (["--only", "method=kd2"], ["'kd'"]),
        (["--set", "recipe.epoch=3"], ["epoch", "epochs"]),
        (["--set", "seeds=x"], ["seeds"]),
        (["--device", "cpuu"], ["cpuu", "'cpu'"]),
        (["--launcher", "locl"], ["'local'"]),
        (["--sink", "mlfow"], ["'mlflow'"]),
    ],
)
def test_bad_options(refused, arguments, expected):
    line = refused(*arguments)
    for text in expected:
        assert text in line


def test_cuda_without_cuda(finished, tmp_path):
    path = write_matrix(tmp_path / "bad.yaml", name="bad")
    line = error_line(Command(finished[0]).run(path, "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""}))
    assert "--device cuda" in line
    assert "no usable CUDA device" in line
    assert done_files(finished[0] / "runs" / "bad") == finished[1]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path):
    """An image folder of two classes."""
    root = tmp_path / "images"
    for number, label in enumerate(("cat", "dog")):
        for k in range(8):
            picture(root / "train" / label / f"{k}.png", 10 * number + k)
            picture(root / "test" / label / f"{k}.png", 100 + 10 * number + k)
    return root


def folder_dataset(root):
    return [{"name": "image-folder", "args": {"root": str(root)}}]


@pytest.mark.parametrize("case", ["missing", "empty", "no images", "class only in test", "no test"])
def test_bad_image_folder(refused, images, case):
    if case == "missing":
        shutil.rmtree(images)
    if case == "empty":
        shutil.rmtree(images / "train")
    if case == "no images":
        for path in images.glob("train/*/*.png"):
            path.unlink()
    if case == "class only in test":
        picture(images / "test" / "emu" / "0.png", 1)
    if case == "no test":
        shutil.rmtree(images / "test")
    line = refused(datasets=folder_dataset(images))
    assert str(images) in line
    if case == "class only in test":
        assert "'emu'" in line


@pytest.mark.e2e
def test_corrupt_image_is_named(kdbench, tiny_matrix, images):
    bad = images / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    path = tiny_matrix("images", datasets=folder_dataset(images), methods=["vanilla"])
    done = kdbench.run_here(path, "--set", "recipe.batch_size=4")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert str(bad) in done.stdout + done.stderr
    # the image is mended: the same run goes to its end, in a process that has not looked at the images yet
    picture(bad, 13)
    again = kdbench.run(path, "--set", "recipe.batch_size=4", "--rerun", "failed")
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.parametrize("what", ["runs", "run"])
def test_unwritable_run_folder(tmp_path, what):
    """A file stands where the folder should be; this also holds for root, whom permissions do not stop."""
    runs = tmp_path / "runs"
    if what == "run":
        runs.mkdir()
    target = runs if what == "runs" else runs / "tiny"
    target.write_text("a file")
    arguments = ("--runs", runs) if what == "run" else ()
    line = error_line(Command(tmp_path).run_here(write_matrix(tmp_path / "tiny.yaml"), *arguments))
    assert str(target.relative_to(tmp_path)) in line
    assert target.read_text() == "a file"


@pytest.mark.e2e
def test_full_disk(tmp_path):
    """A small file system that fills up before the first file, then in the middle of the run."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(runs)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        path = write_matrix(tmp_path / "full.yaml", name="full", methods=["vanilla", "kd"])
        for larger in ("700k", "64m"):
            full = Command(tmp_path).run(path)
            assert full.returncode == 2, full.stdout + full.stderr
            line = full.stderr.splitlines()[-1]
            assert line.startswith("kdbench: error: ")
            assert "No space left on device" in line
            assert "Traceback" not in full.stderr
            kept = done_files(runs / "full")
            for data in kept.values():
                json.loads(data)
            assert not list(runs.rglob("*.tmp"))
            subprocess.run(["mount", "-o", f"remount,size={larger}", str(runs)], check=True)
        done = Command(tmp_path).run_here(path)
        assert done.returncode == 0, done.stdout + done.stderr
        after = done_files(runs / "full")
        assert {name: after[name] for name in kept} == kept
        assert len(after) == 3
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_needs_that_fail_are_not_applicable(kdbench, tiny_matrix):
    """A ViT's blocks end in no activation, and a pair without teacher has none: reasons, not errors."""
    pairs = [{"teacher": "timm:test_vit", "student": STUDENT}, {"teacher": None, "student": STUDENT}]
    path = tiny_matrix("needs", methods=["vanilla", "ab", "kd"], pairs=pairs)
    plan = kdbench.run_here(path, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    reasons = [line for line in plan.stdout.splitlines() if line.startswith("not applicable: ")]
    assert len(reasons) == 3
    assert any("ab | timm:test_vit" in line and "activation" in line for line in reasons)
    assert sum("the pair has none" in line for line in reasons) == 2
    lines = plan.stdout.splitlines()
    assert "3 cell(s) would run" in lines
    assert lines[-1] == "expected time: unknown before the first cells"
    assert not (kdbench.cwd / "runs").exists()


def test_not_applicable_cells_are_on_record(kdbench, tiny_matrix):
    path = tiny_matrix("mixed", methods=["vanilla", "kd"], pairs=[{"teacher": None, "student": STUDENT}])
    done = kdbench.run_here(path)
    assert done.returncode == 0, done.stderr
    found = by_variant(kdbench.cwd / "runs" / "mixed")
    assert {v: r["status"] for v, r in found.items()} == {"vanilla": "done", "kd": "not_applicable"}
    assert "the pair has none" in found["kd"]["error"]["message"]
    again = kdbench.run_here(path)
    assert again.returncode == 0
    assert "nothing to do, 1 done, 1 not_applicable" in again.stdout


def test_dry_run_counts(finished, tmp_path):
    folder, kept = finished
    path = write_matrix(tmp_path / "bad.yaml", name="bad", methods=["vanilla", "kd"])
    plan = Command(folder).run_here(path, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "3 cells, 1 done, 2 to run" in " ".join(plan.stdout.split())
    assert "2 cell(s) would run" in plan.stdout
    assert re.search(r"^expected time: \d+:\d\d with 1 worker\(s\)$", plan.stdout, re.M)
    everything = Command(folder).run_here(path, "--dry-run", "--rerun", "all")
    assert "3 cell(s) would run" in everything.stdout
    only = Command(folder).run_here(path, "--dry-run", "--only", "method=vanilla")
    assert "0 cell(s) would run" in only.stdout
    assert "expected time" not in only.stdout
    assert done_files(folder / "runs" / "bad") == kept


def test_a_run_that_another_process_has_is_refused_before_planning(refused, finished, monkeypatch):
    lease = Lease(finished[0] / "runs" / "bad")
    assert lease.take()
    monkeypatch.setattr("kdbench.launch.plan.Planner.plan", lambda *_: pytest.fail("a plan was made"))
    told = "runs/bad: another kdbench is running this matrix (process"
    assert told in refused(methods=["vanilla"])
    monkeypatch.undo()
    lease.close()


def test_other_limits_are_other_cells(finished, tmp_path):
    path = write_matrix(
        tmp_path / "bad.yaml", name="bad", methods=["vanilla"], datasets=[{**DIGITS, "limit_test": 32}]
    )
    plan = Command(finished[0]).run_here(path, "--dry-run")
    assert "1 cell(s) would run" in plan.stdout


def test_damaged_record_is_set_aside(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (record,) = folder.glob("runs/bad/cells/*/result.json")
    record.write_text("{broken")
    path = write_matrix(tmp_path / "bad.yaml", name="bad", methods=["vanilla"])
    dry = Command(folder).run_here(path, "--dry-run")
    assert re.search("^note: vanilla .*: not JSON: .*; it would be put aside", dry.stdout, re.M)
    done = Command(folder).run_here(path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = "its record cannot be read: runs/bad/cells/.*: not JSON: .*; it is put aside as previous/"
    assert len(re.findall(f"^note: vanilla .*: {told}", done.stderr, re.M)) == 1
    (new,) = records(folder / "runs" / "bad").values()
    (old,) = [json.loads(data) for data in finished[1].values()]
    assert new["weights_sha256"] == old["weights_sha256"]
    assert (record.parent / "previous" / "result-1.json").read_text() == "{broken"


@pytest.mark.parametrize("value", ["atuo", "0", "17"])
def test_slots_per_gpu_that_cannot_be(kdbench, tiny_matrix, value):
    refused = kdbench.run_here(tiny_matrix("slots"), "--dry-run", "--slots-per-gpu", value)
    assert refused.returncode == 2
    assert f"--slots-per-gpu {value}: expected auto or a number of cells from 1 to 16" in refused.stderr


def test_more_threads_than_cores_are_warned_of(kdbench, tiny_matrix):
    path = tiny_matrix("threads", methods=["vanilla"])
    threads = cores() + 1
    done = kdbench.run_here(path, "--threads", threads)
    assert done.returncode == 0, done.stderr
    assert f"warning: 1 worker(s) with {threads} thread(s) each are more than the" in done.stderr
    record = by_variant(kdbench.cwd / "runs" / "threads")["vanilla"]
    assert record["environment"]["threads"] == threads


@pytest.mark.parametrize("rerun", [(), ("--rerun", "failed"), ("--rerun=all",)])
def test_the_command_that_goes_on_runs_nothing_again(monkeypatch, rerun):
    monkeypatch.setattr("sys.argv", ["kdbench", "run-matrix", "a b.yaml", *rerun, "--workers", "1"])
    assert again() == "kdbench run-matrix 'a b.yaml' --workers 1"
