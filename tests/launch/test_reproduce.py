"""Running one cell again from its record."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import signed
from matrices import RECIPE, write_matrix

from kdbench.cli import Settings
from kdbench.cli.reproduce import reproduce
from kdbench.engine.cell import CellTrainer
from kdbench.errors import KdbenchError
from kdbench.launch.plan import Planner
from kdbench.launch.rebuild import Here, rebuild
from kdbench.launch.reproduce import Reproduction, place_of
from kdbench.matrix import cell_id, load_matrix
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, atomic_write_json, read_record


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a teacher, a student of it by kd and one alone, a second of training each."""
    folder = tmp_path_factory.mktemp("trained")
    file = write_matrix(folder / "m.yaml", methods=["kd", "vanilla"], recipe={**RECIPE, "epochs": 1})
    registry = Registry.load()
    plan = Planner(registry, load_matrix(file), RunFolder(folder / "run"), []).plan()
    for cell in plan.cells:
        cell.folder.mkdir(parents=True)
        cell.change(threads=1)
        atomic_write_json(cell.folder / "cell.json", cell.file.model_dump(mode="json"))
        CellTrainer(cell.folder, registry).run()
    return plan


@pytest.fixture
def kd(trained, tmp_path):
    """The folder of the student's cell in a copy of the run."""
    shutil.copytree(trained.run.path, tmp_path / "run")
    (cell,) = [c for c in trained.cells if c.file.method == "kd"]
    return tmp_path / "run" / "cells" / cell.id


@pytest.fixture
def in_process(monkeypatch):
    """Train in this process, which has torch already."""

    def launch(self, jobs, told):
        for job in jobs:
            told(f"running {job.label}")
            CellTrainer(job.folder, Registry.load()).run()

    monkeypatch.setattr(Reproduction, "_launch", launch)


def run(*args, runs: Path):
    return CliRunner().invoke(reproduce, [*map(str, args), "--runs", str(runs)], obj=Settings())


def change(folder, **parts):
    path = folder / "result.json"
    record = json.loads(path.read_text()) | parts
    path.write_text(json.dumps(signed(record)))
    return record


def test_a_cell_repeats_bit_for_bit_in_a_worker(kd, tmp_path):
    result = run(kd, runs=tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert "agrees: bit-equal: the weights and 10 metrics" in result.output
    assert "teacher: vanilla | timm:test_resnet | digits" in result.output
    assert "the weights beside its record" in result.output
    folder = tmp_path / "again" / f"reproduce-{kd.name[:12]}"
    assert read_record(folder / "cells" / kd.name / "result.json").weights_sha256


def test_a_changed_metric_with_a_fresh_digest_is_found(kd, tmp_path, in_process):
    record = json.loads((kd / "result.json").read_text())
    record["deployables"]["student"]["last"]["top1"] += 0.5
    change(kd, **record)
    result = run(kd / "result.json", runs=tmp_path / "again")
    assert result.exit_code == 1, result.output
    assert "metric: student/last/top1: " in result.output
    assert "differs: the metrics differ on equal weights" in result.output


def test_from_a_board_the_teacher_is_trained_again(kd, tmp_path, in_process):
    records = tmp_path / "board" / "records"
    records.mkdir(parents=True)
    for cell in kd.parent.iterdir():
        shutil.copy(cell / "result.json", records / f"{cell.name}.json")
    args = (kd.name[:8], "--board", tmp_path / "board")
    result = run(*args, runs=tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert "trained again, bit-equal" in result.output
    # a second time in a folder of its own
    assert run(*args, runs=tmp_path / "again").exit_code == 0
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_a_record_without_its_teacher_cannot_be_run(kd, tmp_path):
    lone = tmp_path / "lone" / f"{kd.name}.json"
    lone.parent.mkdir()
    shutil.copy(kd / "result.json", lone)
    result = run(lone, runs=tmp_path / "again")
    assert isinstance(result.exception, KdbenchError)
    assert "its teacher is cell" in str(result.exception)
    assert not (tmp_path / "again").exists()


def test_an_edited_record_is_refused(kd, tmp_path):
    path = kd / "result.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert "edited after it was written" in str(run(kd, runs=tmp_path / "again").exception)


@pytest.mark.parametrize("which", ["nope", "--board=x"])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, which):
    monkeypatch.chdir(tmp_path)
    args = ["nope"] if which == "nope" else ["abcdef", "--board", "x"]
    problem = "no such record" if which == "nope" else "no records start with abcdef"
    assert problem in str(run(*args, runs=tmp_path).exception)


def rebuilt(record: Record, here: Here | None = None):
    return rebuild(record, Registry.load(), here or Here())[0]


def test_the_cell_is_the_one_that_was_planned(trained):
    for cell in trained.cells:
        again = rebuilt(read_record(cell.folder / "result.json"), Here(threads=1))
        want = cell.file.model_dump(mode="json")
        got = again.model_dump(mode="json")
        # defaults are written out, a teacher's architecture comes with its own record
        for part in ("recipe", "teachers", "dataset"):
            want.pop(part), got.pop(part)
        assert got == want
        assert again.recipe.model_dump() == cell.file.recipe.model_dump()


def test_a_recipe_without_crops_or_decay_is_rebuilt(trained):
    from kdbench.matrix.recipe import Recipe

    plain = Recipe.model_validate(
        {
            "epochs": 4,
            "optimizer": {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.99]},
            "schedule": {"name": "step", "every_epochs": 2},
            "augment": {"kind": "rrc"},
        }
    )
    record = with_identity(trained, recipe=plain.model_dump(mode="json", exclude={"teacher_cache"}))
    assert rebuilt(record).recipe.model_dump() == plain.model_dump()


def with_identity(trained, **parts):
    (cell,) = [c for c in trained.cells if c.spec.role == "student" and c.file.method == "vanilla"]
    record = read_record(cell.folder / "result.json")
    identity = {**record.identity, **parts}
    return record.model_copy(update={"identity": identity, "cell_id": cell_id(identity)})


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"protocol": 2}, "is of protocol 2, this kdbench runs 1"),
        ({"method": {"name": "vanilla", "version": "9", "params": {}}}, "of version 9 there and 1 here"),
        ({"method": {"name": "vanila", "version": "1", "params": {}}}, "vanilla"),
        ({"method": {"name": "vanilla", "version": "1", "params": {"x": 1}}}, "x: unknown"),
        ({"throughput": {"only": True}}, "only measures speed"),
        ({"recipe": {"schedule": {"name": "no"}, "augment": {"kind": "crop"}}}, "its recipe is none"),
        ({"teachers": [{"cell": "../../secret"}]}, "is no cell id"),
        ({"student": {"name": "timm:test_vit"}}, "is not that of a cell"),
    ],
)
def test_what_this_installation_cannot_run(trained, part, problem):
    with pytest.raises(KdbenchError) as caught:
        rebuilt(with_identity(trained, **part))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_revision_of_the_data_is_no_reproduction(trained):
    data = {**with_identity(trained).identity["dataset"], "revision": "digits-v0"}
    with pytest.raises(KdbenchError, match="of revision digits-v0 there and digits-v1 here"):
        rebuilt(with_identity(trained, dataset=data))


def test_where_the_data_lies_has_to_be_said(trained):
    args = {"image_size": 32, "flip": True, "mean": None, "std": None}
    data = {**with_identity(trained).identity["dataset"], "name": "image-folder", "args": args}
    record = with_identity(trained, dataset=data)
    with pytest.raises(KdbenchError, match="say where it lies by --data root=PATH"):
        rebuilt(record)
    with pytest.raises(KdbenchError, match="--data rot: is no place of the data set"):
        rebuilt(record, Here(data={"rot": "/x"}))
    stray = with_identity(trained, dataset={**data, "args": {**args, "root": "/x"}})
    with pytest.raises(KdbenchError, match="names a place on a machine"):
        rebuilt(stray)


def test_checkpoints_are_found_by_their_digest(trained, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    teacher = {"checkpoint": digest, "architecture": "resnet8", "args": {}}
    record = with_identity(trained, teachers=[teacher])
    with pytest.raises(KdbenchError, match="give the file with --checkpoint"):
        rebuilt(record)
    (source,) = rebuilt(record, Here(checkpoints=[weights])).teachers
    assert (source.source, source.ref) == ("checkpoint", str(weights))


def test_places_of_records(tmp_path):
    run = place_of(tmp_path / "cells" / "a" / "result.json")
    assert run.record("b") == tmp_path / "cells" / "b" / "result.json"
    assert place_of(tmp_path / "records" / "a.json").record("b") == tmp_path / "records" / "b.json"
