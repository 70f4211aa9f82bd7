"""A headless Chromium for tests; in CI a missing browser is a failure, on a user's machine tests are left out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

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


def start() -> webdriver.Chrome:
    """Start a browser that keeps its console's lines."""
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
    return webdriver.Chrome(options=options, service=Service(service))


def screen(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Show pages as on a screen of this size, in CSS pixels."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def scheme(browser: webdriver.Chrome, name: str) -> None:
    """Prefer ``light`` or ``dark``, and pages that scroll at once."""
    preferred = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
    features = [{"name": key, "value": value} for key, value in preferred.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start a browser that is closed in the end."""
    browser = start()
    try:
        yield browser
    finally:
        browser.quit()


def picture(browser: Any, name: str, otherwise: Path) -> None:
    """Keep a picture of the page in the folder ``KDBENCH_TEST_PICTURES``, where it is set, else in `otherwise`."""
    folder = Path(os.environ.get("KDBENCH_TEST_PICTURES") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(folder / f"{name}.png"))
