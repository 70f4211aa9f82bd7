"""The board and MLflow's page as a person sees them: in a headless Chromium.

In CI a missing browser is a failure; on a user's machine these tests are then left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from factories import make_record, write_run
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from kdbench.leaderboard import build_board

pytestmark = pytest.mark.e2e

HOSTILE = "<script>alert(1)</script>"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)


@pytest.fixture
def browser():
    options = Options()
    for flag in FLAGS:
        options.add_argument(flag)
    binary, service = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or service is None:
        reason = "needs Chromium and its driver (Debian: chromium, chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    yield driver
    driver.quit()


def some_records() -> list[dict[str, object]]:
    records = []
    for seed in range(3):
        for method, top1 in (("vanilla", 70.0), ("kd", 72.0), (HOSTILE, 71.0)):
            records.append(make_record(method=method, seed=seed, top1=top1 + seed / 10))
    return records


def methods(browser) -> list[str]:
    table = browser.find_element(By.CSS_SELECTOR, "table.board")
    rows = [r for r in table.find_elements(By.CSS_SELECTOR, "tbody tr[data-row]") if r.is_displayed()]
    return [row.find_elements(By.TAG_NAME, "td")[1].text for row in rows]


def test_board_sorts_filters_and_opens_rows_without_a_script_of_a_record_running(browser, tmp_path):
    build_board(some_records(), tmp_path, title="Board", description="")
    browser.get((tmp_path / "index.html").as_uri())
    ranked = methods(browser)
    assert ranked == ["kd", HOSTILE, "vanilla"]

    head = next(b for b in browser.find_elements(By.CSS_SELECTOR, "thead button") if "Top-1" in b.text)
    head.click()
    assert methods(browser) == ranked
    head.click()
    assert methods(browser) == ranked[::-1]

    box = browser.find_element(By.CSS_SELECTOR, "input")
    box.send_keys("vanilla")
    WebDriverWait(browser, 10).until(lambda b: methods(b) == ["vanilla"])
    box.clear()
    box.send_keys(" ")
    WebDriverWait(browser, 10).until(lambda b: len(methods(b)) == 3)

    row = browser.find_element(By.CSS_SELECTOR, "tbody button")
    row.click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "tr.seeds li")) == 3
    assert row.get_attribute("aria-expanded") == "true"
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_board_fits_a_phone(browser, tmp_path):
    build_board(some_records(), tmp_path, title="Board", description="")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.get((tmp_path / "index.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400


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
