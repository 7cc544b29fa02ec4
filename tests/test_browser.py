"""An exported student in a real browser: it answers there as ONNX Runtime does here, offline."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from firstkd.exports import reader
from firstkd.exports.onnx import OnnxExport
from tests.chromium import CHROMIUM, DRIVER, chromium
from tests.firstkd.exports.test_exports import EXAMPLES, written
from tests.tiny import REPOSITORY

NPM = shutil.which("npm")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER and NPM),
        reason="needs chromium, chromedriver and npm (Debian: chromium chromium-driver npm)",
    ),
]


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with what npm installs, and a student."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "examples/browser", root, dirs_exist_ok=True)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=root, check=True)
    (root / "student").mkdir(exist_ok=True)
    written(OnnxExport, "int8", tiny_model, root / "student")
    return root


class Served:
    def __init__(self, root: Path) -> None:
        handler = partial(SimpleHTTPRequestHandler, directory=str(root))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def served(site: Path) -> Iterator[Served]:
    found = Served(site)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def wait(browser: Any, start: str) -> str:
    """Wait for what the page says to begin so; return it."""
    from selenium.webdriver.support.wait import WebDriverWait

    def said(_: Any) -> str | None:
        text = str(browser.find_element("id", "said").text)
        return text if text.startswith(start) else None

    return str(WebDriverWait(browser, 60).until(said, f"no {start!r}"))


def ask(browser: Any, question: str, choices: list[str]) -> list[float]:
    """Ask on the page; return the probabilities that it shows."""
    for name, value in (("question", question), ("choices", "\n".join(choices))):
        field = browser.find_element("id", name)
        field.clear()
        field.send_keys(value)
    browser.execute_script("document.getElementById('answers').replaceChildren()")
    browser.find_element("id", "ask").click()
    wait(browser, "It would rather not say")  # its threshold is 0.999
    return [meter.get_property("value") for meter in browser.find_elements("css selector", "meter")]


def test_it_answers_in_a_browser_as_it_does_here_and_without_a_network(
    browser: Any, served: Served, site: Path
) -> None:
    student = reader.Student(site / "student", threads=1)
    browser.get(served.url)
    wait(browser, "The student is ready")
    browser.execute_script("document.getElementById('said').textContent = ''")
    served.stop()
    for example in EXAMPLES:
        assert example.choices
        expected = student.answer(example.prompt, example.choices)["probabilities"]
        assert ask(browser, example.prompt, [*example.choices]) == pytest.approx(expected, abs=2e-3)
    requests = browser.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.name)"
    )
    assert len(requests) > 5 and all(name.startswith(served.url) for name in requests)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
                and "favicon" not in entry["message"]]  # fmt: skip


def test_a_changed_file_is_refused_in_one_line(browser: Any, served: Served, site: Path) -> None:
    file = site / "student/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    browser.get(served.url)
    said = wait(browser, "student/model.onnx is not the file that was exported")
    assert "\n" not in said
