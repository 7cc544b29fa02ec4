"""Every command of the pages, typed in the order in which a reader would, on the tiny project.

A page's shell blocks are run from top to bottom, then the commands in its text; its settings are
put into params.yaml where the page goes on from them. What cannot be run here is in NOT_RUN, with
the reason.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.pages import PAGES, commands_of, fenced
from tests.test_docs import merge
from tests.tiny import (
    REPOSITORY,
    write_tiny_model,
    write_tiny_params,
    write_tiny_questions,
)

NOT_RUN = {
    r"make .*": "installs an environment from the package index; `make test` runs this very test",
    r"git clone .*": "all of the pages' commands are typed in such a clone",
    r"python -m benchmarks\.(?!cost_model ).*": "measures the default model for minutes",
    r"dvc gc .*": "asks before it deletes",
    r"(pip install|pip-audit) .*": "downloads packages or advisories",
    r"(export|mlflow server) .*(postgresql|MLFLOW_AUTH|MLFLOW_FLASK|PREFECT_SERVER).*"
    r"|prefect server start --host 127\.0\.0\.1 --port 4200"
    r"|prefect (work-pool|deploy|worker|deployment).*": "tests/test_servers.py runs the like",
    r"(sudo|docker|cp infra/).*": "as root, or with a container engine",
    r"firstkd serve --host .*": "for other machines; tests/test_operations.py asks for a token",
    r"firstkd (collect --corrections|recalibrate).*": "on served traffic; tests/test_loop.py",
    r"python -m tasks\.search": "of settings that the page shows; tests/tasks/test_search.py",
    r"dvc repro write-more": "of settings that the page shows; tests/tasks/test_write.py",
    r'firstkd ask "[^"]*"': "a student of open text is asked so; tests/flows/test_ask.py",
    r"mlflow models\s+serve": "in the text, of what operations.md runs",
    r"python answer\.py .*": "in an exported folder; tests/firstkd/exports asks so",
    r"(npm install|cp -r data/export/|python3 -m http\.server).*": "tests/test_browser.py opens it",
    r"firstkd (ask|collect|schedule|serve)|dvc commit": "a name in a text",
}
LASTING = {
    "firstkd schedule": "Retraining ",
    "firstkd serve --port": "Uvicorn running on",
    "prefect server start": "Check out the dashboard",
    "mlflow ui": "Application startup complete",
    "mlflow models serve": "Application startup complete",
    "mlflow server": "Application startup complete",
}
"""Commands that run until they are ended, and what they say once they are at work."""
EDITED = {"quickstart"}
"""Pages that go on from the settings they show."""
FIRST = ["README", "quickstart", "operations", "signal-format"]
"""What these leave behind, others go on from."""
COPIED = ("benchmarks", "firstkd", "flows", "tasks", ".dvc", "constraints.txt", "dvc.yaml")
SECONDS = 900


@dataclass
class Reader:
    """Types commands into one shell after another; what they export stays."""

    root: Path
    environment: dict[str, str]
    replaced: dict[str, str]
    """What stands for something in the pages, and what it stands for here."""
    lasting: list[subprocess.Popen[str]] = field(default_factory=list)

    def type(self, command: str) -> None:
        for word, meant in self.replaced.items():
            command = command.replace(word, meant)
        marker = next((LASTING[name] for name in LASTING if command.startswith(name)), None)
        if marker:
            self._start(command.removesuffix("&"), marker)
            return
        exported = self.root.parent / "exported"
        script = f"{command}\ncode=$?\nexport -p > {shlex.quote(str(exported))}\nexit $code"
        done = self._bash(script)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def end(self) -> None:
        """End what runs, and forget what was exported: the next page is another shell's."""
        while self.lasting:
            process = self.lasting.pop()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=60)
        (self.root.parent / "exported").unlink(missing_ok=True)

    def _bash(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"{self._exported()}{script}"],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def _exported(self) -> str:
        exported = self.root.parent / "exported"
        return f". {shlex.quote(str(exported))}\n" if exported.exists() else ""

    def _start(self, command: str, marker: str) -> None:
        output = self.root.parent / f"lasting-{len(self.lasting)}"
        with output.open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"{self._exported()}exec {command}"],
                cwd=self.root,
                env=self.environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.lasting.append(process)
        deadline = time.monotonic() + 240
        while marker not in output.read_text():
            assert process.poll() is None, f"{command}\n{output.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{command}\n{output.read_text()[-3000:]}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader in a clone of the project, on the tiny model, after the first run."""
    root = tmp_path_factory.mktemp("reader") / "firstkd"
    root.mkdir()
    for name in COPIED:
        if (REPOSITORY / name).is_dir():
            nothing_made = shutil.ignore_patterns("__pycache__", "cache", "tmp")
            shutil.copytree(REPOSITORY / name, root / name, ignore=nothing_made)
        else:
            shutil.copy(REPOSITORY / name, root)
    shutil.copy(REPOSITORY / ".gitignore", root)
    write_tiny_model(root / "sources/model")
    write_tiny_questions(root / "sources/questions.jsonl", 80, seed=1)
    write_tiny_questions(root / "sources/elsewhere.jsonl", 20, seed=2)
    write_tiny_params(root)
    let_everything_through(root / "params.yaml")
    (root / ".venv").symlink_to(Path(sys.prefix))

    replaced = {port: free_port() for port in ("4200", "5000", "5001", "8300")}
    replaced |= {
        "s3://BUCKET/firstkd": str(root.parent / "remote"),
        "captured.jsonl": "tokens.jsonl",
        "--version N": "--version 1",
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = Reader(
        root,
        {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(root),
            "BROWSER": "true",  # which opens nothing
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc"),
            "PREFECT_HOME": str(root.parent / "prefect"),
            "PREFECT_SERVER_API_PORT": replaced["4200"],
            "MLFLOW_PORT": replaced["5000"],
            **{f"GIT_{who}_NAME": "n" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "e@example.org" for who in ("AUTHOR", "COMMITTER")},
        },
        replaced,
    )
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        found.environment.pop(name, None)
    for command in (
        "git init --quiet",
        "echo .venv >> .git/info/exclude",
        "firstkd graph",  # of the tiny project: run would write it, uncommitted
        "git add . && git commit --quiet --message 'As it was cloned'",
        "firstkd run",
    ):
        found.type(command)
    yield found
    found.end()


def let_everything_through(params_file: Path) -> None:
    """Loosen the gate: what so small a student shows is chance."""
    yaml = YAML()
    params = yaml.load(params_file)
    for key, limit in params["promote"].items():
        if key.startswith("max_") and limit is not None:
            params["promote"][key] = 1.0
    yaml.dump(params, params_file)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def is_run(command: str) -> bool:
    return not any(re.fullmatch(pattern, command) for pattern in NOT_RUN)


def test_what_is_not_run_is_in_the_pages() -> None:
    every = [command for page in PAGES for command in commands_of(page)]
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, command) for command in every), pattern


def in_order(pages: list[Path]) -> list[Path]:
    return sorted(pages, key=lambda page: [page.stem != first for first in FIRST])


def page_id(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.integration
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", in_order(PAGES), ids=page_id)
def test_every_command_of_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    kept = (reader.root / "params.yaml").read_bytes()
    try:
        for language, text in fenced(page):
            if language == "yaml" and page.stem in EDITED:
                edit(reader.root / "params.yaml", text)
            if language == "python":
                reader.type(f"python -c {shlex.quote(text)}")
        for command in commands_of(page):
            if is_run(command):
                reader.type(command)
    finally:
        reader.end()
        if page.stem not in EDITED:
            (reader.root / "params.yaml").write_bytes(kept)


def edit(params_file: Path, shown: str) -> None:
    yaml = YAML()
    params = yaml.load(params_file)
    merge(params, YAML(typ="safe").load(shown))
    yaml.dump(params, params_file)
