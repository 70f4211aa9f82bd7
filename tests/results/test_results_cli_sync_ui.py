"""`kdbench sync` and `kdbench ui`."""

import os
import sys

import pytest
from click.testing import CliRunner
from factories import make_record, write_run

from kdbench.cli.sync import sync
from kdbench.cli.ui import ui, ui_command, ui_environment
from kdbench.errors import UnknownName
from kdbench.results.tracking import SinkError


def test_sync_by_name_and_by_folder_and_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    records = [make_record(seed=s) for s in range(2)]
    folder = write_run(tmp_path / "runs" / "quickstart", records)
    result = CliRunner().invoke(sync, ["quickstart"])
    assert result.exit_code == 0, result.output
    assert "cells: 2 written, 0 unchanged, 0 failed; summaries: 1 written, 0 unchanged" in result.output
    (folder / "cells" / records[0]["cell_id"] / "result.json").write_text("{")
    result = CliRunner().invoke(sync, [str(folder), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"])
    assert result.exit_code == 1
    assert "0 written, 1 unchanged, 1 failed" in result.output
    assert records[0]["cell_id"] in result.output


def test_a_sync_is_no_run_of_the_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "run", [make_record()])
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def runs():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return [r.data.tags.get("kdbench.made_by") for r in found if r.data.tags["kdbench.kind"] == "matrix"]

    assert CliRunner().invoke(sync, [str(folder), "--tracking-uri", uri]).exit_code == 0
    assert runs() == ["sync"]
    write_run(tmp_path / "more", [make_record(seed=1)])
    result = CliRunner().invoke(sync, [str(tmp_path / "more"), "--tracking-uri", uri])
    assert "cells: 1 written" in result.output
    assert runs() == ["sync"], "the store has one already"


def test_sync_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "quickstart", [make_record()])
    error = CliRunner().invoke(sync, ["quikstart"]).exception
    assert isinstance(error, UnknownName)
    assert "did you mean 'quickstart'" in str(error)


def test_ui_runs_mlflow_on_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    seen = []
    monkeypatch.setattr(os, "execvpe", lambda *args: seen.append(args))
    result = CliRunner().invoke(ui, ["--port", "5001"])
    assert result.exit_code == 0
    ((program, command, environment),) = seen
    uri = f"sqlite:///{tmp_path.resolve().as_posix()}/mlflow.db"
    assert program == sys.executable
    assert command[1:] == [
        "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", "5001", "--backend-store-uri", uri
    ]  # fmt: skip
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert "http://127.0.0.1:5001/#/experiments?workflowType=machine_learning" in result.output


def test_ui_without_store_and_with_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    error = CliRunner().invoke(ui, []).exception
    assert isinstance(error, SinkError)
    assert "no MLflow store" in str(error)
    result = CliRunner().invoke(ui, ["--tracking-uri", "https://me:hunter2@lab.example"])
    assert result.exit_code == 0
    assert "lab.example" in result.output
    assert "hunter2" not in result.output


def test_ui_keeps_credentials_out_of_the_list_of_processes(monkeypatch):
    monkeypatch.setattr("kdbench.results.tracking.check_store", lambda uri: None)
    uri = "postgresql://me:hunter2@db/x"
    assert "hunter2" not in " ".join(ui_command(uri, "127.0.0.1", 5000))
    assert ui_environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri


def test_ui_of_an_unreachable_database():
    with pytest.raises(SinkError):
        ui_command("postgresql://me:hunter2@127.0.0.1:9/x", "127.0.0.1", 5000)
