"""The board as a person sees it: in a headless Chromium."""

from __future__ import annotations

import pytest
from factories import make_record
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from kdbench.leaderboard import build_board

pytestmark = pytest.mark.e2e

HOSTILE = "<script>alert(1)</script>"


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
