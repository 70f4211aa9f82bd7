"""A cell in this process, planned from a matrix: its record, its files, its determinism."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.cell import CellTrainer, Hooks, read_cell
from kdbench.engine.cost import warm
from kdbench.engine.progress import Interrupted
from kdbench.errors import KdbenchError
from kdbench.launch.plan import Plan, PlannedCell, Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.confusion import by_class, read_confusion
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, atomic_write_bytes, parse_record

MATRIX = """
name: tiny
datasets: [{name: digits, limit_train: 96, limit_test: 40}]
pairs: [{teacher: "timm:test_vit2", student: "timm:test_vit"}]
methods: [vanilla, kd, fitnet]
seeds: [0]
evaluators: [teacher-agreement]
recipe:
  epochs: 2
  batch_size: 32
  eval_batch_size: 40
  optimizer: {name: momentum, lr: 0.05}
throughput: {batch_sizes: [1, 4], rounds: 3}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def plan(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "m.yaml").write_text(MATRIX)
    made = Planner(registry, load_matrix(folder / "m.yaml"), RunFolder(folder / "runs"), []).plan()
    for cell in made.cells:
        cell.folder.mkdir(parents=True)
        atomic_write_bytes(cell.folder / "cell.json", cell.file.model_dump_json().encode())
    yield made
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def cell_of(plan: Plan, method: str, role: str = "student") -> PlannedCell:
    return next(c for c in plan.cells if c.file.method == method and c.spec.role == role)


@pytest.fixture(scope="module")
def records(plan: Plan, registry: Registry) -> dict[str, Record]:
    """Run all cells, teachers first, as the launcher would."""
    assert [c.status for c in plan.cells] == ["to run"] * len(plan.cells)
    return {c.id: CellTrainer(c.folder, registry).run() for c in plan.cells}


@pytest.fixture
def kd(plan: Plan, records: dict[str, Record]) -> tuple[Record, Path]:
    cell = cell_of(plan, "kd")
    return records[cell.id], cell.folder


def test_record_on_disk_is_the_record(kd: tuple[Record, Path]) -> None:
    record, folder = kd
    assert parse_record((folder / "result.json").read_bytes(), folder) == record
    assert record.status == "done"
    assert record.error is None
    assert record.warnings == []
    assert record.cell_id == folder.name
    assert record.started_at <= record.finished_at


def test_quality(kd: tuple[Record, Path]) -> None:
    record, folder = kd
    assert record.primary == "student"
    (student,) = record.deployables.values()
    assert set(student.last) >= {"top1", "top5", "nll", "ece", "agreement"}
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    curves = [row["eval"]["student"] for row in rows]
    assert student.last["top1"] == curves[-1]["test/top1"]
    assert student.best_test is not None
    assert student.best_val is not None
    assert student.best_test.top1 == student.best_test.by == max(c["test/top1"] for c in curves)
    assert student.best_test.top1 >= student.last["top1"]  # type: ignore[operator]
    vals = [c["val/top1"] for c in curves]
    assert student.best_val.by == max(vals)
    assert student.best_val.epoch == 1 + vals.index(max(vals))
    assert student.best_val.top1 == curves[student.best_val.epoch - 1]["test/top1"]
    weights = load_file(folder / "model.safetensors")
    assert student.params == sum(v.numel() for v in weights.values())
    assert student.macs is not None
    assert student.macs > student.params / 2


def test_throughput_of_every_batch_size(kd: tuple[Record, Path]) -> None:
    speeds = kd[0].throughput["student"]
    assert list(speeds) == ["1", "4"]
    for batch, speed in speeds.items():
        assert speed.rounds == 3
        assert speed.latency_ms_p95 >= speed.latency_ms_p50
        assert speed.images_per_s == pytest.approx(int(batch) * 1e3 / speed.latency_ms_p50)


def test_cost(kd: tuple[Record, Path]) -> None:
    cost = kd[0].cost
    assert cost is not None
    assert (cost.epochs, cost.steps, cost.attempts, cost.extra_params) == (2, 6, 1, 0)
    assert cost.step_ms is not None
    # of the second epoch: 86 images in 3 steps
    assert cost.train_images_per_s == pytest.approx(86 / (3 * cost.step_ms / 1e3))
    total = cost.train_s + cost.eval_s + cost.log_s + cost.setup_s
    assert cost.device_hours == pytest.approx(total / 3600)
    assert min(cost.train_s, cost.eval_s, cost.log_s, cost.setup_s) > 0
    assert cost.teacher_share is not None
    assert 0 < cost.teacher_share <= 1
    assert cost.peak_memory_mb is not None
    assert cost.peak_memory_mb > 50


def test_connectors_are_extra_parameters(plan: Plan, records: dict[str, Record]) -> None:
    cost = records[cell_of(plan, "fitnet").id].cost
    assert cost is not None
    assert cost.extra_params > 0
    vanilla = records[cell_of(plan, "vanilla").id].cost
    assert vanilla is not None
    assert vanilla.teacher_share is None


def test_surroundings(kd: tuple[Record, Path]) -> None:
    record, _ = kd
    assert set(record.floors) == {"majority", "uniform"}
    assert record.floors["uniform"] == 10
    assert record.environment["torch"] == torch.__version__
    assert record.environment["deterministic"] is True
    assert set(record.plugins) == {"task", "method", "student", "dataset", "teacher"}
    for plugin in record.plugins.values():
        assert plugin.distribution == "kdbench"
        assert plugin.code


def test_teacher_is_named_with_digest_and_accuracy(
    plan: Plan, records: dict[str, Record], kd: tuple[Record, Path]
) -> None:
    teacher = cell_of(plan, "vanilla", "teacher")
    (ref,) = kd[0].teachers
    assert ref.source == "cell"
    assert ref.ref == teacher.id
    assert ref.sha256 == records[teacher.id].weights_sha256
    assert ref.top1 == records[teacher.id].deployables["student"].last["top1"]
    assert cell_of(plan, "kd").after == [teacher.id]


def test_files_that_remain(kd: tuple[Record, Path]) -> None:
    record, folder = kd
    assert sorted(p.name for p in folder.iterdir()) == [
        "cell.json",
        "confusion.csv",
        "curves.jsonl",
        "model.safetensors",
        "result.json",
    ]
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == record.weights_sha256


def test_answers_by_class_are_those_of_the_ranked_accuracy(kd: tuple[Record, Path]) -> None:
    record, folder = kd
    found = read_confusion(folder)
    assert found is not None
    names, counts = found
    assert names == list("0123456789")
    classes = by_class(names, counts)
    assert sum(c.images for c in classes) == sum(c.answered for c in classes) == 40
    correct = sum(c.correct for c in classes)
    assert 100 * correct / 40 == pytest.approx(record.deployables["student"].last["top1"])


def copy_of(plan: Plan, method: str, to: Path) -> Path:
    """The cells of a run with one cell not yet run."""
    cell = cell_of(plan, method)
    teacher = cell_of(plan, "vanilla", "teacher")
    to.mkdir()
    shutil.copytree(teacher.folder, to / teacher.id)
    fresh = to / cell.id
    fresh.mkdir(exist_ok=True)
    for path in list(fresh.iterdir()):
        path.unlink()
    shutil.copy(cell.folder / "cell.json", fresh)
    return fresh


def test_two_runs_give_equal_weights(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    """The global generators' state before the run does not matter."""
    torch.manual_seed(987)
    again = CellTrainer(copy_of(plan, "fitnet", tmp_path / "again"), registry).run()
    first = records[cell_of(plan, "fitnet").id]
    assert again.weights_sha256 == first.weights_sha256
    assert again.deployables["student"].last == first.deployables["student"].last
    assert first.weights_sha256 != records[cell_of(plan, "kd").id].weights_sha256


class StopAfter(Hooks):
    def __init__(self, steps: int) -> None:
        self.left, self.rows = steps, 0

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows += 1


def test_cut_cell_resumes_to_equal_weights(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    folder = copy_of(plan, "kd", tmp_path / "cut")
    for steps in (2, 3):
        with pytest.raises(Interrupted):
            CellTrainer(folder, registry, StopAfter(steps)).run()
        assert (folder / "checkpoint.safetensors").exists()
        assert not (folder / "result.json").exists()
    hooks = StopAfter(0)
    record = CellTrainer(folder, registry, hooks).run()
    assert record.weights_sha256 == records[cell_of(plan, "kd").id].weights_sha256
    assert record.cost is not None
    assert record.cost.attempts == 3
    assert record.cost.steps == 6
    assert hooks.rows == 1
    assert len((folder / "curves.jsonl").read_text().splitlines()) == 2


def test_a_cell_killed_before_its_record_keeps_what_was_trained(
    plan: Plan,
    records: dict[str, Record],
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_of(plan, "kd", tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(CellTrainer, "_record", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            CellTrainer(folder, registry).run()
        kept = (folder / "confusion.csv").read_bytes()
    record = CellTrainer(folder, registry).run()
    assert record.weights_sha256 == records[cell_of(plan, "kd").id].weights_sha256
    assert (folder / "confusion.csv").read_bytes() == kept
    assert kept == (cell_of(plan, "kd").folder / "confusion.csv").read_bytes()


def test_done_cell_that_runs_again_keeps_its_record(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    cell = cell_of(plan, "kd")
    folder = copy_of(plan, "kd", tmp_path / "again")
    shutil.copy(cell.folder / "result.json", folder)
    before = (folder / "result.json").read_bytes()
    CellTrainer(folder, registry).run()
    assert (folder / "result.json").read_bytes() == before
    assert (folder / "model.safetensors").read_bytes() == (cell.folder / "model.safetensors").read_bytes()


def test_methods_of_a_seed_share_order_views_and_initial_student(
    plan: Plan, records: dict[str, Record], registry: Registry
) -> None:
    states, batches = [], []
    for method in ("vanilla", "kd", "fitnet"):
        run, _ = CellTrainer(cell_of(plan, method).folder, registry)._setup()
        states.append({k: v.clone() for k, v in run.student.net.state_dict().items()})
        batches.append(list(run.task_data.streams["train"].epoch(1)))
    for other in states[1:]:
        assert all(torch.equal(v, states[0][k]) for k, v in other.items())
    for others in batches[1:]:
        for a, b in zip(batches[0], others, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.index, b.index)


def test_another_seed_gives_other_order_and_student(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    folder = copy_of(plan, "kd", tmp_path / "seed")
    base, _ = CellTrainer(folder, registry)._setup()
    cell = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(json.dumps(cell | {"seed": 1}))
    other, _ = CellTrainer(folder, registry)._setup()
    a, b = (next(r.task_data.streams["train"].epoch(0)) for r in (base, other))
    assert not torch.equal(a.index, b.index)
    mine, theirs = base.student.net.state_dict(), other.student.net.state_dict()
    assert not all(torch.equal(v, theirs[k]) for k, v in mine.items())
    teacher, same = base.teacher.net.state_dict(), other.teacher.net.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in teacher.items())


def test_data_set_that_changed_since_the_plan(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    folder = copy_of(plan, "vanilla", tmp_path / "changed")
    cell = json.loads((folder / "cell.json").read_text())
    cell["dataset"]["revision"] = "digits-v0"
    (folder / "cell.json").write_text(json.dumps(cell))
    with pytest.raises(KdbenchError, match=r"data set 'digits.*changed since the matrix was planned"):
        CellTrainer(folder, registry).run()


def test_teacher_whose_weights_were_swapped(
    plan: Plan, records: dict[str, Record], registry: Registry, tmp_path: Path
) -> None:
    folder = copy_of(plan, "kd", tmp_path / "swapped")
    weights = folder.parent / cell_of(plan, "vanilla", "teacher").id / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(KdbenchError, match="the weights are not those of the cell's record"):
        CellTrainer(folder, registry).run()
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"cell_id": 3}'])
def test_unusable_cell_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "cell.json").write_text(content)
    with pytest.raises(KdbenchError, match=r"cell\.json: not a usable cell") as e:
        read_cell(tmp_path)
    assert "\n" not in str(e.value)


def test_missing_cell_file(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"cell\.json: not a usable cell"):
        read_cell(tmp_path)


def test_speed_is_told_by_the_epochs_after_the_first() -> None:
    rows = [{"step_ms": v} for v in (50.0, 10.0, 12.0)]
    assert warm(rows) == rows[1:]
    assert warm(rows[:1]) == rows[:1]
    assert warm([]) == []
