"""Against real SQLite stores of MLflow."""

import json
import time
from pathlib import Path

import pytest
from factories import make_curves, make_record, write_run

from kdbench.results.confusion import write_confusion
from kdbench.results.mlflow_sink import MlflowSink
from kdbench.results.store import read_record_dict
from kdbench.results.sync import sync
from kdbench.results.tracking import SinkError, sqlite_uri

MATRIX = {"name": "quickstart", "title": "Test matrix", "protocol": 1}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in (
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _runs(uri, name="quickstart"):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(f"kdbench/{name}")
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    parents = [r for r in runs if r.data.tags["kdbench.kind"] == "matrix"]
    cells = {r.data.tags["kdbench.cell_id"]: r for r in runs if "kdbench.cell_id" in r.data.tags}
    assert len(parents) + len(cells) == len(runs)
    return client, parents, cells


def test_everything_of_a_cell_is_there(uri, tmp_path):
    record = make_record(
        method="dkd", variant="dkd(beta=2.0)", params={"beta": 2.0, "nested": {"t": 4}, "stages": [1, 2]}
    )
    record["deployables"]["peer"] = dict(record["deployables"]["student"], last={"top1": 61.5})
    run = write_run(tmp_path / "quickstart", [record])
    write_confusion(run / "cells" / record["cell_id"], ["cat", "dog"], [[3, 1], [0, 1]])
    counts = sync(run, MlflowSink(), uri=uri)
    assert (counts.written, counts.unchanged, counts.failed) == (1, 0, 0)

    client, (parent,), cells = _runs(uri)
    cell = cells[record["cell_id"]]
    assert parent.info.status == cell.info.status == "FINISHED"
    assert parent.info.run_name == "quickstart"
    assert cell.info.start_time == 1767323045000  # 2026-01-02T03:04:05Z
    assert cell.info.end_time - cell.info.start_time == 60_000

    assert cell.data.params == {
        "task": "classification",
        "dataset": "digits",
        "teacher": "timm:test_resnet",
        "assistant": "None",
        "preset": "None",
        "student": "timm:test_efficientnet",
        "method": "dkd",
        "variant": "dkd(beta=2.0)",
        "recipe": "quick",
        "seed": "0",
        "method.beta": "2.0",
        "method.nested.t": "4",
        "method.stages": "[1, 2]",
        "recipe.epochs": "3",
        "recipe.optimizer.name": "momentum",
        "recipe.optimizer.lr": "0.05",
        "recipe.precision": "fp32",
        "dataset.revision": "1797-1",
        "dataset.limit_train": "None",
        "dataset.limit_test": "None",
        "dataset.storage": "resident",
    }
    tags = cell.data.tags
    assert "mlflow.parentRunId" not in tags  # MLflow's page would hide it
    assert tags["kdbench.protocol"] == "1"
    assert tags["kdbench.status"] == "done"
    assert tags["kdbench.role"] == "student"
    assert tags["kdbench.plugin.method"] == "kdbench 0.1.0"
    assert tags["env.torch"] == "2.15.0"

    metrics = cell.data.metrics
    expected = {
        "final/top1": 72.0,
        "final/top5": 87.0,
        "final/nll": 0.9,
        "best_val/top1": 71.75,
        "best_test/top1": 73.0,
        "best_val/epoch": 2.0,
        "perf/train_images_per_s": 1000.0,
        "perf/infer_images_per_s_b64": 4000.0,
        "perf/latency_ms_p50_b1": 2.0,
        "cost/train_s": 50.0,
        "cost/device_hours": 0.25,
        "cost/teacher_share": 0.2,
        "model/params": 40_000.0,
        "floor/majority": 10.1,
        "deploy.peer/final/top1": 61.5,
    }
    assert {k: metrics[k] for k in expected} == expected

    for name, group, key in (
        ("val/top1", "val", "top1"),
        ("test/top1", "test", "top1"),
        ("train/loss", "train", "loss"),
        ("train/lr", "train", "lr"),
    ):
        history = {m.step: m.value for m in client.get_metric_history(cell.info.run_id, name)}
        assert history == {row["epoch"]: row[group][key] for row in make_curves()}
    history = client.get_metric_history(cell.info.run_id, "perf/epoch_images_per_s")
    assert [(m.step, m.value) for m in history] == [(1, 1001.0), (2, 1002.0), (3, 1003.0)]

    full = client.get_run(cell.info.run_id)
    (dataset,) = full.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "1797-1")
    assert {a.path for a in client.list_artifacts(cell.info.run_id)} == {
        "confusion.csv",
        "curves.csv",
        "curves.jsonl",
        "per_class.csv",
        "result.json",
    }
    table = Path(client.download_artifacts(cell.info.run_id, "curves.csv")).read_text().splitlines()
    assert len(table) == 1 + len(make_curves())
    first = dict(zip(*(line.split(",") for line in table[:2]), strict=True))
    assert first["epoch"] == "1"
    assert float(first["val/top1"]) == make_curves()[0]["val"]["top1"]
    classes = Path(client.download_artifacts(cell.info.run_id, "per_class.csv")).read_text().splitlines()
    assert classes == ["class,images,correct,top1,precision", "cat,4,3,75.0,100.0", "dog,1,1,100.0,50.0"]
    local = client.download_artifacts(cell.info.run_id, "result.json")
    assert read_record_dict(local)["cell_id"] == record["cell_id"]


def test_statuses_and_second_sync_changes_nothing(uri, tmp_path):
    records = [
        make_record(seed=0),
        make_record(seed=1, status="oom", message="x" * 4000),
        make_record(seed=2, status="interrupted"),
    ]
    run = write_run(tmp_path / "quickstart", records)
    assert sync(run, MlflowSink(), uri=uri).written == 3
    _, parents, cells = _runs(uri)
    assert [cells[r["cell_id"]].info.status for r in records] == ["FINISHED", "FAILED", "KILLED"]
    assert cells[records[1]["cell_id"]].data.tags["kdbench.error"].startswith("RuntimeError: xxx")
    before = {c: r.info.run_id for c, r in cells.items()}

    counts = sync(run, MlflowSink(), uri=uri)
    assert (counts.written, counts.unchanged) == (0, 3)
    _, parents_after, cells_after = _runs(uri)
    assert {c: r.info.run_id for c, r in cells_after.items()} == before
    assert len(parents_after) == len(parents) == 1


def test_changed_record_replaces_the_old_run(uri, tmp_path):
    kept, old = make_record(seed=0), make_record(seed=1, status="crashed")
    sync(write_run(tmp_path / "a", [kept, old]), MlflowSink(), uri=uri)
    new = make_record(seed=1, top1=75.0)
    assert new["cell_id"] == old["cell_id"]
    counts = sync(write_run(tmp_path / "b", [kept, new]), MlflowSink(), uri=uri)
    assert (counts.written, counts.unchanged) == (1, 1)
    _, parents, cells = _runs(uri)
    assert len(cells) == 2
    assert cells[new["cell_id"]].data.metrics["final/top1"] == 75.0
    assert len(parents) == 2


def test_run_that_was_cut_off_is_written_again(uri, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    with monkeypatch.context() as patch:
        # As after a kill: the run has its tags but neither its numbers nor an end.
        patch.setattr(MlflowClient, "log_batch", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
        patch.setattr(MlflowClient, "delete_run", lambda *a, **k: None)
        sink = MlflowSink()
        sink.open(MATRIX, uri=uri)
        with pytest.raises(SinkError, match="disk full"):
            sink.write(record, run / "cells" / record["cell_id"])
    assert _runs(uri)[2][record["cell_id"]].info.status == "RUNNING"
    assert sync(run, MlflowSink(), uri=uri).written == 1
    run_info = _runs(uri)[2][record["cell_id"]]
    assert run_info.info.status == "FINISHED"
    assert run_info.data.metrics["final/top1"] == 72.0


def test_failed_write_leaves_no_run(uri, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    sink = MlflowSink()
    sink.open(MATRIX, uri=uri)
    monkeypatch.setattr(MlflowClient, "log_inputs", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(SinkError, match="gone"):
        sink.write(record, run / "cells" / record["cell_id"])
    sink.close("failed")
    _, (parent,), cells = _runs(uri)
    assert cells == {}
    assert parent.info.status == "FAILED"


def test_artifact_failure_is_a_warning(uri, tmp_path, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    monkeypatch.setattr(
        LocalArtifactRepository,
        "log_artifacts",
        lambda *a, **k: (_ for _ in ()).throw(PermissionError("read-only")),
    )
    sink = MlflowSink()
    assert sync(run, sink, uri=uri).written == 1
    assert len(sink.artifact_warnings) == 1
    assert "read-only" in sink.artifact_warnings[0]
    assert _runs(uri)[2][record["cell_id"]].info.status == "FINISHED"


def test_broken_record_is_reported_and_skipped(uri, tmp_path):
    records = [make_record(seed=s) for s in range(3)]
    run = write_run(tmp_path / "quickstart", records)
    (run / "cells" / records[1]["cell_id"] / "result.json").write_text(json.dumps(records[1])[:-20])
    counts = sync(run, MlflowSink(), uri=uri)
    assert (counts.written, counts.failed) == (2, 1)
    assert records[1]["cell_id"] in counts.problems[0]


def test_many_epochs_and_params_go_in_batches(uri, tmp_path):
    record = make_record(params={f"p{i:03d}": i for i in range(150)})
    run = write_run(tmp_path / "quickstart", [record])
    rows = make_curves(epochs=300)
    curves = run / "cells" / record["cell_id"] / "curves.jsonl"
    curves.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert sync(run, MlflowSink(), uri=uri).written == 1
    client, _, cells = _runs(uri)
    cell = cells[record["cell_id"]]
    assert cell.data.params["method.p149"] == "149"
    history = {m.step: m.value for m in client.get_metric_history(cell.info.run_id, "test/nll")}
    assert history == {row["epoch"]: row["test"]["nll"] for row in rows}


def test_gap_closed_given_by_the_caller_is_logged_and_does_not_change_the_digest(uri, tmp_path):
    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    sink = MlflowSink()
    sink.open(MATRIX, uri=uri)
    sink.write(record | {"extra": {"gap_closed": 0.4}}, run / "cells" / record["cell_id"])
    sink.close("done")
    assert _runs(uri)[2][record["cell_id"]].data.metrics["final/gap_closed"] == 0.4
    assert sync(run, MlflowSink(), uri=uri).unchanged == 1


def test_default_store_is_in_the_current_folder(fresh_store, tmp_path):
    (tmp_path / "mlflow.db").write_bytes(fresh_store)
    record = make_record()
    run = write_run(tmp_path / "runs" / "quickstart", [record])
    sync(run, MlflowSink())
    assert record["cell_id"] in _runs(sqlite_uri(tmp_path / "mlflow.db"))[2]
    assert len(list((tmp_path / "mlartifacts").rglob("result.json"))) == 1


def test_wrong_uris_fail_in_seconds_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    (tmp_path / "text.db").write_text("not a database at all")
    cases = {
        "http://user:hunter2@127.0.0.1:9/": "127.0.0.1",
        f"sqlite:///{tmp_path}/no/such/folder/mlflow.db": "does not exist",
        f"sqlite:///{tmp_path}/text.db": "not an SQLite database",
        f"{tmp_path}/mlruns": "sqlite:///",
        "file:./mlruns": "sqlite:///",
        "postgresql://user:hunter2@127.0.0.1:9/db": "127.0.0.1",
        "htp://server": "htp",
    }
    for uri, expected in cases.items():
        start = time.perf_counter()
        with pytest.raises(SinkError) as caught:
            MlflowSink().open(MATRIX, uri=uri)
        assert time.perf_counter() - start < 10, uri
        message = str(caught.value)
        assert expected in message
        assert "hunter2" not in message
        assert "\n" not in message


def test_deleted_experiment_says_how_to_restore(uri):
    sink = MlflowSink()
    sink.open(MATRIX, uri=uri)
    client, _, _ = _runs(uri)
    client.delete_experiment(client.get_experiment_by_name("kdbench/quickstart").experiment_id)
    with pytest.raises(SinkError, match="mlflow experiments restore"):
        MlflowSink().open(MATRIX, uri=uri)


def test_writing_without_opening():
    with pytest.raises(SinkError, match="not open"):
        MlflowSink().write(make_record(), None)
