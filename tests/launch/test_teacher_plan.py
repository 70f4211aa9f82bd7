"""What the plan says of teachers: which cells read a table, which do not and why, sizes, advice."""

import json
import shutil

import pytest
import torch
from matrices import DIGITS, RECIPE, STUDENT, TEACHER, write_matrix

from kdbench.api import cache_dir
from kdbench.engine.data.views import CropFlip
from kdbench.engine.teacher_table import Shape, Tables
from kdbench.hooks import Job
from kdbench.launch.gangs import arrange
from kdbench.launch.plan import Planner
from kdbench.launch.teacher_plan import describe, views_of
from kdbench.matrix import load_matrix
from kdbench.matrix.recipe import Recipe
from kdbench.registry import Registry
from kdbench.results.store import RunFolder

CACHED = {**RECIPE, "epochs": 100, "teacher_cache": "fp16"}


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def make_plan(tmp_path, registry):
    def make(**overrides):
        path = write_matrix(tmp_path / "m.yaml", name="m", **overrides)
        return Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan()

    return make


def lines(plan):
    return describe([c for c in plan.cells if c.status == "to run"], plan.cells)


def test_one_table_for_all_methods_and_seeds(make_plan):
    plan = make_plan(methods=["vanilla", "kd", "dkd", "at"], seeds=2, recipe=CACHED)
    table, room, online = lines(plan)
    # 128 images without the 13 of validation; digits may not be flipped
    assert table == (
        f"teacher {TEACHER} (seed 0) on digits: fp16 table for 4 cell(s), which read logits: "
        "81 views x 115 images, 186 kB; filled once by 9,315 forwards in place of 46,000"
    )
    assert room.startswith(f"teacher tables: 186 kB in {cache_dir('teacher-tables')}, ")
    assert online == (
        "teacher online in 2 cell(s) (at): "
        "their methods do not declare that logits or pooled features are enough"
    )


def test_a_table_that_may_be_there_is_told(make_plan, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    plan = make_plan(methods=["kd"], recipe={**CACHED, "epochs": 2})
    assert lines(plan)[0].endswith("in place of 230; recipe.teacher_cache: off takes less")
    folder = tmp_path / "cache" / "teacher-tables" / "a"
    (width,) = {c.teaching.info.num_classes for c in plan.cells}
    for images, told in ((114, False), (115, True)):
        tables = Tables(folder, {"logits": Shape(images, 81, width, "fp16")}, torch.device("cpu"))
        with tables.alone():
            tables.fill(lambda a, b: [torch.zeros((b - a) * 81, width)], lambda n: None, lambda: None)
        assert ("one like it is there already" in lines(plan)[0]) is told
    assert lines(plan)[0].endswith("nothing is filled; if not, recipe.teacher_cache: off takes less")
    facts = next(c for c in plan.cells if c.file.teachers).file.table_facts(0)
    for other, told in (({}, True), ({"precision": "bf16"}, False), ({"weights": ["cell", "f"]}, False)):
        (folder / "about.json").write_text(json.dumps(facts | other))
        assert ("is there already" in lines(plan)[0]) is told
        assert lines(plan)[0].endswith("recipe.teacher_cache: off takes less")
    (folder / "about.json").unlink()
    (folder / "logits.json").write_text("{")
    assert "there already" not in lines(plan)[0]


def test_pooled_features_and_strong_views_are_told(make_plan):
    # 10 logits and 96 features of 2 bytes
    table, *_ = lines(make_plan(methods=["rkd", "mlkd"], recipe=CACHED))
    assert "which read logits and pooled features; strong views stay online: 81 views x 115" in table
    plan = make_plan(methods=["rkd", "mlkd"], recipe=CACHED)
    (width,) = next(c for c in plan.cells if c.file.method == "rkd").teaching.pooled
    kilobytes = round(81 * 115 * (10 + width) * 2 / 1e6, 2)
    assert f"{kilobytes:g} MB" in table


def test_cells_of_another_teacher_or_subset_have_another_table(make_plan):
    pairs = [{"teacher": TEACHER, "student": s} for s in (STUDENT, "timm:test_vit")]
    pairs.append({"teacher": "timm:test_vit2", "student": STUDENT})
    data = [DIGITS, {**DIGITS, "limit_train": 64, "label": "few"}]
    found = [
        line for line in lines(make_plan(pairs=pairs, datasets=data, recipe=CACHED)) if "table for" in line
    ]
    assert [line.split(" cell")[0][-1] for line in found] == ["2", "1", "2", "1"]
    assert sum("on few" in line for line in found) == 2


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"recipe": {**CACHED, "teacher_cache": "off"}}, "recipe.teacher_cache is off"),
        (
            {"recipe": {**CACHED, "augment": {"kind": "rrc"}}},
            "the views of augment.kind: rrc cannot be counted",
        ),
        ({"recipe": CACHED, "methods": ["dfad"]}, "they read no training images"),
        ({"recipe": CACHED, "methods": ["rco"]}, "do not declare that logits or pooled features are enough"),
    ],
)
def test_cells_without_a_table_say_why(make_plan, overrides, reason):
    plan = make_plan(**overrides)
    (line,) = lines(plan)
    assert reason in line
    assert all(c.file.teacher_cache is None for c in plan.cells)
    assert all("teacher_cache" not in c.file.identity for c in plan.cells)


def test_table_that_costs_more_than_it_saves_is_told_and_still_made(make_plan):
    plan = make_plan(recipe={**CACHED, "epochs": 2})
    assert "recipe.teacher_cache: off takes less" in lines(plan)[0]
    assert [c.file.teacher_cache for c in plan.cells if c.file.method == "kd"] == ["fp16"]


def test_what_others_run_does_not_decide(make_plan):
    """A cell's id must not depend on what else is in the matrix."""
    one = make_plan(methods=["kd"], recipe=CACHED)
    many = make_plan(methods=["kd", "dkd", "at"], recipe=CACHED)
    assert {c.id for c in one.cells} <= {c.id for c in many.cells}


def test_hint_where_a_table_would_save_much(make_plan):
    def hints(**kw):
        return [x for x in lines(make_plan(recipe={**RECIPE, "epochs": 240}, **kw)) if x.startswith("hint")]

    (hint,) = hints(seeds=3)
    assert "would take 9,315 teacher forwards in place of 82,800 for 3 cell(s), and 186 kB" in hint
    assert not hints(seeds=2)  # 45,885 fewer
    assert not hints(seeds=3, methods=["at"])


def test_methods_that_could_read_no_table_are_listed_apart(make_plan):
    plan = make_plan(methods=["kd", "at", "sp", "dfad", "dkd"])
    assert lines(plan) == [
        "teacher online in 2 cell(s) (kd, dkd): recipe.teacher_cache is off",
        "teacher online in 2 cell(s) (at, sp): no table could serve them: their methods do not declare that "
        "logits or pooled features are enough",
        "teacher online in 1 cell(s) (dfad): no table could serve them: they read no training images",
    ]


def test_disk_that_is_too_small_is_told(make_plan, monkeypatch):
    plan = make_plan(recipe=CACHED)
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert lines(plan)[1].startswith("warning: teacher tables: 186 kB in ")
    assert lines(plan)[1].endswith("1 kB free: not enough unless they are there already")


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize(
    "augment", [{}, {"padding": 2}, {"flip": True}, {"flip": False, "padding": 1}, {"kind": "none"}]
)
def test_views_are_counted_as_the_engine_makes_them(augment, flips):
    recipe = Recipe.model_validate({"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}, "augment": augment})
    made = recipe.augment
    flip = flips if made.flip == "auto" else bool(made.flip)
    crop = CropFlip(0, False) if made.kind == "none" else CropFlip(made.padding, flip)
    assert views_of(recipe, flips) == crop.count


def test_hint_counts_forwards_that_a_gang_shares_once(make_plan):
    plan = make_plan(recipe={**RECIPE, "epochs": 240}, methods=["kd", "dkd"], seeds=40)
    cells = [c for c in plan.cells if c.status == "to run"]
    alone = describe(cells)
    assert alone[0] == "teacher online in 80 cell(s) (kd, dkd): recipe.teacher_cache is off"
    assert "in place of 2,208,000" in alone[1]
    gangs = [[c.id for c in cells if c.file.seed == seed and c.file.teachers] for seed in range(40)]
    shared = describe(cells, (), gangs)
    assert shared[0] == "teacher online in 80 cell(s) (kd, dkd; 80 in gangs): recipe.teacher_cache is off"
    assert "in place of 1,104,000" in shared[1]


def test_cells_that_read_a_table_form_no_gang(make_plan):
    plan = make_plan(methods=["kd", "dkd", "at", "sp"], recipe=CACHED)
    students = [c for c in plan.cells if c.file.teachers]
    jobs = [Job(cell_id=c.id, folder=c.folder, label=c.file.method) for c in students]
    arranged = arrange(jobs, {c.id: c.file for c in students}, 8, 1)
    assert sorted(len(j.gang) for j in arranged) == [0, 0, 2]
    (gang,) = [j.gang for j in arranged if j.gang]
    assert {j.label for j in gang} == {"at", "sp"}
