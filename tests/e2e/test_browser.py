"""MLflow's page as a person sees it: in a headless Chromium."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chromium
import pytest
from factories import make_record, write_run
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.e2e


@pytest.fixture
def browser():
    driver = chromium.start()
    yield driver
    driver.quit()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def mlflow_page(uri: str, cwd: Path):
    port = free_port()
    command = [sys.executable, "-m", "kdbench", "ui", "--tracking-uri", uri, "--port", str(port)]
    with (cwd / "ui.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (cwd / "ui.log").read_text()
                assert time.monotonic() < deadline, (cwd / "ui.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)


def test_mlflow_page_shows_and_compares_the_runs(browser, tmp_path):
    from mlflow.tracking import MlflowClient

    from kdbench.results.mlflow_sink import MlflowSink
    from kdbench.results.sync import sync

    uri = f"sqlite:///{tmp_path / 'store.db'}"
    records = [make_record(method=m, seed=s) for m in ("vanilla", "kd") for s in range(2)]
    sync(write_run(tmp_path / "quickstart", records), MlflowSink(), uri=uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kdbench/quickstart").experiment_id
    runs = [r for r in client.search_runs([experiment]) if "kdbench.cell_id" in r.data.tags]
    assert len(runs) == 4
    ids = ",".join(f"%22{r.info.run_id}%22" for r in runs)
    with mlflow_page(uri, tmp_path) as page:
        browser.get(f"{page}/#/compare-runs?runs=%5B{ids}%5D&experiments=%5B%22{experiment}%22%5D")
        wait = WebDriverWait(browser, 90)

        def shown(b) -> bool:
            text = b.find_element(By.TAG_NAME, "body").text
            return "Comparing 4 Runs" in text and all(r.info.run_name in text for r in runs)

        wait.until(shown)
        assert "final/top1" in browser.find_element(By.TAG_NAME, "body").text
