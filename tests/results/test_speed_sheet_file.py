"""Speed sheets as files, in timm's columns and in MLflow."""

from __future__ import annotations

import json

import pytest

from kdbench.errors import RecordError
from kdbench.results.speed import SpeedSheet, flat_rows, read_sheet
from kdbench.results.speed_mlflow import log_sheet, model_metrics
from kdbench.results.timm_csv import timm_columns, timm_rows
from kdbench.results.tracking import sqlite_uri


def row(**kw):
    return {
        "model": "timm:resnet18",
        "mode": "infer",
        "precision": "fp32",
        "batch_size": 64,
        "images_per_s": 1234.567,
        "step_ms": 51.8401,
        "iqr_ratio": 0.01,
        "latency_ms_p50": 52.0,
        "latency_ms_p95": 55.0,
        "rounds": 3,
        "calls": 1,
        "drift_percent": 0.5,
        "peak_memory_mb": 100.0,
        "params": 11_689_512,
        "macs": 1_814_073_344,
        "activations": 2_484_712,
        "samples_ms": [51.0, 51.8401, 52.0],
        **kw,
    }


def sheet(*rows, **settings):
    return SpeedSheet(
        settings={
            "models": ["timm:resnet18"],
            "modes": ["infer", "train"],
            "batch_sizes": [64],
            "precisions": ["fp32"],
            "image_size": 224,
            "num_classes": 1000,
            "rounds": 3,
            "max_seconds": 1.0,
            **settings,
        },
        environment={"device": "cpu", "device_name": "Test CPU", "torch": "2.15.0", "timm": "1.0.31"},
        rows=list(rows),
        started_at="2026-01-02T03:04:05+00:00",
        finished_at="2026-01-02T03:05:05+00:00",
    )


def test_timm_columns_of_both_modes():
    """The header that timm's own benchmark gives, but for the two times that it adds on request."""
    made = sheet(row(), row(mode="train", images_per_s=400.0, step_ms=160.0))
    expected = (
        "model,infer_samples_per_sec,infer_step_time,infer_batch_size,infer_img_size,infer_gmacs,infer_macts,"
        "train_samples_per_sec,train_step_time,train_batch_size,train_img_size,param_count"
    )
    assert ",".join(timm_columns(made)) == expected
    (line,) = timm_rows(made)
    assert list(line) == expected.split(",")
    assert list(line.values()) == [
        *("resnet18", 1234.57, 51.84, 64, 224, 1.81, 2.48),
        *(400.0, 160.0, 64, 224, 11.69),
    ]


def test_timm_columns_of_one_mode():
    made = sheet(row(mode="train"), modes=["train"])
    assert timm_columns(made) == (
        [
            "model",
            "train_samples_per_sec",
            "train_step_time",
            "train_batch_size",
            "train_img_size",
            "param_count",
        ]
    )


def test_timm_rows_are_sorted_by_speed_and_hold_what_is_done():
    rows = [
        row(model="timm:slow", images_per_s=1.0),
        row(model="resnet20", images_per_s=9.0),
        row(model="timm:failed", status="failed", images_per_s=None, step_ms=None),
    ]
    lines = timm_rows(sheet(*rows, modes=["infer"]))
    assert [line["model"] for line in lines] == ["resnet20", "slow"]


def test_found_batch_sizes_of_both_modes_share_a_row():
    rows = [row(found_by="speed", batch_size=256), row(mode="train", found_by="memory", batch_size=32)]
    (line,) = timm_rows(sheet(*rows))
    assert (line["infer_batch_size"], line["train_batch_size"]) == (256, 32)


def test_several_precisions_are_told_apart():
    rows = [row(), row(precision="bf16", images_per_s=2000.0)]
    lines = timm_rows(sheet(*rows, precisions=["fp32", "bf16"]))
    assert [line["model"] for line in lines] == ["resnet18 (bf16)", "resnet18 (fp32)"]


def test_flat_rows_have_every_field_and_where():
    (line,) = flat_rows(sheet(row()))
    assert line["device_name"] == "Test CPU"
    assert line["image_size"] == 224
    assert "samples_ms" not in line
    assert set(row()) - {"samples_ms"} <= set(line)


def test_a_sheet_is_read_again(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(sheet(row()).model_dump_json())
    assert read_sheet(path) == sheet(row())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "expected the .json file of --out"),
        ("not JSON", "not a speed sheet"),
        (json.dumps({"kind": "other"}), "expected the .json file of --out"),
        (sheet(row()).model_dump_json().replace("kdbench-speed", "other"), "kind"),
        (sheet(row()).model_dump_json().replace('"rounds"', '"round"'), "settings.rounds"),
    ],
)
def test_what_is_no_sheet_is_told_in_one_line(tmp_path, text, expected):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(RecordError) as error:
        read_sheet(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_metrics_are_named_as_those_of_records():
    found = model_metrics([row_of(row()), row_of(row(mode="train", found_by="speed", batch_size=32))])
    assert found["perf/infer_images_per_s_b64"] == 1234.567
    assert found["perf/latency_ms_p95_b64"] == 55.0
    assert found["perf/train_images_per_s_bauto"] == 1234.567
    assert found["perf/train_batch_size_bauto"] == 32
    assert found["model/params"] == 11_689_512


def row_of(values):
    return sheet(values).rows[0]


def test_a_sheet_goes_to_mlflow_once(tmp_path):
    from mlflow.tracking import MlflowClient

    uri = sqlite_uri(tmp_path / "mlflow.db")
    made = sheet(row(), row(precision="bf16"), row(model="b", status="oom", images_per_s=None))
    parent = log_sheet(made, uri=uri)
    assert log_sheet(made, uri=uri) == parent
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("kdbench/throughput")
    runs = client.search_runs([experiment.experiment_id])
    below = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent}
    assert len(runs) == 4
    assert set(below) == {"timm:resnet18 fp32", "timm:resnet18 bf16", "b fp32"}
    one = below["timm:resnet18 fp32"]
    assert one.data.metrics["perf/infer_images_per_s_b64"] == 1234.567
    assert one.data.params["model"] == "timm:resnet18"
    assert one.data.tags["env.device_name"] == "Test CPU"
    assert one.info.status == "FINISHED"
    assert below["b fp32"].info.status == "FAILED"
    assert [a.path for a in client.list_artifacts(parent)] == ["sheet.json"]
