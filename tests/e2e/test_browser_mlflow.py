"""A matrix on MLflow's page as a person compares it: a real server on SQLite, a real browser."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import picture
from factories import make_record, write_run
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from kdbench.leaderboard.mirrored import tell
from kdbench.results.confusion import write_confusion
from kdbench.results.mlflow_sink import MlflowSink
from kdbench.results.store import RunFolder
from kdbench.results.sync import sync

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Run ``mlflow server`` on an empty SQLite file, with its artifacts beside it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'store.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        # its helpers for language models take longer to start than all else
        lean = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=lean, stdout=file, stderr=file, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def text_of(browser) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def test_a_matrix_is_listed_filtered_and_compared(browser, server, tmp_path):
    from mlflow.tracking import MlflowClient

    records = [make_record(method="vanilla", teacher=None, seed=s, top1=70.0 + s) for s in range(2)]
    records += [make_record(method="kd", seed=s, top1=72.5 + s) for s in range(2)]
    run = write_run(tmp_path / "quickstart", records)
    for record in records:
        write_confusion(run / "cells" / record["cell_id"], ["cat", "dog"], [[3, 1], [0, 4]])
    told = tell(RunFolder(run).good_records())
    sink = MlflowSink()
    counts = sync(run, sink, uri=server, annotations=told.annotations, summaries=told.summaries)
    assert (counts.written, counts.problems, sink.artifact_warnings) == (4, [], [])

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("kdbench/quickstart").experiment_id
    runs = client.search_runs([experiment])
    cells = [r for r in runs if r.data.tags["kdbench.kind"] == "cell"]
    summaries = [r for r in runs if r.data.tags["kdbench.kind"] == "summary"]
    assert (len(cells), len(summaries), len(runs)) == (4, 2, 7)
    wait = WebDriverWait(browser, 90)

    browser.get(f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    wait.until(lambda b: "7 matching runs" in text_of(b))
    wait.until(lambda b: all(r.info.run_name in text_of(b) for r in (*cells, *summaries)))
    picture(browser, "mlflow-experiment", tmp_path)

    only = urllib.parse.quote("tags.`kdbench.kind` = 'summary'")
    browser.get(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=CHART&searchFilter={only}")
    # of the charts only those are drawn that are on the screen
    wait.until(lambda b: "2 matching runs" in text_of(b) and "against/kd/top1" in text_of(b))
    picture(browser, "mlflow-summaries", tmp_path)

    two = [r.info.run_id for r in cells if r.data.params["seed"] == "0"]
    ids = urllib.parse.quote(str(two).replace("'", '"'))
    browser.get(f"{server}/#/compare-runs?runs={ids}&experiments=%5B%22{experiment}%22%5D")
    wait.until(lambda b: "Comparing 2 Runs" in text_of(b) and "final/top1" in text_of(b))
    wait.until(lambda b: "72.5" in text_of(b) and "70" in text_of(b))
    picture(browser, "mlflow-compare", tmp_path)

    browser.get(f"{server}/#/experiments/{experiment}/runs/{two[0]}/artifacts")
    wait.until(lambda b: "confusion.csv" in text_of(b) and "per_class.csv" in text_of(b))
    browser.find_element(By.XPATH, "//*[text()='per_class.csv']").click()
    wait.until(lambda b: "precision" in b.page_source)
    picture(browser, "mlflow-artifacts", tmp_path)
