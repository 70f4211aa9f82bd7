"""Every first method in one small real cell; prepared cells; teachers from files."""

import json
import shutil

import pytest
from commands import by_variant, done_files, error_line, records
from matrices import DIGITS, RECIPE, TEACHER

pytestmark = pytest.mark.e2e

METHODS = [
    "vanilla",
    "kd",
    "dkd",
    "fitnet",
    "ab",
    "ofd",
    "feed",
    {"name": "feed", "preset": "sequential", "params": {"generations": 2}, "label": "feed-seq"},
    "ffl",
    {"name": "dfad", "preset": "check"},
    {"name": "rco", "params": {"anchors": 2}, "label": "rco"},
]


@pytest.fixture(scope="module")
def all_methods(tmp_path_factory):
    """A run of all methods: (matrix, run folder, the finished command)."""
    from commands import Command
    from matrices import write_matrix

    folder = tmp_path_factory.mktemp("methods")
    matrix = write_matrix(
        folder / "methods.yaml",
        name="methods",
        methods=METHODS,
        evaluators=["teacher-agreement"],
        throughput={"batch_sizes": [1, 8], "rounds": 3},
    )
    return matrix, folder / "runs" / "methods", Command(folder).run(matrix)


def test_all_done(all_methods):
    _, run, done = all_methods
    assert done.returncode == 0, done.stdout + done.stderr
    found = by_variant(run)
    assert len(found) == len(METHODS)
    for record in found.values():
        assert record["status"] == "done"
        assert 0 <= record["deployables"][record["primary"]]["last"]["top1"] <= 100
        assert record["cost"]["epochs"] == RECIPE["epochs"]
    assert len({r["weights_sha256"] for r in found.values()}) == len(METHODS)


def test_deployables(all_methods):
    found = by_variant(all_methods[1])
    names = {variant: list(r["deployables"]) for variant, r in found.items()}
    assert set(names.pop("ffl")) == {"student", "sub2", "fused", "ensemble"}
    assert set(names.pop("feed-seq")) == {"student", "gen1"}
    assert set(map(tuple, names.values())) == {("student",)}
    for record in found.values():
        # every deployable is timed at every batch size, with images/s and latency that agree
        assert set(record["throughput"]) == set(record["deployables"])
        for sizes in record["throughput"].values():
            assert set(sizes) == {"1", "8"}
            for size, speed in sizes.items():
                assert speed["latency_ms_p50"] <= speed["latency_ms_p95"]
                assert speed["images_per_s"] == pytest.approx(
                    int(size) / speed["latency_ms_p50"] * 1e3, rel=1.0
                )
    fused = found["ffl"]["deployables"]
    assert fused["fused"]["params"] > fused["student"]["params"]
    # what is deployed has no connector, generator or peer in it
    assert {r["deployables"]["student"]["params"] for r in found.values()} == {fused["student"]["params"]}


def test_teachers_and_route(all_methods):
    _, run, _ = all_methods
    found = by_variant(run)
    teachers = [r for r in records(run).values() if r["labels"]["role"] == "teacher"]
    assert sorted(r["labels"]["seed"] for r in teachers) == [0, 1]
    assert len(found["feed"]["teachers"]) == 2
    assert {t["ref"] for t in found["feed"]["teachers"]} == {r["cell_id"] for r in teachers}
    assert [len(found[v]["teachers"]) for v in ("vanilla", "ffl", "feed-seq", "rco", "kd")] == [0, 0, 1, 1, 1]
    route = sorted(p.name for p in run.glob("cells/*/route/*"))
    assert route == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    (folder,) = {p.parent.parent.name for p in run.glob("cells/*/route/*")}
    assert folder == found["rco"]["teachers"][0]["ref"]
    # the last point of the route is the teacher itself
    last = (run / "cells" / folder / "route" / "epoch-0002.safetensors").read_bytes()
    assert last == (run / "cells" / folder / "model.safetensors").read_bytes()


def test_phases_and_extra_parameters(all_methods):
    found = by_variant(all_methods[1])
    extra = {variant: r["cost"]["extra_params"] for variant, r in found.items()}
    dfad = next(v for v in found if v.startswith("dfad"))
    assert all(extra[v] > 0 for v in ("fitnet", "ab", "ofd", "feed", "ffl", dfad))
    assert [extra[v] for v in ("vanilla", "kd", "dkd", "rco")] == [0] * 4
    run = all_methods[1]
    phases = {
        v: [json.loads(line)["phase"] for line in (run / "cells" / r["cell_id"] / "curves.jsonl").open()]
        for v, r in found.items()
    }
    assert phases["kd"] == ["main", "main"]
    assert phases["ab"] == ["init", "classify"]
    assert phases[dfad] == ["adversarial"] * 2
    assert found[dfad]["cost"]["train_images_per_s"] is None  # no image of the training set is read


def test_evaluator_columns(all_methods):
    found = by_variant(all_methods[1])
    with_teacher = found["kd"]["deployables"]["student"]["last"]
    agreement = {k for k in with_teacher if k not in found["vanilla"]["deployables"]["student"]["last"]}
    assert any("agree" in key for key in agreement)


def test_route_that_is_needed_later(all_methods, kdbench, tiny_matrix):
    """A finished teacher is trained again only for its route, and its record stays."""
    matrix = tiny_matrix("methods", methods=["kd"])
    assert kdbench.run_here(matrix).returncode == 0
    run = kdbench.cwd / "runs" / "methods"
    kept = done_files(run)
    matrix = tiny_matrix("methods", methods=["kd", {"name": "rco", "params": {"anchors": 2}}])
    done = kdbench.run_here(matrix)
    assert done.returncode == 0, done.stderr
    after = done_files(run)
    assert len(after) == len(kept) + 1
    assert {name: after[name] for name in kept} == kept
    assert len(list(run.glob("cells/*/route/*"))) == 2


def test_prepare_then_cell_then_run(kdbench, tiny_matrix):
    """The steps of a cluster: prepare, single cells in any process, and the matrix at the end."""
    matrix = tiny_matrix("steps", methods=["kd", "vanilla"])
    data = kdbench.here("prepare", matrix, "--data-only")
    assert data.returncode == 0, data.stderr
    assert "1797" in data.stdout or "images, revision" in data.stdout
    assert not (kdbench.cwd / "runs").exists()
    prepared = kdbench.here("prepare", matrix, "--workers", 1)
    assert prepared.returncode == 0, prepared.stderr
    run = kdbench.cwd / "runs" / "steps"
    (teacher,) = records(run).values()
    assert teacher["labels"]["role"] == "teacher"
    assert "nothing to do" in kdbench.here("prepare", matrix).stdout

    assert kdbench.run_here(matrix).returncode == 0
    kept = records(run)
    student = next(r for r in kept.values() if r["labels"]["method"] == "kd")
    # the same cell alone, in a folder that was moved: launchers on other machines do this
    elsewhere = kdbench.cwd / "elsewhere" / "cells"
    shutil.copytree(run / "cells", elsewhere)
    folder = elsewhere / student["cell_id"]
    (folder / "result.json").unlink()
    alone = kdbench("cell", folder)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip() == str(folder / "result.json")
    assert json.loads((folder / "result.json").read_text())["weights_sha256"] == student["weights_sha256"]


def test_cell_without_a_cell_file(kdbench):
    (kdbench.cwd / "empty").mkdir()
    line = error_line(kdbench.here("cell", kdbench.cwd / "empty"))
    assert "cell.json" in line


@pytest.fixture(scope="module")
def trained_file(all_methods):
    """The weights of a trained teacher: (file, its record)."""
    run = all_methods[1]
    record = next(
        r for r in records(run).values() if r["labels"]["role"] == "teacher" and r["labels"]["seed"] == 0
    )
    return run / "cells" / record["cell_id"] / "model.safetensors", record


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_checkpoint_teacher(all_methods, trained_file, kdbench, tiny_matrix, form):
    source, trained = trained_file
    path = kdbench.cwd / f"teacher.{form}"
    if form == "safetensors":
        shutil.copy(source, path)
    else:
        import torch
        from safetensors.torch import load_file

        state = {f"module.{key}": value for key, value in load_file(source).items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    teacher = {"name": TEACHER, "checkpoint": str(path)}
    matrix = tiny_matrix("file", pairs=[{"teacher": teacher, "student": "timm:test_efficientnet"}])
    done = kdbench.run_here(matrix)
    assert done.returncode == 0, done.stderr
    (record,) = records(kdbench.cwd / "runs" / "file").values()
    (ref,) = record["teachers"]
    assert ref["source"] == "checkpoint"
    assert ref["ref"] == path.name
    assert ref["top1"] == pytest.approx(trained["deployables"]["student"]["last"]["top1"])
    # the same weights teach the same
    kd = by_variant(all_methods[1])["kd"]
    assert record["weights_sha256"] == kd["weights_sha256"]
    assert record["cell_id"] != kd["cell_id"]


@pytest.mark.parametrize("case", ["missing", "corrupt", "other shape", "changed"])
def test_unusable_checkpoint(trained_file, kdbench, tiny_matrix, case):
    path = kdbench.cwd / "teacher.safetensors"
    teacher = {"name": TEACHER, "checkpoint": str(path)}
    if case == "corrupt":
        path.write_bytes(b"not a checkpoint at all")
    if case in ("other shape", "changed"):
        shutil.copy(trained_file[0], path)
    if case == "other shape":
        teacher["name"] = "resnet8"
    if case == "changed":
        teacher["sha256"] = "0" * 64
    matrix = tiny_matrix("file", pairs=[{"teacher": teacher, "student": "timm:test_efficientnet"}])
    line = error_line(kdbench.run_here(matrix))
    assert str(path) in line
    assert {
        "missing": "cannot read",
        "corrupt": "not a checkpoint",
        "other shape": "no tensor",
        "changed": "sha256",
    }[case] in line
    assert not done_files(kdbench.cwd / "runs" / "file")


def test_limits_are_stratified_and_seeded(kdbench, tiny_matrix):
    """limit_train enters the cell id: other data, other cell."""
    fewer = {**DIGITS, "limit_train": 64, "label": "fewer"}
    matrix = tiny_matrix("limits", methods=["vanilla"], datasets=[fewer, DIGITS])
    assert kdbench.run_here(matrix).returncode == 0
    found = records(kdbench.cwd / "runs" / "limits").values()
    steps = {r["labels"]["dataset"]: r["cost"]["steps"] for r in found}
    assert len(found) == 2
    assert steps["fewer"] < steps["digits"]


def test_dry_run_tells_why_cells_cannot_be(kdbench, tiny_matrix):
    """The reasons stand in the plan, one a method, and nothing is trained or written."""
    reasons = {
        "ofd": "needs a teacher whose stages end in an activation",
        "fsp": "needs equal channel counts",
        "rkd": "needs batches of at least 3",
        "timm-token": "needs a student with a distillation head",
    }
    matrix = tiny_matrix(
        "reasons",
        methods=["kd", *reasons],
        pairs=[{"teacher": "timm:test_convnext", "student": "timm:test_resnet"}],
        recipe={**RECIPE, "batch_size": 2},
    )
    done = kdbench.here("run-matrix", matrix, "--dry-run")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for reason in reasons.values():
        assert text.count(reason) == 1
    assert not (kdbench.cwd / "runs").exists()


def test_hyper_parameter_out_of_range(kdbench, tiny_matrix):
    matrix = tiny_matrix("range", methods=["kd", {"name": "crd", "params": {"temperature": 0}}])
    line = error_line(kdbench.run_here(matrix))
    assert f"{matrix}:" in line
    assert "'crd'" in line
    assert "temperature" in line
    assert not (kdbench.cwd / "runs").exists()
