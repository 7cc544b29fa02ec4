"""The page in a real browser: what it shows, sorts and finds, at the width of a desk and a phone.

Screenshots, to look at, go to the folder that FIRSTKD_SCREENSHOTS names.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.report import main
from tests.chromium import CHROMIUM, DRIVER, chromium
from tests.tasks.reported import write_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of few and of many models, and one whose student has neither teacher nor rival."""
    names = [f"pupil_{i}_with_quite_a_name" if i > 4 else f"pupil_{i}" for i in range(12)]
    of_models = {
        "three": (["teacher", "sft", "first"], "first"),
        "missing": (["base", "first"], "first"),
        **{str(count): (names[:count], "pupil_0") for count in (1, 5, 12)},
    }
    found = {}
    for name, (models, student) in of_models.items():
        root = tmp_path_factory.mktemp(name)
        write_project(root, models, student)
        main(root)
        found[name] = root / "data/report/index.html"
    return found


@pytest.fixture(scope="module")
def page(pages: dict[str, Path]) -> Path:
    return pages["three"]


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with chromium("force-prefers-reduced-motion") as found:  # a click does not wait for scrolling
        yield found


@pytest.fixture
def browser(opened: Any, page: Path) -> Any:
    show(opened, 1280)
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


def show(browser: Any, width: int, **media: str) -> None:
    """Set the window's width, and what the reader prefers; `media="print"` for paper."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    kind = media.pop("media", "screen")
    features = [{"name": name.replace("_", "-"), "value": media[name]} for name in media]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def screenshot(browser: Any, name: str) -> None:
    """Take the whole page, where somebody wants to look at it."""
    if folder := os.environ.get("FIRSTKD_SCREENSHOTS"):
        size = browser.execute_script(
            "const page = document.documentElement; return [page.clientWidth, page.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        (Path(folder) / f"report-{name}.png").write_bytes(base64.b64decode(shot["data"]))


OVERLAPS = """
const found = [];
for (const svg of document.querySelectorAll("svg")) {
  const boxes = [...svg.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
  boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    // the line height around two labels may touch, their letters may not
    if (wide > 1 && high > Math.min(a.height, b.height) / 3)
      found.push([svg.getAttribute("aria-label"), text.textContent, other.textContent]);
  }));
}
return found;
"""
OUTSIDE = """
return [...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    const beside = box.left < frame.left - 1 || box.right > frame.right + 1;
    return beside || box.bottom > frame.bottom + 2;
  }).map(text => [svg.getAttribute("aria-label"), text.textContent]);
});
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("models", ["three", "missing", "1", "5", "12"])
def test_page_fits_its_window(
    opened: Any, pages: dict[str, Path], models: str, width: int, scheme: str
) -> None:
    opened.get(pages[models].as_uri())
    show(opened, width, prefers_color_scheme=scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    smallest = opened.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text')]"
        ".map(text => text.getBoundingClientRect().height))"
    )
    assert smallest >= 10  # pixels: still legible
    assert opened.execute_script(OVERLAPS) == []
    assert opened.execute_script(OUTSIDE) == []
    screenshot(opened, f"{models}-{width}-{scheme}")


@pytest.mark.parametrize("models", ["three", "12"])
def test_page_fits_on_paper(opened: Any, pages: dict[str, Path], models: str) -> None:
    opened.get(pages[models].as_uri())
    show(opened, 700, media="print", prefers_color_scheme="dark")  # A4 within its margins
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"  # whatever the screen prefers
    wider = opened.execute_script(
        "return [...document.querySelectorAll('table, svg')]"
        ".filter(part => part.getBoundingClientRect().right > innerWidth + 1)"
        ".map(part => part.textContent.slice(0, 60))"
    )
    screenshot(opened, f"{models}-print")
    assert wider == []


CONTRASTS = """
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const luminance = color => {
  const [r, g, b] = numbers(color).slice(0, 3).map(value => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (numbers(color)[3] !== 0) return color;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  const text = texts.currentNode.textContent.trim();
  if (!text || ["script", "style"].includes(element.localName)) continue;
  const style = getComputedStyle(element);
  const color = element.closest("svg") ? style.fill : style.color;
  const both = [luminance(color), luminance(behind(element))].sort((a, b) => b - a);
  const contrast = (both[0] + 0.05) / (both[1] + 0.05);
  if (contrast < 4.5) found.push([contrast, text]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser: Any, scheme: str) -> None:
    show(browser, 1280, prefers_color_scheme=scheme)
    assert browser.execute_script(CONTRASTS) == []


def test_page_can_be_read_and_used_without_eyes_or_mouse(browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    show(browser, 1280)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('svg, [role=region], section, nav, input, select')]"
        ".filter(part => !part.ariaLabel && !part.labels?.length"
        " && !document.getElementById(part.getAttribute('aria-labelledby')))"
        ".map(part => part.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element.text == "Skip to the table of models"
    reached, last = [], None
    for _ in range(200):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        element = browser.switch_to.active_element
        if element.tag_name == "body":
            break
        reached.append(element)
        last = element
    assert last is not None
    in_order = browser.execute_script(
        "return [...document.querySelectorAll('a[href], button, input, select, [tabindex]')]"
        ".filter(part => !part.matches('.skip') && part.checkVisibility())"
    )
    assert reached == in_order


@pytest.mark.parametrize(
    ("preferred", "behaviour"), [("reduce", "auto"), ("no-preference", "smooth")]
)
def test_page_moves_only_where_that_is_wanted(browser: Any, preferred: str, behaviour: str) -> None:
    show(browser, 1280, prefers_reduced_motion=preferred)
    scrolls = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.execute_script(scrolls) == behaviour
