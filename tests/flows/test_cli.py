import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstkd.files import read_json
from flows.workspace import Workspace
from tasks.terminal import Terminal
from tests.flows.projects import REPOSITORY, change

FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]


def firstkd(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, on this repository's code."""
    return subprocess.run(
        [*FIRSTKD, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        capture_output=True,
        text=True,
    )


def test_help_imports_nothing_heavy() -> None:
    watched = "import sys, flows.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", watched], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    heavy = {"prefect", "mlflow", "pandas", "numpy", "torch", "pydantic", "sqlalchemy"}
    assert not heavy & set(done.stdout.split())


def test_help_answers_at_once(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        started = time.monotonic()
        done = firstkd(tmp_path, "--help")
        took.append(time.monotonic() - started)
        assert "record" in done.stdout and done.returncode == 0
    assert min(took) < 0.5


def test_mistake_in_settings_is_one_line(project: Workspace) -> None:
    change(project.root, "train.distill", "epochz", 3)
    done = firstkd(project.root)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: params.yaml: train.distill: unknown key 'epochz' (value 3)")


def test_debug_shows_where(tmp_path: Path) -> None:
    done = firstkd(tmp_path, "--debug", "run")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "params.yaml is missing" in done.stderr


def test_record_refuses_stale_files_and_then_records_once(project: Workspace) -> None:
    change(project.root, "train.distill", "epochs", 5)
    refused = firstkd(project.root, "record")
    assert refused.returncode == 1
    assert "dvc.lock does not match the current files of model-first" in refused.stderr
    change(project.root, "train.distill", "epochs", 4)
    first = firstkd(project.root, "record")
    assert first.returncode == 0, first.stderr
    assert "firstkd-student v1" in first.stdout and "v1 is promoted" in first.stdout
    assert first.stderr == ""
    assert "already recorded" in firstkd(project.root, "record").stdout
    assert "champion: firstkd-student v1" in firstkd(project.root, "status").stdout


@pytest.mark.integration
def test_run_on_the_embedded_server(project: Workspace) -> None:
    change(project.root, "train.distill", "epochs", 5)
    first = firstkd(project.root)
    assert first.returncode == 0, first.stderr
    assert "── model-first ──" in first.stderr and "INFO model-first" in first.stderr
    assert "Running stage" not in first.stderr and "Prefect" not in first.stderr
    of_test = read_json(project.root / "data/evaluate/first/metrics.json")["sets"]["test"]
    accuracy = of_test["raw"]["accuracy"]["value"]
    assert f"{accuracy:.3f}" in first.stdout and re.search(r"0\.\d\d–[01]\.\d\d", first.stdout)
    assert "firstkd-student v1 is promoted" in first.stdout.replace("\n", " ")

    second = firstkd(project.root)
    assert second.stdout == "Nothing has changed; champion: firstkd-student v1.\n"
    assert second.stderr == ""

    change(project.root, "train.finetune", "epochs", 13)
    failed = firstkd(project.root)
    assert failed.returncode == 1
    assert failed.stderr.count("thirteen epochs") == 1
    assert failed.stderr.splitlines()[-1] == "error: model: thirteen epochs are too many"


def test_an_error_of_several_lines_is_left_to_whoever_runs_the_flow(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream:
        shown = Terminal(stream)
        shown.begin("validate")
        for text in ("INFO counting", "validate: 2 expectations failed:", "  one", "  two"):
            shown.line(text)
        shown.end("failed")
        shown.begin("model-teacher")
        shown.line("INFO training")
    said = log.read_text()
    assert "INFO counting" in said and "INFO training" in said
    assert "expectations" not in said and "two" not in said


def test_bars_overwrite_themselves_on_a_terminal_only(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        Terminal(stream).progress("50%")
        Terminal(stream).line("done")
        shown = b""
        while not shown.endswith(b"\n"):  # what was written at twice may come at twice
            shown += os.read(ours, 100)
        assert shown == b"\r\x1b[K50%\r\x1b[Kdone\r\n"
    os.close(ours)
    log = tmp_path / "log"
    with log.open("w") as stream:
        Terminal(stream, _shown=time.monotonic()).progress("50%")
        Terminal(stream).progress("Updating lock file")
        Terminal(stream).line("done")
    assert log.read_text() == "done\n"
