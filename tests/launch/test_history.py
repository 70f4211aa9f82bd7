"""What records in the run folder tell of the cells of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import make_record
from matrices import RECIPE, write_matrix

from kdbench.launch.history import forecast_of
from kdbench.launch.plan import Plan, Planner
from kdbench.launch.planned import PlannedCell
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def plan(tmp_path: Path, registry: Registry, **overrides: Any) -> Plan:
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["vanilla", "kd"], seeds=2, **overrides)
    return Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan()


def put(cell: PlannedCell, seconds: float, device: str = "cpu") -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    cost = {"train_s": seconds, "eval_s": 0.0, "setup_s": 0.0, "log_s": 0.0}
    record = make_record(
        cell_id=cell.id,
        identity=cell.file.identity,
        labels=cell.file.labels.model_dump(),
        environment={"device": device},
        cost=cost,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:00:30+00:00",
    )
    (cell.folder / "result.json").write_text(json.dumps(record))
    (cell.folder / "cell.json").write_text(cell.file.model_dump_json())


def kd(found: Plan, seed: int) -> PlannedCell:
    return next(c for c in found.cells if c.file.method == "kd" and c.file.seed == seed)


def test_the_plan_knows_images_and_operations(tmp_path: Path, registry: Registry) -> None:
    found = plan(tmp_path, registry)
    assert {c.images for c in found.cells} == {115}  # 128 less a tenth for validation
    alone = next(c for c in found.cells if c.file.method == "vanilla" and c.spec.role == "student")
    teacher = next(c for c in found.cells if c.spec.role == "teacher")
    assert alone.macs is not None
    assert teacher.macs is not None
    # a training step is three passes of the student and one of the teacher
    assert kd(found, 0).macs == pytest.approx(alone.macs + teacher.macs / 3)
    assert not forecast_of(found).knows


def test_other_seeds_and_other_epochs_are_forecast(tmp_path: Path, registry: Registry) -> None:
    put(kd(plan(tmp_path, registry), 0), 30.0)
    found = plan(tmp_path, registry)
    assert forecast_of(found).seconds(kd(found, 1).id) == pytest.approx(30.0)
    longer = plan(tmp_path, registry, recipe={**RECIPE, "epochs": 4})
    assert kd(longer, 0).id != kd(found, 0).id
    assert forecast_of(longer).seconds(kd(longer, 0).id) == pytest.approx(60.0)


def test_records_of_another_device_do_not_count(tmp_path: Path, registry: Registry) -> None:
    first = plan(tmp_path, registry)
    put(kd(first, 0), 3.0, "cuda")
    found = plan(tmp_path, registry)
    assert not forecast_of(found, "cpu").knows
    assert forecast_of(found, "cuda").knows
    assert forecast_of(found).knows


def test_epochs_before_a_checkpoint_count(tmp_path: Path, registry: Registry) -> None:
    cell = kd(plan(tmp_path, registry, recipe={**RECIPE, "epochs": 4}), 0)
    cell.folder.mkdir(parents=True)
    cell.change(device="cpu")
    (cell.folder / "cell.json").write_text(cell.file.model_dump_json())
    (cell.folder / "checkpoint.safetensors").write_bytes(b"state")
    rows = [{"epoch": e, "train_s": 3.0, "eval_s": 1.0} for e in (1, 1, 2, 3)]
    (cell.folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = plan(tmp_path, registry, recipe={**RECIPE, "epochs": 4})
    assert kd(found, 0).status == "interrupted"
    forecast = forecast_of(found, "cpu")
    assert forecast.cost(cell.id) == pytest.approx(4.0)
    assert forecast.cost(kd(found, 1).id) == pytest.approx(16.0)
    assert not forecast_of(found, "cuda").knows


def test_broken_neighbours_are_passed_over(tmp_path: Path, registry: Registry) -> None:
    first = plan(tmp_path, registry)
    put(kd(first, 0), 3.0)
    (kd(first, 0).folder / "cell.json").write_text("{")
    other = plan(tmp_path, registry, recipe={**RECIPE, "epochs": 4})
    assert not forecast_of(other).knows
