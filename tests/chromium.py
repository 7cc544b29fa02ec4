"""A real browser for tests of pages; without one they are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@contextmanager
def chromium(*options: str) -> Iterator[Any]:
    from selenium import webdriver

    chosen = webdriver.ChromeOptions()
    chosen.binary_location = CHROMIUM or ""
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *options):
        chosen.add_argument(f"--{name}")
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(chosen, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()
