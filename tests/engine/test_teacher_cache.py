"""Cells that read their teacher from a table: as good as online, repeatable, honest about the rest."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.build import data_context
from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cell import CellTrainer
from kdbench.engine.cellspec import CellFile
from kdbench.engine.gang import Gang
from kdbench.engine.progress import Interrupted
from kdbench.engine.teacher_cache import Lookup, TableOut, TeacherCache, table_key, tables_folder
from kdbench.engine.unchanged import Unchanged
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.protocol.types import Batch, Tap
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, read_record

MATRIX = """
name: {name}
datasets: [{{name: digits, limit_train: 160, limit_test: 200}}]
pairs: [{{teacher: "timm:test_vit2", student: "timm:test_vit"}}]
methods: [kd, rkd, mlkd]
seeds: 3
evaluators: []
throughput: false
recipe: {{epochs: 4, batch_size: 32, eval_batch_size: 200, optimizer: {{name: adamw, lr: 0.002}},
          augment: {{padding: 1}}, teacher_cache: {cache}}}
teacher_recipe: {{epochs: 6}}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One thread, and a cache of the module's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder))
        yield folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


class Cells:
    """The cells of one run folder, planned with and without tables."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry
        self.files: dict[tuple[str, str, int], tuple[CellFile, Path]] = {}
        for cache in ("off", "fp16", "fp32"):
            path = folder / f"{cache}.yaml"
            path.write_text(MATRIX.format(name="m", cache=cache))
            plan = Planner(registry, load_matrix(path), RunFolder(folder / "runs"), []).plan()
            for cell in plan.cells:
                cell.folder.mkdir(parents=True, exist_ok=True)
                (cell.folder / "cell.json").write_text(cell.file.model_dump_json())
                self.files[cell.file.method, cache, cell.file.seed] = cell.file, cell.folder

    def trainer(self, method: str, cache: str) -> CellTrainer:
        return CellTrainer(self.files[method, cache, 0][1], self.registry)

    def run(self, method: str, cache: str, seed: int = 0) -> Record:
        folder = self.files[method, cache, seed][1]
        shutil.rmtree(folder / "previous", ignore_errors=True)
        (folder / "result.json").unlink(missing_ok=True)
        return CellTrainer(folder, self.registry).run()


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Cells:
    made = Cells(tmp_path_factory.mktemp("cells"), registry)
    assert made.run("vanilla", "off").status == "done"  # the teacher
    return made


def test_only_cells_that_read_a_table_have_other_ids(cells: Cells) -> None:
    ids = {(method, cache): f.cell_id for (method, cache, seed), (f, _) in cells.files.items() if seed == 0}
    assert ids["vanilla", "fp16"] == ids["vanilla", "off"]
    assert len({ids["kd", cache] for cache in ("off", "fp16", "fp32")}) == 3
    assert "teacher_cache" not in cells.files["kd", "off", 0][0].identity
    assert "teacher_cache" not in cells.files["kd", "fp16", 0][0].identity["recipe"]
    assert cells.files["kd", "fp16", 0][0].labels.variant == "kd (fp16 table)"
    assert cells.files["kd", "fp16", 0][0].labels.recipe == cells.files["kd", "off", 0][0].labels.recipe


def test_same_accuracy_as_online(cells: Cells) -> None:
    """Over three seeds, the mean difference is within what seeds differ by, and the first losses are equal."""
    top1: dict[str, list[float]] = {}
    loss: dict[str, list[float]] = {}
    for cache in ("off", "fp16", "fp32"):
        for seed in range(3):
            last = cells.run("kd", cache, seed).deployables["student"].last["top1"]
            assert last is not None
            top1.setdefault(cache, []).append(last)
            curves = (cells.files["kd", cache, seed][1] / "curves.jsonl").read_text().splitlines()
            loss.setdefault(cache, []).append(json.loads(curves[0])["train"]["loss"])
    noise = statistics.stdev(top1["off"])
    assert min(top1["off"]) > 30  # it learned something, so that being equal means something
    for cache, tolerance in (("fp16", 1e-2), ("fp32", 1e-3)):
        assert loss[cache] == pytest.approx(loss["off"], rel=tolerance)
        differences = [a - b for a, b in zip(top1[cache], top1["off"], strict=True)]
        assert abs(statistics.fmean(differences)) <= max(noise, 1.0), (top1, noise)


def test_record_says_what_came_from_where(cells: Cells) -> None:
    shutil.rmtree(tables_folder(), ignore_errors=True)
    first, second = cells.run("kd", "fp16").cost, cells.run("kd", "fp16").cost
    assert first is not None
    assert second is not None
    assert first.fill_s is not None
    assert first.fill_s > 0
    assert second.fill_s == 0
    (about,) = tables_folder().glob("*/about.json")  # what a plan compares
    facts = json.loads(json.dumps(cells.files["kd", "fp16", 1][0].table_facts(0)))
    assert json.loads(about.read_text()) == facts
    steps = 4 * 5
    assert (second.cached_forwards, second.online_forwards) == (steps, 0)
    mixed = cells.run("mlkd", "fp16").cost
    assert mixed is not None
    assert (mixed.cached_forwards, mixed.online_forwards) == (steps, steps)  # strong views are no table's
    plain = cells.run("kd", "off").cost
    assert plain is not None
    assert second.teacher_share is not None
    assert plain.teacher_share is not None
    assert mixed.teacher_share is not None
    assert second.teacher_share < plain.teacher_share
    assert second.teacher_share < mixed.teacher_share
    assert (plain.fill_s, plain.cached_forwards, plain.online_forwards) == (None, None, None)


def test_bit_equal_whoever_fills(cells: Cells) -> None:
    shutil.rmtree(tables_folder(), ignore_errors=True)
    alone = cells.run("kd", "fp16").weights_sha256
    (logits,) = tables_folder().glob("*/logits.rows")
    data = logits.read_bytes()
    shutil.rmtree(tables_folder())
    cells.run("rkd", "fp16")  # fills both tables
    assert sorted(p.name for p in tables_folder().glob("*/*.rows")) == ["logits.rows", "pooled.rows"]
    assert logits.read_bytes() == data
    assert cells.run("kd", "fp16").weights_sha256 == alone


def test_bit_equal_in_a_gang(cells: Cells) -> None:
    methods = ("kd", "rkd", "mlkd")
    alone = {m: cells.run(m, "fp16") for m in methods}
    folders = {m: cells.files[m, "fp16", 0][1] for m in methods}
    for folder in folders.values():
        (folder / "result.json").unlink()
    errors: list[Any] = []
    Gang(list(folders.values()), cells.registry, ended=lambda f, e: errors.append(e) is None).run()
    assert errors == [None] * 3
    for m, folder in folders.items():
        together = read_record(folder / "result.json")
        assert together.weights_sha256 == alone[m].weights_sha256
        mine, other = together.cost, alone[m].cost
        assert mine is not None
        assert other is not None
        assert mine.cached_forwards == other.cached_forwards == 20
        assert mine.online_forwards == other.online_forwards


@pytest.mark.parametrize(("cache", "tolerance"), [("fp16", 4e-3), ("fp32", 1e-4)])
def test_table_says_what_the_teacher_says(cells: Cells, cache: str, tolerance: float) -> None:
    run, _ = cells.trainer("rkd", cache)._setup()
    teacher = run.teacher
    assert isinstance(run.lookup, Lookup)
    for epoch in (0, 1):
        for batch in run.task_data.streams["train"].epoch(epoch):
            run.batch = batch
            table = run.teach(teacher, batch.x)
            assert isinstance(table, TableOut)
            with torch.no_grad():
                online = teacher(batch.x)
            assert online.pooled is not None
            for mine, theirs in ((table.logits, online.logits), (table.pooled, online.pooled)):
                assert mine.shape == theirs.shape
                assert mine.dtype == theirs.dtype
                assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    assert run.answered == run.taught > 0
    run.close()


def test_what_no_table_knows_is_asked_of_the_teacher(cells: Cells) -> None:
    run, _ = cells.trainer("kd", "fp32")._setup()
    teacher = run.teacher
    batch = next(iter(run.task_data.streams["train"].epoch(0)))
    run.batch = batch
    for x, more in (
        (batch.x.clone(), {}),
        (batch.x, {"taps": [Tap(-1)]}),
        (batch.x, {"grad": True}),
        (batch.x[:3], {}),
    ):
        assert not isinstance(run.teach(teacher, x, **more), TableOut)
    assert run.answered == 0
    assert isinstance(run.teach(teacher, batch.x), TableOut)
    with torch.no_grad():
        next(iter(teacher.net.parameters())).mul_(1.5)
    assert not isinstance(run.teach(teacher, batch.x), TableOut)
    run.close()


def test_undeclared_pooled_feature_is_an_error(cells: Cells) -> None:
    run, _ = cells.trainer("kd", "fp32")._setup()
    run.batch = next(iter(run.task_data.streams["train"].epoch(0)))
    out = run.teach(run.teacher, run.batch.x)
    with pytest.raises(RuntimeError, match='declare reads="pooled"'):
        _ = out.pooled
    run.close()


def test_teacher_changed_in_setup_is_not_cached(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = cells.registry.get("methods", "kd").load()

    def setup(self: Any, run: Any) -> None:
        with torch.no_grad():
            next(iter(run.teacher.net.parameters())).mul_(2)

    monkeypatch.setattr(cls, "setup", setup)
    trainer = cells.trainer("kd", "fp16")
    run, _ = trainer._setup()
    assert trainer.warnings == ["teacher0 was changed in setup, so its outputs are not cached"]
    run.batch = next(iter(run.task_data.streams["train"].epoch(0)))
    assert not isinstance(run.teach(run.teacher, run.batch.x), TableOut)
    run.close()


def test_cell_that_is_stopped_while_it_fills(cells: Cells) -> None:
    shutil.rmtree(tables_folder(), ignore_errors=True)
    trainer = cells.trainer("kd", "fp16")
    trainer.hooks.should_stop = lambda: True  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.run()
    assert cells.run("kd", "fp16").status == "done"


def test_key_changes_with_all_that_changes_the_numbers(cells: Cells) -> None:
    trainer = cells.trainer("kd", "fp16")
    run, _ = trainer._setup()

    def key(**changes: Any) -> str:
        plain = json.loads(trainer.cell.model_dump_json())
        for path, value in changes.items():
            *parents, last = path.split("__")
            part = plain
            for name in parents:
                part = part[name]
            part[last] = value
        cell = CellFile.model_validate(plain)
        dataset = make_dataset(cells.registry, cell.dataset.name, cell.dataset.args)
        context = data_context(cell, dataset, dataset.describe(), trainer.device, ())
        return table_key(cell, 0, run.teacher, context.every_view(), trainer.device)

    base = key()
    assert key() == key(seed=5, method="rkd", recipe__epochs=9, dataset__limit_test=100) == base
    changed = {
        key(teacher_cache="fp32"),
        key(recipe__augment={"padding": 2}),
        key(recipe__augment={"padding": 1, "padding_mode": "reflect"}),
        key(recipe__precision="bf16"),
        key(recipe__channels_last=False),
        key(recipe__val_fraction=0.2),
        key(dataset__limit_train=120),
    }
    with torch.no_grad():
        next(iter(run.teacher.net.parameters())).add_(1e-3)
    changed.add(key())
    run.teacher.normalisation = type("N", (), {"mean": (0.5,) * 3, "std": (0.25,) * 3})()
    changed.add(key())
    assert len(changed | {base}) == 10
    run.close()


def test_no_table_without_need(cells: Cells) -> None:
    run, _ = cells.trainer("kd", "off")._setup()
    assert run.lookup is None
    cache = TeacherCache(cells.files["kd", "fp16", 0][0], run, None)
    cache.start("logits", lambda: None)
    assert run.lookup is None
    run.close()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def write(net: Any) -> None:
    with torch.no_grad():
        net[0].weight.add_(0)


@pytest.mark.parametrize(
    "change",
    [
        write,
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(2, 2))),
        lambda net: net.__setitem__(1, Doubled()),
        lambda net: net[1].train(),
        lambda net: net[0].register_forward_hook(lambda *a: None),
    ],
    ids=["write", "parameter", "module", "mode", "hook"],
)
def test_unchanged_sees_a_change(change: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    unchanged = Unchanged(net)
    assert unchanged(None)
    assert unchanged(1)
    net(torch.zeros(3, 2))
    assert unchanged(2)
    change(net)
    assert not unchanged(3)


def test_batch_without_origin_is_asked_of_the_teacher(cells: Cells) -> None:
    run, _ = cells.trainer("kd", "fp16")._setup()
    made = next(iter(run.task_data.streams["train"].epoch(0)))
    run.batch = Batch(made.x, made.y, made.index)
    assert not isinstance(run.teach(run.teacher, made.x), TableOut)
    run.close()
