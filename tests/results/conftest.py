"""Makes ``tests/factories.py`` importable, however pytest was started."""

import sys
from pathlib import Path

import pytest

_TESTS = str(Path(__file__).resolve().parents[1])
if _TESTS not in sys.path:
    sys.path.append(_TESTS)

from kdbench.results.mlflow_sink import MlflowSink  # noqa: E402
from kdbench.results.tracking import sqlite_uri  # noqa: E402


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory):
    """A store without runs; copying it spares each test the second that its creation takes."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    sink = MlflowSink()
    sink.open({"name": "other"}, uri=sqlite_uri(path))
    sink.close("done")
    return path.read_bytes()


@pytest.fixture
def uri(fresh_store, tmp_path):
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(fresh_store)
    return sqlite_uri(path)
