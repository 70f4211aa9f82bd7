import os

import pytest

from kdbench.results.tracking import SinkError, one_line, quiet_mlflow, redact, resolve_uri


def test_order_of_choice(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(cwd=tmp_path) == f"sqlite:///{tmp_path.resolve().as_posix()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(cwd=tmp_path) == "http://server:5000"
    assert resolve_uri("https://other", cwd=tmp_path) == "https://other"


def test_sqlite_paths_become_absolute(tmp_path):
    expected = f"sqlite:///{tmp_path.resolve().as_posix()}/lab/x.db"
    assert resolve_uri("sqlite:///lab/x.db", cwd=tmp_path) == expected
    assert resolve_uri("sqlite:///lab/x.db?timeout=9", cwd=tmp_path) == expected + "?timeout=9"
    assert resolve_uri("sqlite:////lab/x.db", cwd=tmp_path) == "sqlite:////lab/x.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:mlruns", "file:///lab/mlruns"])
def test_plain_folders_are_refused_with_the_uri_to_use(uri, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(SinkError, match=r"such as sqlite:///.*mlruns/mlflow\.db"):
        resolve_uri(uri, cwd=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunter2@db/x",
        "cannot reach https://hunter2@host/",
        "http://me:hunt:er2@x@host",
        "mysql://h/x?password=hunter2&ssl=1",
        "MLFLOW_TRACKING_TOKEN=hunter2",
    ],
)
def test_credentials_are_hidden(text):
    assert "unter2" not in redact(text)
    assert "er2" not in redact(text)


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 999))) == 300


def test_what_the_user_set_stays(monkeypatch):
    names = ("HTTP_REQUEST_TIMEOUT", "HTTP_REQUEST_MAX_RETRIES", "DISABLE_TELEMETRY", "LOGGING_LEVEL")
    for name in (*names, "SUPPRESS_PRINTING_URL_TO_STDOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        monkeypatch.delenv(f"MLFLOW_{name}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    quiet_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
