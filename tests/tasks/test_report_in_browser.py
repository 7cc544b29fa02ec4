"""The page in a real browser: what it shows, sorts and finds, at the width of a desk and a phone.

Screenshots, to look at, go to the folder that FIRSTKD_SCREENSHOTS names.
"""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.report import main
from tests.tasks.reported import write_project

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)",
    ),
]

GOLD = {"recalibration": "none", "gold_tokens": 1.0}
FIRST = {"recalibration": "temperature", "choices": 1.0}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    models = {"teacher": "finetune", "sft": "distill/sft", "first": "distill/first"}
    write_project(root, models, {"sft": GOLD, "first": FIRST}, "first")
    main(root)
    return root / "data/report/index.html"


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{name}")
    options.add_argument("--force-prefers-reduced-motion")  # a click does not wait for scrolling
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(opened: Any, page: Path) -> Any:
    opened.get(page.as_uri())
    return opened


def column(browser: Any, table: str, number: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')]"
        ".filter(row => !row.hidden).map(row => row.cells[arguments[1]].dataset.value)",
        *(table, number),
    )


def test_page_opens_without_a_complaint(browser: Any) -> None:
    assert browser.get_log("browser") == []
    assert "first" in browser.title
    assert len(browser.find_elements("css selector", "#models tbody tr")) == 6


def test_a_heading_sorts_with_mouse_and_keyboard(browser: Any) -> None:
    from selenium.webdriver import Keys

    heading = browser.find_element("css selector", "#models th:nth-child(2)")
    button = heading.find_element("css selector", "button")
    table = "#models .scroll:nth-of-type(1) table"
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(value) for value in column(browser, table, 1)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    button.send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in column(browser, table, 1)] == sorted(values)


def test_search_finds_mistakes_by_word_and_model(browser: Any) -> None:
    all_of_student = column(browser, "#mistakes-table", 1)
    assert set(column(browser, "#mistakes-table", 4)) == {"first"}
    word = all_of_student[0].removeprefix("Where is ").removesuffix(" live?")
    browser.find_element("id", "search").send_keys(word)
    found = column(browser, "#mistakes-table", 1)
    assert 0 < len(found) < len(all_of_student) and all(word in text for text in found)
    told = browser.find_element("id", "found").text
    assert told.startswith(f"{len(found)} of ")
    browser.find_element("id", "search").send_keys(" no such word")
    assert column(browser, "#mistakes-table", 1) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_window(browser: Any, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text')]"
        ".map(text => text.getBoundingClientRect().height))"
    )
    assert smallest >= 10  # pixels: still legible
    if folder := os.environ.get("FIRSTKD_SCREENSHOTS"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        picture = Path(folder) / f"report-{width}-{scheme}.png"
        picture.write_bytes(base64.b64decode(shot["data"]))
