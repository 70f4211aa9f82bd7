"""A headless Chromium for tests, and where its pictures go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
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


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser. In CI a missing one is a failure; on a user's machine the test is then left out."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    for flag in _FLAGS:
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
    try:
        yield driver
    finally:
        driver.quit()


def picture(browser: Any, name: str, otherwise: Path) -> None:
    """Keep a picture of the page in the folder ``KDBENCH_TEST_PICTURES``, where it is set, else in `otherwise`."""
    folder = Path(os.environ.get("KDBENCH_TEST_PICTURES") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(folder / f"{name}.png"))
