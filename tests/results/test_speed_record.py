"""Speed sheets as records."""

from __future__ import annotations

import pytest
from factories import make_speed_row

from kdbench.errors import KdbenchError
from kdbench.leaderboard.folder import copy_records
from kdbench.registry import Registry
from kdbench.results import mlflow_fields as fields
from kdbench.results.speed import SpeedSheet
from kdbench.results.speed_record import refuse_empty, sheet_records, write_records
from kdbench.results.speed_row import fastest
from kdbench.results.store import RunFolder, read_record

OOM = {"status": "oom", "images_per_s": None, "step_ms": None, "samples_ms": [], "message": "no memory"}


def sheet(*rows, threads=1, **settings):
    return SpeedSheet(
        settings={
            "models": list(dict.fromkeys(row["model"] for row in rows)),
            "modes": ["infer", "train"],
            "batch_sizes": [1, 64],
            "precisions": ["fp32", "bf16"],
            "image_size": 32,
            "num_classes": 10,
            "rounds": 5,
            "max_seconds": 1.0,
            **settings,
        },
        environment={"device": "cpu", "device_name": "Test CPU", "threads": threads, "torch": "2.15.0"},
        rows=rows,
        started_at="2026-01-02T03:04:05+00:00",
        finished_at="2026-01-02T03:05:05+00:00",
    )


def row(model="resnet20", **kw):
    return make_speed_row(model=model, **kw)


def test_a_record_for_each_model_with_all_its_speeds():
    rows = [row(), row(precision="bf16"), row(mode="train"), row("timm:test_vit"), row(batch_size=1, **OOM)]
    first, second = sheet_records(sheet(*rows))
    assert (first.labels.student, second.labels.student) == ("resnet20", "timm:test_vit")
    assert [(s.mode, s.precision, s.status) for s in first.speeds] == [
        ("infer", "fp32", "done"),
        ("infer", "bf16", "done"),
        ("train", "fp32", "done"),
        ("infer", "fp32", "oom"),
    ]
    # where trained cells have theirs: inference at the first precision
    assert set(first.throughput["student"]) == {"64"}
    assert first.warnings == ["infer, fp32, batch 1: oom: no memory"]
    assert first.deployables["student"].params == 40_000
    assert first.environment["precision"] == "fp32, bf16"


def test_what_was_measured_and_where_is_the_cell():
    (one,) = sheet_records(sheet(row()))
    assert sheet_records(sheet(row(images_per_s=5.0)))[0].cell_id == one.cell_id
    others = [sheet(row(), threads=2), sheet(row(), image_size=64), sheet(row(), channels_last=True)]
    assert one.cell_id not in {sheet_records(other)[0].cell_id for other in others}


def test_a_run_folder_of_them_makes_a_board(tmp_path):
    run = tmp_path / "run"
    assert write_records(sheet(row(), row("timm:test_vit", **OOM)), run, Registry.load()) == 1
    assert write_records(sheet(row(images_per_s=5.0)), run, Registry.load()) == 1
    (folder,) = RunFolder(run).cell_folders()
    record = read_record(folder / "result.json")
    assert record.speeds[0].images_per_s == 5.0
    assert record.plugins["student"].distribution
    assert RunFolder(run).matrix()["name"] == "throughput"
    assert copy_records(run, tmp_path / "board") == (1, 0)


def test_a_sheet_without_a_speed_is_refused():
    refuse_empty(sheet(row(), row(**OOM)))
    with pytest.raises(MemoryError, match="resnet20: nothing could be measured: no memory"):
        refuse_empty(sheet(row(**OOM)))
    with pytest.raises(KdbenchError, match="resnet20: nothing could be measured: no such model"):
        refuse_empty(sheet(row(**{**OOM, "status": "failed", "message": "no such model"})))


def test_every_speed_is_a_metric_of_mlflow():
    found = sheet(row(), row(precision="bf16", found_by="memory", images_per_s=7.0), row(mode="train", **OOM))
    (record,) = sheet_records(found)
    metrics = fields.final_metrics(record.model_dump(mode="json"))
    assert metrics["perf/fp32/infer_images_per_s_b64"] == 1000.0
    assert metrics["perf/bf16/infer_images_per_s_bauto"] == 7.0
    assert metrics["perf/bf16/infer_batch_size_bauto"] == 64
    assert metrics["perf/infer_images_per_s_b64"] == 1000.0
    assert not any("train" in name for name in metrics)


def test_the_fastest_of_each_mode_in_a_line():
    rows = [row(images_per_s=1.0), row(images_per_s=2.0, precision="bf16"), row(mode="train", **OOM)]
    assert fastest(rows) == "infer 2.0 images/s (bf16, batch 64)"
    assert fastest([]) == ""
